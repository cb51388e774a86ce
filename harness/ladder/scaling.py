"""One arm's curve over budgets, what it says of a budget that was not run, and whether that held for the top rung.

score(b) = E + A·b^(−α), 0 ≤ α ≤ 2, fitted by least squares to the means at the rungs; α = 0 is the straight line in
log b, and the curve taken through two rungs, which fit every α alike. Noise is taken from the seeds alone, never from the misfit of the curve, by the analysis of
variance of rungs × seeds: `sd_own`, independent at every rung and pooled over them on (K − 1)(n − 1) degrees of
freedom, and `sd_shared`, which a seed carries along the whole ladder.

The interval of a curve's value is a profile: every value for which some exponent fits no worse than t² times the
variance of a mean above the best fit (Bates and Watts 1988, chapter 6). It is asymmetric where the curve is, and it
widens with the distance. What a seed carries along moves the whole curve and is added in squares, side by side
(Zou and Donner 2008). No bootstrap over seeds: see docs/statistics.md.

The interval takes the curve's form for granted. Two things test the form: `lack_of_fit_p`, the rungs' misfit against
the seeds' noise, and `validated`, which predicts the top rung from those below. Three rungs are met exactly by some α
unless they bend beyond its bounds, and then they refute the form as more rungs do.

Shapes: K rungs, n seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from harness.compare import ALPHA, LEVEL, Array
from harness.errors import ConfigError
from harness.ladder.exponents import GRID, Exponents, curves, level_weights
from harness.ladder.rungs import axis_of, negligible, plain, table_of
from harness.ladder.words import Words

FORM = "power law"


@dataclass(frozen=True)
class Prediction:
    """An arm's mean score over all seeds at budget x; low and high are None with one seed."""

    arm: str
    x: float
    value: float
    low: float | None
    high: float | None
    extrapolated: bool
    beyond: float = 1.0
    """How many times x lies above the largest rung, or below the smallest; 1 inside."""
    words: Words = field(default_factory=Words)

    def as_json(self) -> dict[str, Any]:
        return {**plain(asdict(self)), "level": LEVEL, "sentence": self.sentence()}

    def sentence(self) -> str:
        """The score with its interval, and that it is extrapolated where it is."""
        far = f", extrapolated {self.beyond:.3g} times beyond the ladder" if self.extrapolated else ""
        return f"{self.arm} at {self.words.rung(self.x)}: {self.words.estimate(self.value, self.low, self.high)}{far}"


@dataclass(frozen=True)
class Validation:
    """The largest rung predicted from those below it, against what was measured there with the same seeds.

    The interval is that of the measured mean, its own noise included; inside is None without an interval.
    """

    arm: str
    rungs: int
    x: float
    predicted: float
    low: float | None
    high: float | None
    measured: float
    inside: bool | None
    words: Words = field(default_factory=Words)
    form: str = FORM

    def as_json(self) -> dict[str, Any]:
        return {**plain(asdict(self)), "level": LEVEL, "sentence": self.sentence()}

    def sentence(self) -> str:
        """Predicted, measured, and whether the prediction held."""
        spread = None if self.low is None or self.high is None else (self.high - self.low) / 2
        form = self.form if self.rungs > 2 else f"{self.form} of any exponent from {GRID[0]:g} to {GRID[-1]:g}"
        held = {True: "inside", False: "outside", None: "one seed gives no interval"}[self.inside]
        return (
            f"{self.arm}, {self.rungs} smaller rungs ({form}), predicts "
            f"{self.words.estimate(self.predicted, self.low, self.high)} at {self.words.rung(self.x)}; "
            f"measured {self.words.score(self.measured, spread=spread)}: {held}"
        )


