"""A DeepSpeed JSON as this harness reads it: engine facts only, merged with what the study owns.

Pure Python, so that `plan` can refuse a bad ds_config without importing DeepSpeed.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ConfigError

# ds_config key -> the study key that owns the same fact
OWNED_BY_STUDY = {
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "train_batch_size": "batch.sequences",
    "gradient_accumulation_steps": "batch.sequences (accumulation is derived)",
    "gradient_clipping": "optimizer.clip",
}
ENGINE_KEYS = frozenset(
    "zero_optimization bf16 fp16 torch_autocast train_micro_batch_size_per_gpu steps_per_print wall_clock_breakdown"
    " dump_state prescale_gradients gradient_predivide_factor communication_data_type comms_logger data_types"
    " sparse_gradients tensorboard csv_monitor wandb flops_profiler memory_breakdown aio compile disable_allgather"
    " zero_allow_untested_optimizer zero_force_ds_cpu_optimizer nebula checkpoint activation_checkpointing teacher".split()
)
# As DeepSpeed spells it.
BFLOAT16 = ("torch.bfloat16", "bf16", "bfloat16", "bfloat")
# "auto" never exceeds this many sequences a rank: enough to fill a GPU at T = 128, small enough to fit one.
AUTO_MICRO_BATCH = 256


@dataclass(frozen=True)
class DsConfig:
    """A validated engine configuration; `path` is None for the built-in default."""

    tree: dict[str, Any]
    path: str | None = None

    @property
    def stage(self) -> int:
        return int(self.tree.get("zero_optimization", {}).get("stage", 0))

    @property
    def precision(self) -> str:
        """fp32, bf16, fp16, or bf16-autocast (fp32 weights, bf16 products)."""
        names = {"bf16": "bf16", "fp16": "fp16", "torch_autocast": "bf16-autocast"}
        return next((name for key, name in names.items() if self.tree.get(key, {}).get("enabled")), "fp32")

    @property
    def activation_checkpointing(self) -> bool:
        """Whether the student's layers are run again in the backward pass instead of keeping their activations."""
        return bool(self.tree.get("activation_checkpointing", {}).get("enabled", False))

    @property
    def teacher_divided(self) -> bool | None:
        """Whether ranks share the teacher's weights out; None where its size decides. Only ZeRO-3 ever does."""
        divided = self.tree.get("teacher", {}).get("divided", "auto")
        return False if self.stage < 3 else None if divided == "auto" else divided

    @property
    def offload(self) -> str:
        """What lies in host memory or on NVMe: "none", "optimizer", "parameters" or "optimizer and parameters"."""
        zero = self.tree.get("zero_optimization", {})
        away = [
            what for what, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param"))
            if (zero.get(key) or {}).get("device", "none") != "none"
        ]  # fmt: skip
        return " and ".join(away) or "none"

    def micro_batch(self, *, sequences: int, world: int) -> int:
        """Sequences per rank and forward; ConfigError when the study's global batch cannot be made of it."""
        where = self.path or "the default ds_config"
        if sequences % world:
            raise ConfigError(
                f"batch.sequences {sequences} on {world} ranks", rule="every rank gets the same number of sequences",
                remedy=f"choose a multiple of {world}, or another number of ranks",
            )  # fmt: skip
        per_rank = sequences // world
        wanted = self.tree.get("train_micro_batch_size_per_gpu", "auto")
        if wanted == "auto":
            return max(n for n in range(1, min(per_rank, AUTO_MICRO_BATCH) + 1) if per_rank % n == 0)
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise ConfigError(
                f"train_micro_batch_size_per_gpu = {wanted!r}",
                rule='it is a positive integer or "auto"',
                remedy=f"edit {where}",
            )
        if per_rank % wanted:
            accumulation = max(1, round(per_rank / wanted))
            raise ConfigError(
                f"batch.sequences {sequences} is not micro {wanted} × accumulation {accumulation} × world {world} "
                f"(= {wanted * accumulation * world})",
                rule="the global batch is a whole number of micro-batches on every rank",
                remedy=f"edit train_micro_batch_size_per_gpu in {where} or batch.sequences in the study",
            )
        return wanted

    def resolved(self, *, sequences: int, world: int, clip: float | None) -> dict[str, Any]:
        """What DeepSpeed is given: this file plus the study's facts in DeepSpeed's own words."""
        tree = copy.deepcopy(self.tree)
        for ours in ("activation_checkpointing", "teacher"):  # done by the harness; DeepSpeed knows nothing of them
            tree.pop(ours, None)
        micro = self.micro_batch(sequences=sequences, world=world)
        tree["train_micro_batch_size_per_gpu"] = micro
        tree["gradient_accumulation_steps"] = sequences // (micro * world)
        tree["gradient_clipping"] = clip or 0.0
        tree.setdefault("steps_per_print", 10**9)
        tree.setdefault("zero_allow_untested_optimizer", True)
        tree.setdefault("zero_force_ds_cpu_optimizer", False)
        if self.precision == "bf16":
            tree["bf16"].setdefault("check_grad_overflow", True)
        return tree


