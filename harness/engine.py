"""The training engine: DeepSpeed around one module that holds the student and its objective.

The only importer of deepspeed. Everything that differs between ZeRO stages and precisions ends here:
the loop sees forward, backward, step, and whether the step was applied.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import io
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from harness.ds_config import DsConfig
from harness.errors import CheckpointError, ConfigError
from harness.hardware import free_bytes, has_cuda, usable_cores
from harness.manifest import sync
from harness.ranks import Ranks, free_port, from_environment
from harness.unpickling import refuse_programs, tensors_only


def _import_deepspeed() -> Any:
    # DeepSpeed probes accelerators at import and warns when it finds none; say which one it is.
    if not has_cuda():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # init_distributed would compile a C++ shared-memory all-reduce that only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # Loading and writing a model in milliseconds needs no bar, and a rank's bars would mix with another's.
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return deepspeed


# This process's ranks once it has joined them: a process joins once, however many studies it runs.
_joined: list[Ranks] = []


def connect(*, timeout_s: float = 1800.0) -> Ranks:
    """Join the ranks of this run (one process when no launcher set an environment) and set its threads."""
    from datetime import timedelta

    ranks = from_environment()
    if "OMP_NUM_THREADS" not in os.environ or (ranks.world == 1 and "TORCHELASTIC_RUN_ID" in os.environ):
        # DeepSpeed's launcher sets nothing: two ranks on two cores would run four threads and crawl.
        torch.set_num_threads(max(1, usable_cores() // ranks.local_world))
    if _joined:
        return _joined[0]
    deepspeed = _import_deepspeed()
    facts = {"RANK": ranks.rank, "WORLD_SIZE": ranks.world, "LOCAL_RANK": ranks.local_rank}
    for key, value in facts.items():
        os.environ[key] = str(value)
    os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    os.environ.setdefault("MASTER_PORT", str(free_port() if ranks.world == 1 else 29500))
    backend = "nccl" if has_cuda() else "gloo"
    if has_cuda():
        torch.cuda.set_device(ranks.local_rank)
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=timeout_s)
    )
    # Not at the end of a study: DeepSpeed keeps references to the group, and a process may run several studies.
    atexit.register(_leave)
    if ranks.world > 1:
        ranks.control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    _joined.append(ranks)
    return ranks


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def device_of(ranks: Ranks) -> torch.device:
    return torch.device("cuda", ranks.local_rank) if has_cuda() else torch.device("cpu")


def check(config: DsConfig, *, sequences: int, world: int) -> None:
    """Let DeepSpeed read the configuration before anything is built.

    Raises:
        ConfigError: a nested key or value it does not know.
    """
    _import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    resolved = config.resolved(sequences=sequences, world=world, clip=None)
    try:
        DeepSpeedConfig(resolved)
    except Exception as error:  # pydantic's, DeepSpeed's own and plain assertions alike
        details = error.errors()[0] if hasattr(error, "errors") else None
        where = ".".join(str(part) for part in details["loc"]) if details else ""
        said = details["msg"] if details else (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{where or 'a key'} in {config.path or 'the default ds_config'}",
            rule=f"DeepSpeed refuses it: {said}",
            remedy="correct it",
        ) from None


# Where DeepSpeed's files lie below a checkpoint, and the weights for every other program beside them.
_TAG = "engine"
WEIGHTS = "weights.safetensors"


def _state_classes() -> list[type]:
    """The classes of DeepSpeed that its optimizer files name; everything else in them is tensors and numbers."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, fragment_address]


def _plain(tree: Any) -> Any:
    """The same state with enumerations as their values: Python before 3.11.4 pickles them through `getattr`."""
    if isinstance(tree, Enum):
        return tree.value
    if isinstance(tree, dict):
        found = {key: value for key, old in tree.items() if (value := _plain(old)) is not old}
        if not found:
            return tree
        changed = copy.copy(tree)
        changed.update(found)
        return changed
    if type(tree) in (list, tuple):
        parts = [_plain(part) for part in tree]
        return tree if all(a is b for a, b in zip(parts, tree, strict=True)) else type(tree)(parts)
    return tree


