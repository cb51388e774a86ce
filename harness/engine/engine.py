"""One DeepSpeed engine: forward, backward, step, and whether the step was applied, alike in every stage and precision."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from harness.ds_config import DsConfig
from harness.engine.files import TAG, WEIGHTS, durable_files, make_universal, state_classes
from harness.engine.library import deepspeed_library
from harness.engine.ranks import device_of
from harness.errors import CheckpointError, ConfigError
from harness.ranks import Ranks
from harness.unpickling import refuse_programs, tensors_only
from harness.watchdog import LONG_WORK, beat


def decides_on_device(device: torch.device) -> bool:
    """Whether an update is skipped by a flag the host does not wait for: on a CPU there is nothing to wait for."""
    return device.type == "cuda"


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that can be told to let one step pass: ZeRO-0 in fp32 applies non-finite gradients unaided.

    `let_pass` tells it from the host, once. `found_inf`, 1 or 0 on the weights' device, tells the fused kernel there:
    at 1 it leaves weights, moments and the count of steps as they are.
    """

    let_pass = False
    found_inf: torch.Tensor | None = None

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if not self.let_pass:
            return super().step(closure)
        self.let_pass = False
        return None


class Engine:
    """One DeepSpeed engine; ranks call every method together."""

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        config: DsConfig,
        *,
        sequences: int,
        ranks: Ranks,
        betas: tuple[float, float],
        eps: float,
        clip: float | None,
    ) -> None:
        """Wrap `module`, whose forward returns loss terms; `groups` are AdamW groups of its trained weights."""
        deepspeed = deepspeed_library()
        self.ranks = ranks
        self.config = config
        self.device = device_of(ranks)
        # These stages and precisions step the client optimizer on plain gradients, so the check is ours.
        self._guards_itself = config.stage == 0 and config.precision in ("fp32", "bf16-autocast")
        resolved = config.resolved(sequences=sequences, world=ranks.world, clip=None if self._guards_itself else clip)
        self.resolved_config = resolved
        self.micro_batch: int = resolved["train_micro_batch_size_per_gpu"]
        self.accumulation: int = resolved["gradient_accumulation_steps"]
        self._clip = clip
        self._trained = [p for group in groups for p in group["params"]]
        fused = not config.tree.get("zero_optimization", {}).get("offload_optimizer")
        self._client = GuardedAdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused)
        self._device_decides = self._guards_itself and fused and decides_on_device(self.device)
        try:
            self._ds, *_ = deepspeed.initialize(
                model=module.to(self.device), optimizer=self._client, config=resolved, dist_init_required=False
            )
        except ValueError as error:
            raise ConfigError(
                f"ds_config {config.path or 'default'}",
                rule=f"DeepSpeed refuses it here: {error}",
                remedy="choose another precision or stage",
            ) from None
        if config.stage == 0:
            # For bf16 weights DeepSpeed steps once on gradients of zero: AdamW would take the first update for its second.
            self._client.state.clear()
        self._ds.checkpoint_engine = self._files = durable_files()
        # Recovery scripts: nothing runs code from a checkpoint, and the safetensors are what they would make.
        self._ds._copy_recovery_script = lambda *_: None
        self._leave_giving_up_to_us()

    def _leave_giving_up_to_us(self) -> None:
        """A loss scale at its minimum skips steps like any other: ZeRO 1 to 3 would end the process with an error of
        their own, long before the loop says that training has diverged."""
        scaler: Any = getattr(self._ds.optimizer, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False

    def facts(self) -> dict[str, Any]:
        """What a checkpoint and a record say of the engine that made them."""
        return {
            "precision": self.config.precision,
            "zero_stage": self.config.stage,
            "world_size": self.ranks.world,
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "offload": self.config.offload,
            "activation_checkpointing": self.config.activation_checkpointing,
        }

    @property
    def module(self) -> nn.Module:
        return self._ds.module

    def set_learning_rate(self, lr: float, *, active: list[bool]) -> None:
        """Set the rate of every group; groups that get no gradient now rest at zero, so they do not decay."""
        for group, on in zip(self._ds.optimizer.param_groups, active, strict=True):
            group["lr"] = lr if on else 0.0

    def learning_rates(self) -> list[dict[str, Any]]:
        """The optimizer's groups, for reading."""
        return self._ds.optimizer.param_groups

    def __call__(self, *args: Any) -> dict[str, torch.Tensor]:
        return self._ds(*args)

    def backward(self, loss: torch.Tensor) -> None:
        self._ds.backward(loss)

    def step(self) -> bool | torch.Tensor:
        """End a micro-batch; at the accumulation boundary update the weights.

        Returns False when the boundary's update was skipped because a gradient was not finite, on any
        rank: gradients are reduced before the check, so all ranks decide alike. Where the device decides, the
        flag is on it, and reading it waits for the step to end.
        """
        boundary = self._ds.is_gradient_accumulation_boundary()
        applied = self._guarded() if boundary and self._guards_itself else True
        self._ds.step()
        if boundary and not self._guards_itself:
            applied = bool(self._ds.was_step_applied())
        return applied

    def _guarded(self) -> bool | torch.Tensor:
        """Clip the gradients, or have the coming update skipped where one is not finite."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        finite = torch.isfinite(norm)
        applied = finite if self._device_decides else bool(finite)
        if isinstance(applied, torch.Tensor):
            self._client.found_inf = (~applied).float()
        else:
            self._client.let_pass = not applied
        if self._clip is not None and applied is not False:
            torch.nn.utils.clip_grads_with_norm_(self._trained, self._clip, norm)
        return applied

    def evaluate(self, *args: Any) -> dict[str, torch.Tensor]:
        """One forward in eval mode without gradients."""
        self._ds.eval()
        try:
            with torch.no_grad():
                return self._ds(*args)
        finally:
            self._ds.train()

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """All weights of a submodule in fp32 on the CPU, complete on every rank."""
        with self._gathered(module):
            return {k: v.detach().float().cpu().clone() for k, v in module.state_dict().items()}

    def _gathered(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Inside, every weight of the module is whole on every rank."""
        if self.config.stage < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(module.parameters()))

    def save(self, folder: Path) -> None:
        """Write every rank's share below `folder`; publishing it is the checkpoint module's business.

        Rank 0 adds the weights of student and objective as safetensors; a tied weight appears once, under
        the first of its names.
        """
        self._ds.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        with self._gathered(self.module):
            weights = (
                {
                    k: v.detach().float().cpu().clone(memory_format=torch.contiguous_format)
                    for k, v in self.module.named_parameters()
                }
                if self.ranks.is_main
                else {}
            )
        # No rank waits for another from here on: whoever could not write may say so.
        self._files.raise_failure()
        if self.ranks.is_main:
            save_file(weights, folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        """Restore weights, optimizer and scaler from a verified folder, written by as many ranks.

        Raises:
            CheckpointError: a file holds more than tensors, or DeepSpeed found nothing to load (it only warns).
        """
        self._refuse_programs(folder)
        with tensors_only(state_classes()):
            self._restore(folder, TAG)

    def load_from_other_world(self, folder: Path) -> None:
        """Restore a verified folder written by another number of ranks, through DeepSpeed's universal form.

        Rank 0 makes that form beside the checkpoints, where every rank can read it, and removes it again.

        Raises:
            CheckpointError: as `load`; or the conversion failed.
        """
        if self.config.stage == 0:
            self.load(folder)  # every rank holds everything: there is nothing to divide anew
            return
        self._refuse_programs(folder)
        universal = folder.parent / f".removing-universal-{folder.name}"
        mine = [{k: v for k, v in group.items() if k != "params"} for group in self._ds.optimizer.param_groups]
        try:
            self.ranks.on_main(lambda: make_universal(folder / TAG, universal / TAG, stage=self.config.stage))
            beat(f"the reading of {folder.name}, converted", patience=LONG_WORK)
            self._ds._config.load_universal_checkpoint = True
            with tensors_only(state_classes()):
                self._restore(universal, TAG)
            # ZeRO-3 gives every group the first one's weight decay, and all parts one tensor that counts
            # their steps, which then counts each step once per part.
            for group, settings in zip(self._ds.optimizer.param_groups, mine, strict=True):
                group.update(settings)
            for state in self._client.state.values():
                if torch.is_tensor(state.get("step")):
                    state["step"] = state["step"].clone()
        finally:
            self._ds._config.load_universal_checkpoint = False
            self.ranks.barrier()
            if self.ranks.is_main:
                shutil.rmtree(universal, ignore_errors=True)
            self.ranks.barrier()  # gone for every rank that comes back

    def _refuse_programs(self, folder: Path) -> None:
        """Before DeepSpeed sees them: ranks share the files, and all learn of a bad one."""
        files = sorted((folder / TAG).glob("**/*.pt"))[self.ranks.rank :: self.ranks.world]
        self.ranks.together(lambda: refuse_programs(files, state_classes()))

    def _restore(self, folder: Path, tag: str) -> None:
        loaded, _ = self._ds.load_checkpoint(str(folder), tag=tag, load_lr_scheduler_states=False)
        self._leave_giving_up_to_us()  # the scaler may be the checkpoint's
        if loaded is None:
            raise CheckpointError(
                f"checkpoint {folder.name}", rule="the engine found no state in it", remedy="use an older one"
            )

    def close(self) -> None:
        self._ds.destroy()
