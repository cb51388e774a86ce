"""BERT's corruption as a pure function of (seed, epoch, sample): no generator, no state.

Shapes: B blocks, T tokens per block, M masked positions per block.

Every block gets exactly M masked positions, so every step of a run costs the same. Which ones, and
what becomes of them, is hashed from counters, one block at a time: neither the batch a block is in,
nor the number of ranks, nor the numpy version moves a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.data.hashing import below, combine, mix
from harness.study import MaskingSpec

_CHOOSE, _ACT, _DRAW = 1, 2, 3  # independent streams of bits for one position
_SPECIAL = np.uint64(1 << 63)


class MaskedBlocks(NamedTuple):
    """`positions` ascend within each block; `labels` are the original ids there."""

    input_ids_BT: npt.NDArray[np.int64]
    positions_BM: npt.NDArray[np.int64]
    labels_BM: npt.NDArray[np.int64]


def mask_blocks(
    ids_BT: np.ndarray,
    *,
    sample_B: npt.NDArray[np.integer],
    epoch_B: npt.NDArray[np.integer],
    seed: int,
    spec: MaskingSpec,
    special_ids: tuple[int, ...],
    mask_id: int,
    vocab_size: int,
) -> MaskedBlocks:
    """Choose M = spec.count(T) positions per block among ordinary tokens and corrupt them 80/10/10.

    A random replacement is uniform over the ordinary ids (bias below 2**-32). In a block with fewer
    than M ordinary tokens all of them are chosen and the rest are special tokens, left as they are and
    predicted as themselves: M stays constant. (Packed text has such blocks only when it is degenerate.)
    """
    ids_BT = np.asarray(ids_BT).astype(np.int64)
    count, length = ids_BT.shape
    masked = spec.count(length)
    key_B1 = combine(seed, np.asarray(epoch_B), np.asarray(sample_B)).reshape(count, 1)
    position_T = np.arange(length, dtype=np.uint64)

    special = np.zeros(vocab_size, dtype=bool)
    special[list(special_ids)] = True
    # Rank positions by hash with specials last; the position in the low bits makes all ranks distinct,
    # so the chosen set does not depend on how a numpy version breaks ties.
    rank_BT = (combine(key_B1, np.uint64(_CHOOSE) * np.ones(1, np.uint64), position_T) >> np.uint64(1)) & ~np.uint64(
        0xFFFF
    )
    rank_BT |= position_T
    rank_BT |= np.where(special[ids_BT], _SPECIAL, np.uint64(0))
    positions_BM = np.sort(np.argpartition(rank_BT, masked - 1, axis=1)[:, :masked], axis=1).astype(np.int64)
    labels_BM = np.take_along_axis(ids_BT, positions_BM, axis=1)

    at_BM = positions_BM.astype(np.uint64)
    act_BM = mix(key_B1 ^ mix(at_BM + np.uint64(_ACT << 32))) >> np.uint64(32)
    draw_BM = mix(key_B1 ^ mix(at_BM + np.uint64(_DRAW << 32)))
    ordinary = np.flatnonzero(~special)
    to_mask = round(spec.replace * 2**32)
    to_random = round((spec.replace + spec.random) * 2**32)
    written_BM = np.where(
        act_BM < to_mask, mask_id, np.where(act_BM < to_random, ordinary[below(draw_BM, ordinary.size)], labels_BM)
    )
    written_BM = np.where(special[labels_BM], labels_BM, written_BM)

    input_ids_BT = ids_BT.copy()
    np.put_along_axis(input_ids_BT, positions_BM, written_BM, axis=1)
    return MaskedBlocks(input_ids_BT, positions_BM, labels_BM)