def default(*, bf16: bool) -> DsConfig:
    """No ds_config given: ZeRO-0, the cheapest engine for small students, in bf16 where hardware has it."""
    tree: dict[str, Any] = {"zero_optimization": {"stage": 0}}
    if bf16:
        tree["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return DsConfig(tree)


def read(path: str) -> DsConfig:
    """Read and check a ds_config file.

    Raises:
        ConfigError: missing or malformed file, an unknown key, a key the study owns, or an impossible value.
    """
    file = Path(path)
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"ds_config {path}", rule="no such file", remedy="see ds_configs/ for examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ds_config {path}", rule=f"unreadable: {error}", remedy="give a JSON file") from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"ds_config {path} line {error.lineno} column {error.colno}",
            rule=f"malformed JSON: {error.msg}",
            remedy="correct the file",
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"ds_config {path}", rule="a ds_config is a JSON object", remedy="see ds_configs/ for examples"
        )
    for key in tree:
        if key in OWNED_BY_STUDY:
            raise ConfigError(
                f"{key} in {path}",
                rule=f"the study owns it as {OWNED_BY_STUDY[key]}",
                remedy=f"remove it from {path} and set it in the study",
            )
        if key not in ENGINE_KEYS:
            raise ConfigError(
                f"{key} in {path}",
                rule="unknown key",
                remedy="DeepSpeed would ignore it silently; remove or correct it",
            )
    for key in ("zero_optimization", "bf16", "fp16", "torch_autocast", "activation_checkpointing"):
        if not isinstance(tree.get(key, {}), dict):
            raise ConfigError(f"{key} in {path}", rule="it is an object", remedy="see ds_configs/ for examples")
    recompute = tree.get("activation_checkpointing", {})
    if set(recompute) - {"enabled"} or not isinstance(recompute.get("enabled", False), bool):
        raise ConfigError(
            f"activation_checkpointing = {recompute} in {path}",
            rule="whole layers are recomputed or none; DeepSpeed's own options have no effect here",
            remedy='write {"enabled": true}, or leave it out',
        )
    teacher = tree.get("teacher", {})
    stage = tree.get("zero_optimization", {}).get("stage", 0)
    divided = teacher.get("divided", "auto") if isinstance(teacher, dict) and not set(teacher) - {"divided"} else None
    if divided not in ("auto", True, False) or (divided is True and stage != 3):
        raise ConfigError(
            f"teacher = {teacher} in {path}",
            rule='{"divided": true, false or "auto"} says whether ranks share its weights out; only ZeRO-3 does',
            remedy="correct it, or leave it out",
        )
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(
            f"zero_optimization.stage = {stage!r} in {path}", rule="ZeRO has stages 0, 1, 2 and 3", remedy="choose one"
        )
    enabled = [key for key in ("bf16", "fp16", "torch_autocast") if tree.get(key, {}).get("enabled")]
    if len(enabled) > 1:
        raise ConfigError(
            f"{' and '.join(enabled)} in {path}", rule="one precision at a time", remedy="enable only one"
        )
    _refuse_unsound_scaling(tree, stage, path)
    micro = tree.get("train_micro_batch_size_per_gpu", "auto")
    config = DsConfig(tree, path=path)
    config.micro_batch(sequences=micro if isinstance(micro, int) and micro > 0 else 1, world=1)  # checks its type
    return config


def _refuse_unsound_scaling(tree: dict[str, Any], stage: int, path: str) -> None:
    """Of float16, DeepSpeed (0.19.8) scales losses soundly only under ZeRO 1 to 3 and without autocast.

    With float16 autocast its scalers skip updates that it reports as applied, and no checkpoint holds them. Without
    ZeRO the fp16 optimizer divides gradients by a scale that the engine never multiplied the loss with.
    """
    cast = tree.get("torch_autocast", {})
    if cast.get("enabled") and cast.get("dtype") not in BFLOAT16:
        raise ConfigError(
            f"torch_autocast.dtype = {cast.get('dtype')!r} in {path}",
            rule='autocast is to "bfloat16": the skipped updates of float16 autocast cannot be seen, nor its scale resumed',
            remedy="use fp16 (see ds_configs/zero1_fp16.json), or bf16 autocast",
        )
    if tree.get("fp16", {}).get("enabled") and stage == 0:
        raise ConfigError(
            f"fp16 with zero_optimization.stage = 0 in {path}",
            rule="without ZeRO, DeepSpeed divides fp16 gradients by a loss scale that it has not multiplied with",
            remedy="use stage 1 (see ds_configs/zero1_fp16.json), on one device too, or bf16",
        )
