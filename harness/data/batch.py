"""What a rank trains or evaluates on at once, as torch tensors.

Shapes: B sequences, T tokens, M masked positions per sequence, N = B·M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from harness.data.masking import MaskedBlocks


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one rank.

    A sum over this batch divided by the matching count (the global step's mean per micro-batch) and
    averaged over all micro-batches of all ranks is the global batch's mean, whatever the accumulation.
    """

    input_ids_BT: torch.Tensor
    positions_N: torch.Tensor  # int64, into the flattened B·T
    labels_N: torch.Tensor
    masked_count: float
    token_count: float
    sequence_count: float
    attention_mask_BT: torch.Tensor | None = None  # None: packed, nothing is padding
    samples_B: npt.NDArray[np.int64] | None = None  # where they lie in the stream; None: they are not from one

    @classmethod
    def of(cls, masked: MaskedBlocks, *, samples_B: npt.NDArray[np.int64] | None = None) -> Batch:
        """A packed batch whose counts are its own."""
        count, length = masked.input_ids_BT.shape
        positions_BM = masked.positions_BM + np.arange(count, dtype=np.int64)[:, None] * length
        return cls(
            input_ids_BT=torch.from_numpy(np.ascontiguousarray(masked.input_ids_BT)),
            positions_N=torch.from_numpy(positions_BM.reshape(-1)),
            labels_N=torch.from_numpy(np.ascontiguousarray(masked.labels_BM).reshape(-1)),
            masked_count=float(positions_BM.size),
            token_count=float(count * length),
            sequence_count=float(count),
            samples_B=samples_B,
        )

    def to(self, device: torch.device | str) -> Batch:
        """On `device`; copies from pinned memory do not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        mask = self.attention_mask_BT
        return replace(
            self,
            input_ids_BT=change(self.input_ids_BT),
            positions_N=change(self.positions_N),
            labels_N=change(self.labels_N),
            attention_mask_BT=None if mask is None else change(mask),
        )