def _durable_files() -> Any:
    """DeepSpeed's own plug for its files: what is written is on the disk, what is read is only tensors."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class DurableFiles(TorchCheckpointEngine):
        failure: Exception | None = None

        def save(self, state_dict: Any, path: str) -> None:
            # Not raised here: DeepSpeed's other ranks would wait for this one in a barrier of theirs.
            try:
                torch.save(_plain(state_dict), path)
                sync(Path(path))
            except Exception as error:
                self.failure = self.failure or error

        def raise_failure(self) -> None:
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure

        def load(self, path: str, map_location: Any = None) -> Any:
            with tensors_only(_state_classes()):
                return torch.load(path, map_location=map_location, weights_only=True)

    return DurableFiles()


def zero_estimate(
    *, stage: int, weights: int, largest_layer: int, devices: int, offload_optimizer: bool, offload_param: bool
) -> int | None:
    """Bytes on one device for model states by DeepSpeed's own estimators (half precision); None for stage 0.

    They know neither the precision of this run, nor activations, buckets or a teacher.
    """
    if stage == 0:
        return None
    _import_deepspeed()
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    per_node = min(devices, 8)
    nodes = max(1, devices // per_node)
    if stage == 3:
        return zero3(
            weights, largest_layer, num_gpus_per_node=per_node, num_nodes=nodes, cpu_offload=offload_optimizer,
            cpu_offload_params=offload_param,
        )[1]  # fmt: skip
    return zero2(weights, num_gpus_per_node=per_node, num_nodes=nodes, cpu_offload=offload_optimizer)[1]


# A teacher that takes more of what is free beside the student's states leaves too little for activations.
_TEACHER_SHARE = 0.5


def must_divide(weight_bytes: int, config: DsConfig, ranks: Ranks) -> bool:
    """Whether a frozen model of this size is shared out among ranks: as the ds_config says, or when it does not fit.

    Ranks ask together and get one answer: one rank without room is enough.
    """
    if ranks.world == 1 or config.teacher_divided is not None:
        return ranks.world > 1 and bool(config.teacher_divided)
    return any(ranks.gather(weight_bytes > _TEACHER_SHARE * free_bytes(local_world=ranks.local_world)))


def divided(module: nn.Module) -> nn.Module:
    """A frozen module whose weights ranks share out, gathered layer by layer while its forward needs them."""
    deepspeed = _import_deepspeed()
    tree: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    if next(module.parameters()).dtype == torch.bfloat16:
        tree["bf16"] = {"enabled": True}
    engine, *_ = deepspeed.initialize(model=module, config=tree, dist_init_required=False)
    return engine


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that can be told to let one step pass: ZeRO-0 in fp32 applies non-finite gradients unaided."""

    let_pass = False

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
        deepspeed = _import_deepspeed()
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
        self._ds.checkpoint_engine = self._files = _durable_files()
        # Recovery scripts: nothing runs code from a checkpoint, and the safetensors are what they would make.
        self._ds._copy_recovery_script = lambda *_: None
        self._leave_giving_up_to_us()

    def _leave_giving_up_to_us(self) -> None:
        """A loss scale at its minimum skips steps like any other: ZeRO 1 to 3 would end the process with an error of
        their own, long before the loop says that training has diverged."""
        scaler = getattr(self._ds.optimizer, "loss_scaler", None)
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

    def step(self) -> bool:
        """End a micro-batch; at the accumulation boundary update the weights.

        Returns False when the boundary's update was skipped because a gradient was not finite, on any
        rank: gradients are reduced before the check, so all ranks decide alike.
        """
        boundary = self._ds.is_gradient_accumulation_boundary()
        applied = True
        if boundary and self._guards_itself:
            gradients = [p.grad for p in self._trained if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            applied = bool(torch.isfinite(norm))
            if not applied:
                self._client.let_pass = True
            elif self._clip is not None:
                torch.nn.utils.clip_grads_with_norm_(self._trained, self._clip, norm)
        self._ds.step()
        if boundary and not self._guards_itself:
            applied = bool(self._ds.was_step_applied())
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
        self._ds.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
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
        with tensors_only(_state_classes()):
            self._restore(folder, _TAG)

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
            self.ranks.on_main(lambda: self._make_universal(folder / _TAG, universal / _TAG))
            self._ds._config.load_universal_checkpoint = True
            with tensors_only(_state_classes()):
                self._restore(universal, _TAG)
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

    def _make_universal(self, source: Path, target: Path) -> None:
        from deepspeed.checkpoint import ds_to_universal

        wanted = argparse.Namespace(
            input_folder=str(source), output_folder=str(target), num_extract_workers=1, num_merge_workers=1,
            keep_temp_folder=False, strict=True, inject_missing_state=self.config.stage in (1, 2),
        )  # fmt: skip
        talk = io.StringIO()
        try:
            shutil.rmtree(target.parent, ignore_errors=True)  # of a run that was killed while it converted
            target.mkdir(parents=True)
            with tensors_only(_state_classes()), redirect_stdout(talk), redirect_stderr(talk):
                ds_to_universal.main(wanted)
        except (
            Exception
        ) as error:  # the converter asserts, indexes and unpickles; whatever failed, nothing was restored
            raise CheckpointError(
                f"checkpoint {source.parent.name}", rule=f"DeepSpeed cannot convert it ({type(error).__name__}: {error})",
                remedy="resume with the number of ranks that wrote it",
            ) from None  # fmt: skip

    def _refuse_programs(self, folder: Path) -> None:
        """Before DeepSpeed sees them: ranks share the files, and all learn of a bad one."""
        files = sorted((folder / _TAG).glob("**/*.pt"))
        error = None
        try:
            refuse_programs(files[self.ranks.rank :: self.ranks.world], _state_classes())
        except CheckpointError as refused:
            error = refused
        self.ranks.agree(error)

    def _restore(self, folder: Path, tag: str) -> None:
        loaded, _ = self._ds.load_checkpoint(str(folder), tag=tag, load_lr_scheduler_states=False)
        self._leave_giving_up_to_us()  # the scaler may be the checkpoint's
        if loaded is None:
            raise CheckpointError(
                f"checkpoint {folder.name}", rule="the engine found no state in it", remedy="use an older one"
            )

    def close(self) -> None:
        self._ds.destroy()
