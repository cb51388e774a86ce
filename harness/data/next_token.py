"""Next-token prediction of a block: which positions predict, and what; the same for every block.

Shapes: B blocks, T tokens per block, M = T − 2 predicting positions per block.

A block is [CLS] x₁ … x_{T−2} [SEP]. Position i predicts token i + 1 wherever that is running text: the first
position predicts x₁, the last but two x_{T−2}. The closing [SEP] is a frame, always in the same place, and is
not predicted; a [SEP] between two documents is, for it says that a text has ended. Nothing is drawn, nothing
is corrupted: every step of every arm costs the same and reads the same tokens as a masked arm would.
"""

from __future__ import annotations

import numpy as np

from harness.data.masking import MaskedBlocks

FRAME = 2  # [CLS], which nothing predicts, and the closing [SEP]


def predicted_count(block_length: int) -> int:
    """Predicted tokens in every block: all of its text."""
    return block_length - FRAME


def next_tokens(ids_BT: np.ndarray) -> MaskedBlocks:
    """The blocks as they are, their predicting positions, and the token that follows each of them."""
    ids_BT = np.asarray(ids_BT).astype(np.int64)
    count, length = ids_BT.shape
    positions_BM = np.tile(np.arange(predicted_count(length), dtype=np.int64), (count, 1))
    return MaskedBlocks(ids_BT, positions_BM, ids_BT[:, 1:-1])
