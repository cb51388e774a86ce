"""Which samples of a stream come again, tokens and masks alike: in closed form, without looking at any of them.

A source's samples are numbered in the order they come. Sample j of a source with n blocks is in its epoch j // n; masks are
new in every epoch, or come again after `cycle` of them. So the first cycle · n samples of a source are all there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.data import mixture


@dataclass(frozen=True)
class Repeats:
    """`sizes` are blocks by source; `cycle` is None where masks never come again."""

    sizes: tuple[int, ...]
    shares: mixture.Shares
    cycle: int | None

    @property
    def capacities(self) -> tuple[int | None, ...]:
        """Different samples by source; None where there is no end of them."""
        return tuple(None if self.cycle is None else self.cycle * size for size in self.sizes)

    def distinct(self, samples: int) -> tuple[int, ...]:
        """Different samples among the first so many of the stream, by source."""
        taken = mixture.taken(samples, self.shares)
        return tuple(
            count if capacity is None else min(count, capacity)
            for count, capacity in zip(taken, self.capacities, strict=True)
        )

    def fresh(self, step: int, *, sequences: int) -> int:
        """Samples of this step that no earlier step had."""
        before, after = (sum(self.distinct(n * sequences)) for n in (step, step + 1))
        return after - before
