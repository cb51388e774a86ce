"""Which source each sample comes from: exact shares in integer arithmetic, without state.

The first source takes sample i when floor((i+1)·p) > floor(i·p), p being its share; the samples it
leaves are renumbered from 0 and offered to the next source with its share of the rest. So every prefix
of the stream holds each source's share to within one sample per source, and any sample is located in
O(sources) without looking at those before it.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Shares = tuple[tuple[int, int], ...]
_DENOMINATOR = 10**6  # keeps index · numerator below 2**63 for 9·10**12 samples


def shares(weights: list[float]) -> Shares:
    """For each source but the last, its share of what the earlier ones leave, as (numerator, denominator)."""
    exact = [Fraction(str(weight)) for weight in weights]
    rows = ((exact[i] / sum(exact[i:])).limit_denominator(_DENOMINATOR) for i in range(len(exact) - 1))
    return tuple((share.numerator, share.denominator) for share in rows)


def locate(samples: I64, table: Shares) -> tuple[I64, I64]:
    """(source, index within that source) of each global sample index."""
    source = np.full(samples.shape, len(table), dtype=np.int64)
    index = samples.astype(np.int64, copy=True)
    waiting = np.ones(samples.shape, dtype=bool)
    for number, (p, q) in enumerate(table):
        before = index * p // q
        takes = waiting & ((index + 1) * p // q > before)
        source[takes] = number
        index = np.where(takes, before, np.where(waiting, index - before, index))
        waiting &= ~takes
    return source, index


def taken(samples: int, table: Shares) -> list[int]:
    """How many of the first `samples` samples each source gives."""
    counts = []
    for p, q in table:
        counts.append(samples * p // q)
        samples -= counts[-1]
    return [*counts, samples]
