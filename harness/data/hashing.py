"""Stateless randomness: the same bits for the same counter, on every machine and numpy version.

Everything random in the data (splits, order, masks) is a hash of what it is for, never a draw from a
generator with state. That is what lets a run resume, change its world size or gain an arm without
moving a single token. The mixer is splitmix64 (Steele, Lea & Flood, 2014), whose outputs are
equidistributed over its 2**64 counters.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SEED = np.uint64(0xD1B54A32D192ED03)
_WORD = 2**64 - 1


def mix(values: U64) -> U64:
    """splitmix64's finaliser: a bijection of 64-bit words that passes for noise. Shape is kept."""
    # Array arithmetic wraps silently; numpy scalars would warn, hence the atleast_1d.
    x = np.atleast_1d(values).astype(np.uint64, copy=True)
    x += np.uint64(_GOLDEN)
    x ^= x >> np.uint64(30)
    x *= _M1
    x ^= x >> np.uint64(27)
    x *= _M2
    x ^= x >> np.uint64(31)
    return x.reshape(np.shape(values))


def combine(seed: int | U64, *parts: int | npt.NDArray[np.integer]) -> U64:
    """Hash a tuple of counters; arrays broadcast against one another. (a, b) and (b, a) differ."""
    # The seed is mixed unlike the parts: seed 1 of epoch 2 must not be seed 2 of epoch 1.
    state = mix(_as_u64(seed) ^ _SEED)
    for part in parts:
        state = mix(state ^ mix(_as_u64(part)))
    return state


def _as_u64(value: int | npt.NDArray[np.integer] | U64) -> U64:
    if isinstance(value, int):
        return np.array([value & _WORD], dtype=np.uint64)
    return np.asarray(value).astype(np.uint64)


def below(words: U64, bound: int) -> npt.NDArray[np.int64]:
    """Map 64-bit words to [0, bound) for bound <= 2**32; bias is under 2**-32 per value."""
    return ((words >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


def text_word(text: str) -> int:
    """A 64-bit hash of a string (sha256's first eight bytes)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def permutation(size: int, *, key: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The permutation of range(size) named by `key`: indices sorted by their hash."""
    # A stable sort makes even a collision of 64-bit hashes deterministic.
    return np.argsort(combine(*key, np.arange(size, dtype=np.uint64)), kind="stable").astype(np.int64)
