"""Near-duplicates: documents that share most of their five-word shingles, found in linear time.

MinHash with banding (Broder, 1997; Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", ch. 3):
candidates share a band of `ROWS` minima, and a candidate is accepted when the estimated Jaccard
similarity reaches `THRESHOLD`. Groups are the connected components. Letters and digits count,
case, punctuation and spacing do not. Text is hashed with numpy, about 10 MB a second on one core.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from harness.data.hashing import U64, mix

VERSION = 1
SHINGLE = 5
MINIMA = 48
ROWS = 4
THRESHOLD = 0.5

_BASE = 0x100000001B3  # odd, hence invertible modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[ord("A") : ord("Z") + 1] += 32
_IS_WORD = np.array([chr(b).isalnum() if b < 128 else True for b in range(256)])
_SALTS = mix(mix(np.full(1, 0x51, np.uint64)) ^ mix(np.arange(MINIMA, dtype=np.uint64))) | np.uint64(1)
_CHUNK = 1 << 11  # shingles at a time: the products stay in cache


def word_hashes(text: str) -> U64:
    """One 64-bit polynomial hash per word, in order; words are runs of letters, digits and non-ASCII."""
    raw = _LOWER[np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)]
    if raw.size == 0:
        return np.zeros(0, dtype=np.uint64)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], _IS_WORD[raw], [False])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    powers, inverses = _powers(_BASE, raw.size), _powers(_INVERSE, raw.size)
    # Prefix sums of byte * BASE**position (wrapping) give any word's polynomial by one subtraction.
    prefix = np.concatenate((np.zeros(1, np.uint64), np.cumsum(raw.astype(np.uint64) * powers, dtype=np.uint64)))
    return mix((prefix[ends] - prefix[starts]) * inverses[starts])


_POWERS: dict[int, U64] = {}


def _powers(base: int, count: int) -> U64:
    """base**0 … base**(count-1) modulo 2**64, remembered and grown by doubling."""
    known = _POWERS.get(base, np.ones(1, dtype=np.uint64))
    while known.size < count:
        factor = np.array([pow(base, known.size, 2**64)], dtype=np.uint64)
        known = np.concatenate((known, known * factor))
    _POWERS[base] = known
    return known[:count]


def signature(text: str) -> U64:
    """[MINIMA] minima of salted shingle hashes. Texts shorter than a shingle are one shingle."""
    words = word_hashes(text)
    if words.size == 0:
        return np.zeros(MINIMA, dtype=np.uint64)
    width = min(SHINGLE, words.size)
    shingles = words[: words.size - width + 1].copy()
    for offset in range(1, width):
        shingles = mix(shingles ^ words[offset : words.size - width + 1 + offset])
    minima = np.full(MINIMA, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, shingles.size, _CHUNK):
        # A multiply by an odd salt is a bijection of words: each column orders the shingles anew.
        piece_SM = shingles[start : start + _CHUNK, None] * _SALTS[None, :]
        np.minimum(minima, piece_SM.min(axis=0), out=minima)
    return minima


def signatures(texts: Iterable[str]) -> U64:
    """[documents, MINIMA]."""
    rows = [signature(text) for text in texts]
    return np.stack(rows) if rows else np.zeros((0, MINIMA), dtype=np.uint64)


def groups(signatures_DM: U64) -> npt.NDArray[np.int64]:
    """[documents] the smallest index of each document's group; singletons point at themselves."""
    count = signatures_DM.shape[0]
    parent = np.arange(count, dtype=np.int64)

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    for band in range(MINIMA // ROWS):
        keys = np.zeros(count, dtype=np.uint64)
        for row in range(ROWS):
            keys = mix(keys ^ signatures_DM[:, band * ROWS + row])
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        for position in same:
            # Neighbours in a bucket are compared pairwise along the chain, so one odd member cannot glue two groups.
            left, right = int(order[position]), int(order[position + 1])
            a, b = root(left), root(right)
            if a != b and (signatures_DM[left] == signatures_DM[right]).mean() >= THRESHOLD:
                parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(count)], dtype=np.int64)
