"""At which value of a ladder does the order of two arms flip, and between which values could it?

Every seed's differences are joined by straight lines along the axis (logarithmic for budgets). At any value the
seeds' interpolated differences go through the paired t of `harness.compare`, whatever the correlation between rungs.

What the interval of a flip covers: the values at which that test cannot exclude zero, around the place where the mean
changes sign. If the true differences lie on straight lines between the rungs and cross zero once, at x, the test at x
keeps zero with probability 95 %, so the set of all such values holds x with that probability (the argument of Fieller
1954); the stretch around the flip is that set's connected part. The set may reach an end of the ladder: the flip is
then "at or below the smallest rung", or above the largest. Stretches without a rung that the test calls decided are
counted with their undecided neighbours: with few seeds the spread is small by chance where the seeds' lines meet.
Several changes of sign inside one undecided stretch are no several flips: the test tells none of them from the next.
They are one flip where the order at the stretch's two ends is another, and none where it is the same.

Who wins where is another question, asked at K rungs at once: only rungs that are significant after Holm's correction
over the rungs are called won. "No crossover in range" needs zero excluded at every value, which needs no correction
(an intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import stats

from harness.compare import ALPHA, LEVEL, SEEDS_CAP, Array, holm, paired_t, seeds_to_detect
from harness.ladder.rungs import axis_of, plain, table_of, without_spread
from harness.ladder.words import Words, more

Kind = Literal["crossover", "no crossover", "cannot tell", "no interval"]


@dataclass(frozen=True)
class Flip:
    """The order of the means changes at x: `below` is ahead under it, `above` over it; one flip per undecided stretch.

    x: where the mean difference changes sign; of several changes in one stretch that one which leaves the least area of
    the mean on its wrong side, the first of equals. low, high: the stretch in which the test cannot exclude zero, None where there is no interval; at_or_below and
    at_or_above: it reaches that end of the ladder, which is then no bound. shown: on both sides the nearest rung won
    after correction was won by the arm that is ahead there.
    """

    x: float
    below: str
    above: str
    low: float | None = None
    high: float | None = None
    at_or_below: bool = False
    at_or_above: bool = False
    shown: bool = False


@dataclass(frozen=True)
class Stretch:
    """Part of the ladder: `ahead` where the interval excludes zero throughout, None where it does not.

    shown: it holds a rung that is won after correction.
    """

    low: float
    high: float
    ahead: str | None
    shown: bool = False


@dataclass(frozen=True)
class Crossover:
    """Two arms along a ladder; positive differences mean that the challenger is better.

    kind: "crossover" where a flip is shown, "no crossover" where one arm wins at every value between the ends,
    "no interval" with one seed or without any spread, else "cannot tell". mean, low, high, p_corrected: at the rungs;
    corrected for the rungs (Holm) and for `family` challengers of one baseline (Bonferroni).
    more_seeds: what would show differences as large as these at the undecided ends, 80 % power; 51 or more minus n
    means more than 50 in all.
    """

    kind: Kind
    challenger: str
    baseline: str
    x: tuple[float, ...]
    log: bool
    n: int
    mean: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    p_corrected: tuple[float, ...] | None
    flips: tuple[Flip, ...]
    stretches: tuple[Stretch, ...]
    winner: str | None = None
    more_seeds: int | None = None
    note: str = ""
    family: int = 1
    words: Words = field(default_factory=Words)

    def as_json(self) -> dict[str, Any]:
        return {**plain(asdict(self)), "level": LEVEL, "sentence": self.sentence()}

    def sentence(self) -> str:
        """One sentence: where the order flips, or who wins everywhere, or what is missing."""
        first, last = self.words.rung(self.x[0]), self.words.rung(self.x[-1])
        if self.kind == "no crossover":
            return f"no crossover from {first} to {last}: {self.winner} beats {self._other(self.winner)} throughout, {self._ends()}"
        if self.kind == "crossover":
            return "; ".join(self._flip(flip) for flip in self.flips if flip.shown) + self.unsure()
        if self.kind == "no interval":
            found = "; ".join(self._flip(flip) for flip in self.flips)
            found = found or f"{self._leader(0)} is ahead from {first} to {last}"
            return f"{found}, by the means alone: {self.note}"
        won = [f"{s.ahead} beats {self._other(s.ahead)} {self._where(s)}" for s in self.stretches if s.shown]
        met = "; ".join(f"the means cross at {self.words.rung(f.x)} ({self._interval(f)})" for f in self.flips)
        where = "elsewhere" if won else f"at any value from {first} to {last}"
        parts = [
            f"{', '.join(won)}; {where} cannot tell yet"
            if won
            else f"{self.challenger} or {self.baseline}: cannot tell yet {where}"
        ]
        if self.more_seeds is not None:
            parts.append(more(self.more_seeds, at_least=self.n + self.more_seeds > SEEDS_CAP))
        return ", ".join(parts) + (f"; {met}" if met else "")

    def _other(self, arm: str | None) -> str:
        return self.baseline if arm == self.challenger else self.challenger

    def _leader(self, rung: int) -> str:
        return self.challenger if self.mean[rung] > 0 else self.baseline

    def _ends(self) -> str:
        assert self.low is not None
        first, last = (self.words.plus_minus(self.mean[i], self.mean[i] - self.low[i]) for i in (0, -1))
        return f"by {first} at the smallest rung and {last} at the largest"

    def _flip(self, flip: Flip) -> str:
        interval = f" ({self._interval(flip)})" if flip.low is not None else ""
        return (
            f"the order flips at {self.words.rung(flip.x)}{interval}: {flip.below} is ahead below, {flip.above} above"
        )

    def _interval(self, flip: Flip) -> str:
        if flip.low is None or flip.high is None:
            return "no interval"
        if flip.at_or_below and flip.at_or_above:
            return "95 % interval wider than the ladder"
        low, high = self.words.rung(flip.low), self.words.rung(flip.high)
        if flip.at_or_below:
            return f"95 % interval from at or below the smallest rung, {low}, to {high}"
        if flip.at_or_above:
            return f"95 % interval from {low} to at or above the largest rung, {high}"
        return f"95 % interval {low} to {high}"

    def _where(self, stretch: Stretch) -> str:
        low, high = self.words.rung(stretch.low), self.words.rung(stretch.high)
        if stretch.low <= self.x[0]:
            return f"up to {high}"
        return f"from {low}" if stretch.high >= self.x[-1] else f"from {low} to {high}"

    def unsure(self) -> str:
        """What shown flips leave open: stretches without a winner that hold none of them; a clause to append, or nothing."""
        covered = {flip.low for flip in self.flips if flip.shown}
        rest = [s for s in self.stretches if s.ahead is None and s.low not in covered]
        places = ", ".join(f"{self.words.rung(s.low)} to {self.words.rung(s.high)}" for s in rest)
        return f"; cannot tell from {places}" if places else ""


def crossover(
    x: Sequence[float],
    differences: Sequence[Sequence[float]] | Array,
    *,
    challenger: str,
    baseline: str,
    log: bool = True,
    words: Words | None = None,
    family: int = 1,
) -> Crossover:
    """Where along increasing x (K,) the order of two arms flips.

    Args:
        differences: (K, n), challenger minus baseline, positive where the challenger is better, column s always the
            same seed.
        log: straight lines over log x; off for axes that begin at zero.
        family: how many challengers are compared with this baseline; intervals and tests of all of them hold jointly
            (Bonferroni), as those of one study do.

    Raises:
        ConfigError, DataError: see `harness.ladder.rungs`.
    """
    axis = axis_of(x, log=log)
    table = table_of(differences, rungs=len(axis))
    n = table.shape[1]
    names = (challenger, baseline)
    mean = table.mean(axis=1)
    back = np.exp if log else np.asarray
    signs = _sign_changes(axis, mean)

    def result(kind: Kind, **fields: Any) -> Crossover:
        empty: dict[str, Any] = {"low": None, "high": None, "p_corrected": None, "stretches": ()}
        common = {"x": tuple(map(float, x)), "log": log, "n": n, "mean": _floats(mean), "words": words or Words()}
        return Crossover(kind=kind, challenger=challenger, baseline=baseline, **{**empty, **common, **fields})

    if without_spread(table):
        flips = tuple(Flip(float(back(at)), *_order(names, after)) for at, after in signs)
        note = "one seed gives no interval" if n == 1 else "a rung whose seeds all agree gives no interval"
        return result("no interval", flips=flips, note=note)
    alpha = ALPHA / family
    _, low, high, p = paired_t(table, level=1 - alpha)
    p_corrected = np.minimum(holm(p) * family, 1.0)
    won = np.where(p_corrected <= ALPHA, np.sign(mean), 0).astype(int)
    parts = _stretches(axis, table, alpha)
    flips = tuple(
        _flip(*_least_wrong(changes, axis, mean), around, axis, won, names, x, back)
        for around, changes in _gathered(signs, parts)
        if len(changes) % 2  # an even number of them leaves the order as it was
    )
    stretches = tuple(
        Stretch(*_ends(part, axis, x, back), _name(names, part[2]), shown=_won_within(part, axis, won))
        for part in parts
    )
    kind: Kind = "crossover" if any(flip.shown for flip in flips) else "cannot tell"
    winner = None
    if len(parts) == 1 and parts[0][2]:
        kind, winner = "no crossover", _name(names, parts[0][2])
    return result(
        kind,
        low=_floats(low),
        high=_floats(high),
        p_corrected=_floats(p_corrected),
        family=family,
        flips=flips,
        stretches=stretches,
        winner=winner,
        more_seeds=_more(table, won, alpha) if kind == "cannot tell" else None,
    )


def band(
    x: Sequence[float], values: Sequence[Sequence[float]] | Array, *, at: Sequence[float] | Array, log: bool = True
) -> tuple[Array, Array, Array]:
    """Mean, low and high at any `at` between the ends, of (K, n) differences or scores; NaN bounds for one seed.

    The interval is that of one value of x at a time (95 %, paired t).
    """
    axis = axis_of(x, log=log)
    table = table_of(values, rungs=len(axis), what="values")
    places = np.log(np.asarray(at, dtype=float)) if log else np.asarray(at, dtype=float)
    lines = np.stack([np.interp(places, axis, table[:, s]) for s in range(table.shape[1])], axis=-1)
    if table.shape[1] == 1:
        return lines[:, 0], np.full(len(places), np.nan), np.full(len(places), np.nan)
    mean, low, high, _ = paired_t(lines)
    return mean, low, high


_Part = tuple[float, float, int]
"""Begin and end on the axis, and the sign of the difference there; 0 where zero is not excluded."""


def _floats(values: Array) -> tuple[float, ...]:
    return tuple(map(float, values))


def _name(names: tuple[str, str], sign: int) -> str | None:
    return names[0] if sign > 0 else names[1] if sign < 0 else None


def _order(names: tuple[str, str], after: int) -> tuple[str, str]:
    """Who is ahead below and above a change to this sign."""
    return (names[1], names[0]) if after > 0 else (names[0], names[1])


def _sign_changes(axis: Array, mean: Array) -> list[tuple[float, int]]:
    """Where the interpolated mean changes sign, and to which; the middle of a stretch at exactly zero."""
    found: list[tuple[float, int]] = []
    signed = [i for i in range(len(mean)) if mean[i] != 0]
    for i, j in pairwise(signed):
        if mean[i] * mean[j] >= 0:
            continue
        if j == i + 1:
            at = axis[i] + (axis[j] - axis[i]) * mean[i] / (mean[i] - mean[j])
        else:
            at = (axis[i + 1] + axis[j - 1]) / 2
        found.append((float(at), int(np.sign(mean[j]))))
    return found


def _gathered(signs: list[tuple[float, int]], parts: list[_Part]) -> list[tuple[_Part, list[tuple[float, int]]]]:
    """Changes of sign by the undecided part that they lie in; one where all seeds' lines meet lies in none, and is its own."""
    found: dict[_Part, list[tuple[float, int]]] = {}
    for at, after in signs:
        around = next((part for part in parts if part[2] == 0 and part[0] <= at <= part[1]), (at, at, 0))
        found.setdefault(around, []).append((at, after))
    return list(found.items())


