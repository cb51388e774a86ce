"""Over how many students must a teacher's cost be shared before distilling pays?

A study over shares of the teacher's cost has one rung per share: 0 where it is sunk, 1 where one student pays all of
it, 1/k where k students do. Where the order of the distilled arm and the baseline flips along the shares, at s, the
teacher pays from 1/s students on. Its interval is the flip's (`harness.ladder.crossover`, on a linear axis), turned over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.compare import LEVEL, Array
from harness.errors import ConfigError
from harness.ladder.crossover import Crossover, crossover
from harness.ladder.rungs import plain
from harness.ladder.words import Words

# 1/k in floating point may lie a hair above a whole number.
_WHOLE = 1e-9

Kind = Literal["break-even", "always pays", "never pays", "cannot tell", "no interval"]


@dataclass(frozen=True)
class BreakEven:
    """From how many students on the distilled arm is the better buy.

    students: the break-even number, a fraction; low, high: its 95 % interval. Where the kind is "cannot tell" the
    interval may be open: high is infinite (null in JSON) where a free teacher cannot be told from break-even, and
    either end may be the ladder's (`along.flips` says so).
    """

    kind: Kind
    arm: str
    baseline: str
    students: float | None
    low: float | None
    high: float | None
    along: Crossover

    def as_json(self) -> dict[str, Any]:
        return {**plain({**asdict(self), "along": self.along.as_json()}), "level": LEVEL, "sentence": self.sentence()}

    def sentence(self) -> str:
        """One sentence: from how many students the teacher pays, or that it always or never does."""
        least, most = _students(self.along.x[-1]), _students(self.along.x[0])
        if self.kind == "always pays":
            reach = "at any number of students" if least <= 1 else f"from {least:.3g} students on"
            return f"{self.arm} pays for its teacher {reach}: {self.along.sentence()}"
        if self.kind == "never pays":
            reach = "even with a free teacher" if math.isinf(most) else f"with up to {most:.3g} students"
            return f"{self.arm} does not pay {reach}: {self.along.sentence()}"
        if self.along.kind == "cannot tell" and not any(stretch.shown for stretch in self.along.stretches):
            return f"break-even of {self.along.sentence()}"
        if self.along.kind == "no interval" and not self.along.flips:
            return f"break-even unknown: {self.along.sentence()}"
        if self.kind == "cannot tell" or self.students is None:
            return f"no break-even{' yet' if self.along.kind == 'cannot tell' else ''}: {self.along.sentence()}"
        first = math.ceil(self.students - _WHOLE)
        whole = f"so {first} or more" if first > 1 else "so the first one already pays"
        if self.low is None or self.high is None:
            return f"{self.arm} breaks even at {self.students:.3g} students, {whole}; {self.along.note}"
        interval = f"95 % interval {self.low:.3g} to {self.high:.3g}"
        return f"{self.arm} breaks even at {self.students:.3g} students ({interval}), {whole}{self.along.unsure()}"


def breakeven(
    shares: Sequence[float],
    differences: Sequence[Sequence[float]] | Array,
    *,
    arm: str,
    baseline: str,
    words: Words | None = None,
    family: int = 1,
) -> BreakEven:
    """The break-even number of students from differences (K, n) at increasing shares of the teacher's cost in [0, 1].

    differences: the distilled arm minus the baseline, positive where the distilled arm is better.

    Raises:
        ConfigError: a share outside [0, 1]; otherwise see `harness.ladder.rungs`.
    """
    outside = [share for share in shares if not 0 <= share <= 1]
    if outside:
        raise ConfigError(
            f"a share of {outside[0]:g}", rule="a student pays between none (0) and all (1) of its teacher",
            remedy="k students pay 1/k each",
        )  # fmt: skip
    words = words or Words()
    named = Words(words.score_unit, words.score_scale, axis_unit="of the teacher's cost")
    along = crossover(shares, differences, challenger=arm, baseline=baseline, log=False, words=named, family=family)

    # Distilling gets worse as its teacher gets dearer: any other order of flips is noise, and no break-even. Beside a flip
    # that is shown one that is not takes nothing away; what it leaves open is said.
    flips = [flip for flip in along.flips if flip.shown or along.kind != "crossover"]
    flip = flips[0] if len(flips) == 1 and flips[0].above == baseline else None
    kind: Kind
    if along.kind == "no crossover":
        kind = "always pays" if along.winner == arm else "never pays"
    elif along.kind == "no interval" and not along.flips:
        kind = "no interval"
    elif along.kind == "cannot tell" or flip is None:
        kind = "cannot tell"
    else:
        kind = "break-even" if along.kind == "crossover" else "no interval"
    if flip is None:
        return BreakEven(kind, arm, baseline, None, None, None, along)
    low, high = (None if share is None else _students(share) for share in (flip.high, flip.low))
    return BreakEven(kind, arm, baseline, _students(flip.x), low, high, along)


def _students(share: float) -> float:
    """How many students share a cost of which each pays this share."""
    return math.inf if share == 0 else 1 / share
