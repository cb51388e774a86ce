"""What a study leaves on disk: checkpoints while a trial runs, curve snapshots, exported students."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.ds_config import DsConfig
    from harness.plan.memory import Held

# `harness.checkpoint.save` keeps this many complete ones and writes the next beside them.
KEPT = 2
# Tokenizer, config and cards of an exported student.
FOLDER_BYTES = 1.0e6


@dataclass(frozen=True)
class Disk:
    """Bytes of one checkpoint, of one trial's curve snapshots, of one exported student, and of a trial at its peak."""

    checkpoint_bytes: float
    snapshots_bytes: float
    export_bytes: float

    def peak_bytes(self, checkpoints: int) -> float:
        """While a trial trains; its checkpoints are removed when it has finished."""
        at_once = min(checkpoints, KEPT + 1)
        return at_once * self.checkpoint_bytes + self.snapshots_bytes

    @property
    def left_bytes(self) -> float:
        """What stays of a trial: snapshots are read, and removed, when the study is evaluated."""
        return self.export_bytes


def disk(held: Held, ds_config: DsConfig, *, student: int, snapshots: int) -> Disk:
    """From numbers of weights: the engine's own plus fp32 moments, and an fp32 copy where the engine keeps one.

    Every rank writes its share, so the sum over ranks does not depend on their number.
    """
    half = ds_config.precision in ("bf16", "fp16")
    copied = half or ds_config.stage > 0
    checkpoint = held.total * held.weight_width + held.trained * (8 + 4 * copied)
    return Disk(float(checkpoint), 4.0 * student * snapshots, 4.0 * student + FOLDER_BYTES)