def _least_wrong(changes: list[tuple[float, int]], axis: Array, mean: Array) -> tuple[float, int]:
    """Of an odd number of changes, all in one stretch: the one with the least area of the mean on its wrong side."""
    first, after = changes[0]

    def wrong(to: float) -> float:
        """What of the area between the first change and this one has the sign that the order has above, less the rest."""
        at = np.array([first, *axis[(axis > first) & (axis < to)], to])
        line = np.interp(at, axis, mean)
        return after * float(np.sum(np.diff(at) * (line[1:] + line[:-1]) / 2))

    return min((change for change in changes if change[1] == after), key=lambda change: wrong(change[0]))


def _stretches(axis: Array, table: Array, alpha: float) -> list[_Part]:
    """The axis from end to end in parts of one sign, 0 where the interval holds zero; every signed part holds a rung."""
    critical = float(stats.t.isf(alpha / 2, table.shape[1] - 1))
    parts: list[_Part] = []
    for i in range(len(axis) - 1):
        cuts = [0.0, *_roots(table[i], table[i + 1], critical), 1.0]
        for a, b in pairwise(cuts):
            u = (a + b) / 2
            line = table[i] + u * (table[i + 1] - table[i])
            mean, error = float(line.mean()), float(line.std(ddof=1)) / np.sqrt(len(line))
            sign = int(np.sign(mean)) if abs(mean) > critical * error else 0
            begin, end = (float(axis[i] + w * (axis[i + 1] - axis[i])) for w in (a, b))
            parts = _joined(parts, (begin, end, sign))
    parts = [p if p[2] == 0 or ((axis >= p[0]) & (axis <= p[1])).any() else (p[0], p[1], 0) for p in parts]
    merged: list[_Part] = []
    for part in parts:
        merged = _joined(merged, part)
    return merged