@dataclass(frozen=True)
class Curve:
    """One arm's fitted curve over the rungs x, from mean scores.

    level: what it falls or rises to, None at exponent 0, the straight line in log budget. exponent_low, exponent_high: 95 % profile interval,
    cut at the bounds 0 and 2. sd_own, sd_shared: see above, None with one seed. lack_of_fit_p: chance of a misfit
    this large if the form were true, None where no rung or seed is left to judge by.
    """

    arm: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    n: int
    exponent: float
    exponent_low: float | None
    exponent_high: float | None
    level: float | None
    sd_own: float | None
    sd_shared: float | None
    lack_of_fit_p: float | None
    words: Words = field(default_factory=Words)
    form: str = FORM

    @property
    def misfits(self) -> bool:
        """True where the form is refuted at the 5 % level by the rungs it was fitted to."""
        return self.lack_of_fit_p is not None and self.lack_of_fit_p <= ALPHA

    def as_json(self) -> dict[str, Any]:
        return {**plain(asdict(self)), "level_of_confidence": LEVEL, "sentence": self.sentence()}

    def sentence(self) -> str:
        """The form with its exponent and level, and a warning where the rungs contradict it."""
        if self.exponent == 0 or self.level is None:
            shape = f"{self.arm}: a straight line in the logarithm of the budget"
            shape += ", one of many curves through two rungs" if len(self.x) == 2 else ""
        else:
            low, high = self.exponent_low, self.exponent_high
            interval = f" (95 % interval {low:.2g} to {high:.2g})" if low is not None and high is not None else ""
            shape = f"{self.arm}: exponent {self.exponent:.2g}{interval} towards {self.words.score(self.level)}"
        return shape + ("; the rungs contradict this form, do not extrapolate it" if self.misfits else "")

    def value(self, x: float) -> float:
        """The curve at budget x."""
        return self.extrapolate(x).value

    def extrapolate(self, x: float) -> Prediction:
        """The arm's mean score at budget x with its interval, marked where x lies outside the rungs.

        Raises:
            ConfigError: x is not positive and finite.
        """
        if not (math.isfinite(x) and x > 0):
            raise ConfigError(f"a budget of {x:g}", rule="a curve over budgets is read at positive, finite ones")
        value, below, above = self._profile(x)
        beyond = max(1.0, x / self.x[-1], self.x[0] / x)
        low = high = None
        if self.sd_shared is not None:
            carried = float(stats.t.isf(ALPHA / 2, self.n - 1)) * self.sd_shared / math.sqrt(self.n)
            low, high = value - math.hypot(below, carried), value + math.hypot(above, carried)
        return Prediction(self.arm, float(x), value, low, high, beyond > 1, beyond, self.words)

    def _profile(self, x: float, *, measured: bool = False) -> tuple[float, float, float]:
        """The value at x, and how far its profile reaches below and above; with a measured mean's own noise or not."""
        means = np.array(self.mean)
        family = curves(np.log(self.x), math.log(x))
        values, misfits = family.values(means), family.misfits(means)
        best = _best(misfits, rungs=len(means))
        value = float(values[best])
        if self.sd_own is None:
            return value, 0.0, 0.0
        unit = self.sd_own**2 / self.n * _t_own(len(self.x), self.n) ** 2
        room = unit - (misfits - misfits[best])
        kept = room >= 0
        half = np.sqrt(family.leverage[kept] * room[kept])
        below, above = value - float((values[kept] - half).min()), float((values[kept] + half).max()) - value
        extra = math.sqrt(unit) if measured else 0.0
        return value, math.hypot(below, extra), math.hypot(above, extra)


