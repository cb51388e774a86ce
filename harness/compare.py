"""Paired comparison of arms over seeds: the effect, its interval, a corrected p, and what n could show.

Within one seed all arms share data order, masks and initial weights, so the unit of evidence is the
per-seed difference, and its interval is Student's t on n − 1 degrees of freedom (Student 1908). Several
comparisons form a family of m: p is multiplied by m and every interval is that of the level 1 − α/m, so that all
intervals of a family hold their truths together with at least 95 % (Bonferroni; Dunn 1961), and an interval excludes
zero exactly where the corrected p is below 5 %. Power and seeds needed, from the noncentral t, are at α/m too.
A percentile bootstrap over a handful of seeds raises 25–50 % false alarms and is not offered.

The interval speaks about seeds. The test set is the same for every run, so it says nothing about other texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.80
SEEDS_CAP = 50
# Below this share of the scores' own size a spread is rounding, not chance.
_ROUNDING = 1e-12

Array = NDArray[np.float64]
Scores = Mapping[str, Mapping[int, float]]
"""{arm: {seed: score}}; absent and non-finite scores are no scores."""


def higher_is_better(metric: str) -> bool:
    """Losses and bits per byte are better when low; everything else is better when high."""
    return not metric.endswith(("loss", "bits_per_byte"))


def paired_t(differences: Array, *, level: float = LEVEL) -> tuple[Array, Array, Array, Array]:
    """Mean, interval low and high, and two-sided p of paired differences (…, n), n ≥ 2, over the last axis.

    Differences without any spread have no t statistic: low, high and p are NaN there.
    """
    n = differences.shape[-1]
    mean = differences.mean(axis=-1)
    error = differences.std(axis=-1, ddof=1) / math.sqrt(n)
    error = np.where(error > 0, error, np.nan)
    half = stats.t.isf((1 - level) / 2, n - 1) * error
    p = 2 * stats.t.sf(np.abs(mean) / error, n - 1)
    return mean, mean - half, mean + half, np.asarray(p)


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, float] | None:
    """The t interval of a mean over seeds; None with fewer than two values or no spread."""
    if len(values) < 2:
        return None
    _, low, high, _ = paired_t(np.asarray(values, dtype=float), level=level)
    return (float(low), float(high)) if math.isfinite(float(low)) else None


def holm(p: Array) -> Array:
    """Holm's adjusted p over the last axis: rejecting those ≤ α keeps the family's error at α."""
    m = p.shape[-1]
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, axis=-1) * np.arange(m, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result


def power_at(effect: float, n: int, *, alpha: float = ALPHA) -> float:
    """Chance that a two-sided paired t-test of n seeds detects a true effect given in standard deviations."""
    degrees, shift = n - 1, abs(effect) * math.sqrt(n)
    critical = stats.t.isf(alpha / 2, degrees)
    upper = float(stats.nct.sf(critical, degrees, shift))
    lower = float(stats.nct.cdf(-critical, degrees, shift))
    return min(1.0, upper + (lower if math.isfinite(lower) else 0.0))


@lru_cache(maxsize=256)
def detectable_effect(n: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true effect, in standard deviations of a difference, that n ≥ 2 seeds detect with this power."""
    high = 1.0
    while power_at(high, n, alpha=alpha) < power:
        high *= 2
    return float(optimize.brentq(lambda effect: power_at(effect, n, alpha=alpha) - power, 0.0, high))  # type: ignore[arg-type]


def seeds_to_detect(effect: float, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """The fewest seeds that detect an effect given in standard deviations; SEEDS_CAP + 1 means more than the cap."""
    if not effect:
        return SEEDS_CAP + 1
    return next(
        (n for n in range(2, SEEDS_CAP + 1) if abs(effect) >= detectable_effect(n, alpha=alpha, power=power)),
        SEEDS_CAP + 1,
    )


@dataclass(frozen=True)
class Comparison:
    """Arm a against arm b on one metric over their common seeds; a positive difference means a is better.

    low, high: its interval, which holds together with those of the whole family with 95 %; p_corrected says the
    same of zero. family_size: the comparisons that this correction is for. minimal_detectable: the true difference that
    n seeds find with 80 % power at the same level, α / family_size. seeds_needed: the same question turned round
    for the observed difference; 51 means more than 50.
    These are None where n or the spread does not allow them, and `note` says why. `meaningful` is False where
    the metric does not measure both arms alike: such a figure is shown, flagged, and decides nothing.
    """

    metric: str
    higher_is_better: bool
    family: str
    a: str
    b: str
    n: int
    seeds: tuple[int, ...]
    mean_difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_corrected: float | None
    family_size: int
    minimal_detectable: float | None
    seeds_needed: int | None
    meaningful: bool = True
    note: str = ""

    @property
    def significant(self) -> bool:
        """True when the corrected p is at most 5 % and the metric means the same for both arms."""
        return self.meaningful and self.p_corrected is not None and self.p_corrected <= ALPHA

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "seeds": list(self.seeds), "level": LEVEL, "significant": self.significant}