def _joined(parts: list[_Part], part: _Part) -> list[_Part]:
    if parts and parts[-1][2] == part[2]:
        return [*parts[:-1], (parts[-1][0], part[1], part[2])]
    return [*parts, part]


def _roots(a: Array, b: Array, critical: float) -> list[float]:
    """Where between two rungs the interval touches zero: roots in (0, 1) of mean² = critical² · variance / n."""
    step = b - a
    scale = critical**2 / len(a)
    m0, m1 = float(a.mean()), float(step.mean())
    (v0, w), (_, v1) = np.cov(a, step)
    found = np.roots([m1**2 - scale * v1, 2 * (m0 * m1 - scale * w), m0**2 - scale * v0])
    return sorted(float(r.real) for r in found if abs(r.imag) < 1e-12 and 0 < r.real < 1)


def _ends(part: _Part, axis: Array, x: Sequence[float], back: Any) -> tuple[float, float]:
    """A part's ends as rungs are given, exact at the ends of the ladder."""
    low = float(x[0]) if part[0] <= axis[0] else float(back(part[0]))
    return low, float(x[-1]) if part[1] >= axis[-1] else float(back(part[1]))


def _won_within(part: _Part, axis: Array, won: Any) -> bool:
    return bool((won[(axis >= part[0]) & (axis <= part[1])] == part[2]).any()) if part[2] else False


def _flip(
    at: float,
    after: int,
    around: _Part,
    axis: Array,
    won: Any,
    names: tuple[str, str],
    x: Sequence[float],
    back: Any,
) -> Flip:
    below = [w for w, place in zip(won, axis, strict=True) if place < around[0] and w]
    above = [w for w, place in zip(won, axis, strict=True) if place > around[1] and w]
    low, high = _ends(around, axis, x, back)
    return Flip(
        float(back(at)),
        *_order(names, after),
        low=low,
        high=high,
        at_or_below=bool(around[0] <= axis[0]),
        at_or_above=bool(around[1] >= axis[-1]),
        shown=bool(below and above and below[-1] == -after and above[0] == after),
    )


def _more(table: Array, won: Any, alpha: float) -> int:
    """Seeds beyond these that would show differences as large as the observed at the ends, or where undecided."""
    rungs, n = table.shape
    asked = [i for i in (0, rungs - 1) if not won[i]] or [i for i in range(rungs) if not won[i]]
    if not asked:
        asked = list(range(rungs))
    effects = table.mean(axis=1) / table.std(axis=1, ddof=1)
    return max(1, max(seeds_to_detect(float(effects[i]), alpha=alpha / rungs) for i in asked) - n)
