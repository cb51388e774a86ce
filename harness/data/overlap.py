"""How much of a document stands word for word in the text that students learn from, measured on tokens.

A document's windows of `WINDOW` consecutive tokens are looked up among all windows of the training blocks (Brown et al.
2020, appendix C, did so with 13 words). No training document needs to be kept: the packed blocks are their running text.
One pass, about a hundred million tokens in ten seconds on one core.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from harness.data.hashing import U64, mix

WINDOW = 13
_BASE = np.uint64(0x9E3779B97F4A7C15)
# A table of 2**24 bits-as-bytes turns away most windows that match nothing before they are searched for.
_TABLE_BITS = 24
_CHUNK = 1 << 20

Tokens = npt.NDArray[np.integer]


def overlaps(documents: Sequence[Sequence[int]], training: Iterable[Tokens]) -> npt.NDArray[np.float64]:
    """[documents] the share of each document's windows that occur in the training text; 0 for one shorter than a window.

    Args:
        training: running text in pieces, [CLS] left out; a window never reaches from one piece to the next.
    """
    windows = [_windows(np.asarray(ids, dtype=np.int64)) for ids in documents]
    wanted = np.unique(np.concatenate([*windows, np.zeros(0, np.uint64)]))
    if not wanted.size:
        return np.zeros(len(documents))
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    table[_slot(wanted)] = True
    found = np.zeros(wanted.size, dtype=bool)
    for text in training:
        for piece in _pieces(text):
            hashes = _windows(piece)
            hashes = hashes[table[_slot(hashes)]]
            place = np.minimum(np.searchsorted(wanted, hashes), wanted.size - 1)
            found[place[wanted[place] == hashes]] = True
    return np.array([found[np.searchsorted(wanted, w)].mean() if w.size else 0.0 for w in windows])


def running_text(blocks_nT: Tokens) -> Iterator[Tokens]:
    """The text of packed blocks without their [CLS] and final [SEP], in pieces that share a window's length."""
    rows = max(1, _CHUNK // max(1, blocks_nT.shape[1] - 2))
    tail = np.zeros(0, dtype=np.int64)
    for start in range(0, len(blocks_nT), rows):
        text = np.asarray(blocks_nT[start : start + rows, 1:-1], dtype=np.int64).reshape(-1)
        yield np.concatenate((tail, text))
        tail = text[-(WINDOW - 1) :]


def _pieces(text: Tokens) -> Iterator[Tokens]:
    for start in range(0, max(1, text.size - WINDOW + 1), _CHUNK):
        yield text[start : start + _CHUNK + WINDOW - 1]


def _windows(ids: Tokens) -> U64:
    """One hash per window of consecutive tokens: a polynomial modulo 2**64, mixed."""
    count = ids.size - WINDOW + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    tokens = ids.astype(np.uint64)
    state = np.zeros(count, dtype=np.uint64)
    for offset in range(WINDOW):
        state *= _BASE
        state += tokens[offset : offset + count] + np.uint64(1)
    return mix(state)


def _slot(hashes: U64) -> npt.NDArray[np.int64]:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