def compare(
    scores: Scores,
    pairs: Sequence[tuple[str, str]],
    *,
    metric: str,
    family: str,
    meaningless: Mapping[str, str] | None = None,
) -> list[Comparison]:
    """Compare each pair (a, b) on one metric; all pairs that can be tested form one family.

    Args:
        meaningless: {arm: why the metric says nothing about it}; such pairs are flagged and stay out of the family.
    """
    sign = 1.0 if higher_is_better(metric) else -1.0
    flagged = meaningless or {}
    effects = [_effect(scores, a, b, sign) for a, b in pairs]
    notes = [flagged.get(a) or flagged.get(b) or "" for a, b in pairs]
    size = max(1, sum(effect.p is not None and not note for effect, note in zip(effects, notes, strict=True)))
    alpha = ALPHA / size
    result: list[Comparison] = []
    for (a, b), effect, note in zip(pairs, effects, notes, strict=True):
        spread, half = effect.sd, effect.half_width(alpha)
        result.append(
            Comparison(
                metric=metric,
                higher_is_better=higher_is_better(metric),
                family=family,
                a=a,
                b=b,
                n=len(effect.seeds),
                seeds=effect.seeds,
                mean_difference=effect.mean,
                low=None if half is None else (effect.mean or 0.0) - half,
                high=None if half is None else (effect.mean or 0.0) + half,
                p=effect.p,
                p_corrected=None if effect.p is None or note else min(1.0, size * effect.p),
                family_size=size,
                minimal_detectable=detectable_effect(len(effect.seeds), alpha=alpha) * spread if spread else None,
                seeds_needed=seeds_to_detect((effect.mean or 0.0) / spread, alpha=alpha) if spread else None,
                meaningful=not note,
                note=note or effect.note,
            )
        )
    return result


def against_baseline(scores: Scores, baseline: str, **settings: Any) -> list[Comparison]:
    """Every other arm against the baseline, as one family."""
    pairs = [(arm, baseline) for arm in scores if arm != baseline]
    return compare(scores, pairs, family="baseline", **settings)


def all_pairs(scores: Scores, **settings: Any) -> list[Comparison]:
    """Every arm against every other, as one family."""
    arms = list(scores)
    pairs = [(b, a) for i, a in enumerate(arms) for b in arms[i + 1 :]]
    return compare(scores, pairs, family="pairs", **settings)


@dataclass(frozen=True)
class _Effect:
    seeds: tuple[int, ...]
    mean: float | None = None
    sd: float | None = None
    p: float | None = None
    note: str = ""

    def half_width(self, alpha: float) -> float | None:
        """Of the t interval of level 1 − α; None without a spread."""
        n = len(self.seeds)
        return None if self.sd is None else float(stats.t.isf(alpha / 2, n - 1)) * self.sd / math.sqrt(n)


def _effect(scores: Scores, a: str, b: str, sign: float) -> _Effect:
    left, right = scores.get(a, {}), scores.get(b, {})
    seeds = tuple(s for s in sorted(left) if s in right and math.isfinite(left[s]) and math.isfinite(right[s]))
    if not seeds:
        return _Effect(seeds, note="no seed was finished and scored for both arms")
    values = np.array([[left[s], right[s]] for s in seeds], dtype=float)
    differences = sign * (values[:, 0] - values[:, 1])
    mean = float(differences.mean())
    if len(seeds) == 1:
        return _Effect(seeds, mean, note="one common seed gives no interval")
    sd = float(differences.std(ddof=1))
    if sd <= _ROUNDING * float(np.abs(values).max()):
        return _Effect(seeds, mean, note=f"the same difference in all {len(seeds)} seeds gives no interval")
    return _Effect(seeds, mean, sd, float(paired_t(differences)[3]))