def fit(
    x: Sequence[float], scores: Sequence[Sequence[float]] | Array, *, arm: str, words: Words | None = None
) -> Curve:
    """One arm's curve from scores (K, n) at increasing budgets x (K,), column s always the same seed.

    Raises:
        ConfigError, DataError: see `harness.ladder.rungs`.
    """
    axis = axis_of(x, log=True)
    table = table_of(scores, rungs=len(axis), what="scores")
    rungs, n = table.shape
    means = table.mean(axis=1)
    first, last = (curves(axis, axis[i]) for i in (0, -1))
    misfits = last.misfits(means)
    best = _best(misfits, rungs=rungs)
    exponent = float(last.exponents[best])
    own, shared = _noise(table)
    low, high = _exponent_interval(last, misfits, own, rungs=rungs, n=n)
    level = None
    if exponent > 0:
        ends = np.array([first.values(means)[best], last.values(means)[best]])
        level = float(level_weights(axis, exponent) @ ends)
    return Curve(
        arm=arm,
        x=tuple(map(float, x)),
        mean=tuple(map(float, means)),
        n=n,
        exponent=exponent,
        exponent_low=low,
        exponent_high=high,
        level=level,
        sd_own=own,
        sd_shared=shared,
        lack_of_fit_p=_lack_of_fit(float(misfits[best]), own, rungs=rungs, n=n, bounded=exponent in GRID[[0, -1]]),
        words=words or Words(),
    )


def validated(
    x: Sequence[float], scores: Sequence[Sequence[float]] | Array, *, arm: str, words: Words | None = None
) -> Validation:
    """Fit without the largest rung, predict it, and say whether what was measured lies inside.

    The form on trial is that of the whole ladder. Two rungs below leave its exponent open: the interval then holds
    every exponent's prediction, and the predicted value is the straight line's.

    Raises:
        ConfigError: fewer than three rungs; otherwise see `harness.ladder.rungs`.
    """
    axis = axis_of(x, log=True)
    if len(axis) < 3:
        raise ConfigError(
            f"{len(axis)} rungs", rule="holding the largest out leaves too few for a line", remedy="run one more rung"
        )
    table = table_of(scores, rungs=len(axis), what="scores")
    curve = fit(x[:-1], table[:-1], arm=arm, words=words)
    # The held-out mean is over the same seeds: what they carry along the ladder is in both and cancels.
    value, below, above = curve._profile(float(x[-1]), measured=True)
    measured = float(table[-1].mean())
    known = curve.sd_own is not None
    low, high = (value - below, value + above) if known else (None, None)
    inside = low <= measured <= high if low is not None and high is not None else None
    return Validation(arm, len(axis) - 1, float(x[-1]), value, low, high, measured, inside, words or Words())


def _best(misfits: Array, *, rungs: int) -> int:
    """Which exponent fits best; two rungs fit all alike, and rounding shall not choose."""
    return 0 if rungs == 2 else int(misfits.argmin())


def _t_own(rungs: int, n: int) -> float:
    return float(stats.t.isf(ALPHA / 2, (rungs - 1) * (n - 1)))


def _noise(table: Array) -> tuple[float | None, float | None]:
    """Standard deviations of a score's own noise and of what a seed carries along; None with one seed or no spread."""
    rungs, n = table.shape
    if n < 2:
        return None, None
    centred = table - table.mean(axis=1, keepdims=True)
    by_seed = centred.mean(axis=0)
    own = float(((centred - by_seed) ** 2).sum()) / ((rungs - 1) * (n - 1))
    if negligible(math.sqrt(own), table):
        return None, None
    carried = rungs * float(by_seed.var(ddof=1))
    return math.sqrt(own), math.sqrt(max(0.0, (carried - own) / rungs))


def _exponent_interval(
    family: Exponents, misfits: Array, own: float | None, *, rungs: int, n: int
) -> tuple[float | None, float | None]:
    if own is None:
        return None, None
    kept = family.exponents[misfits - misfits.min() <= own**2 / n * _t_own(rungs, n) ** 2]
    return float(kept.min()), float(kept.max())


def _lack_of_fit(misfit: float, own: float | None, *, rungs: int, n: int, bounded: bool) -> float | None:
    """F-test of the rungs' misfit against the seeds' noise; None where the parameters leave no misfit.

    An exponent held at a bound is no free parameter: given that it is there, the residuals have one freedom more
    (Silvapulle and Sen 2005, chapter 3).
    """
    free = rungs - (2 if bounded else 3)
    if not own or free < 1:
        return None
    return float(stats.f.sf(n * misfit / free / own**2, free, (rungs - 1) * (n - 1)))
