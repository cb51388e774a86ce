"""Nested and crossed designs: fine-tuning seeds inside pretraining seeds, several tasks, all arms in one model.

Pretraining seeds are random, tasks are fixed, fine-tuning seeds are random and nested in the pretraining run they
start from. A score is then

    y[arm, seed, fine] = mean[arm] + shared[seed] + own[arm, seed] + noise[arm, seed, fine]

with three variances. Fine-tuning seeds say nothing about other pretraining runs, so they are averaged first and
the pretraining seed stays the unit of evidence: the paired t of `harness.compare` on those means is exact for every
pair. The mixed model adds two things to it: where the variance comes from, and an interval that pools the variance
`own` over all arms, on (arms − 1)(seeds − 1) degrees of freedom instead of seeds − 1. It assumes that arms are
equally noisy; the verdict does not, and uses the paired t.

On balanced data the closed forms here are the analysis of variance's, which equal restricted maximum likelihood
with variance components left free to fall below zero (Searle, Casella and McCulloch 1992, chapter 4); a component
estimated below zero is told as 0 and its estimate keeps its place in the test.

Shapes: … studies, A arms, n pretraining seeds, m fine-tuning seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from harness.compare import ALPHA, LEVEL, Array, Scores

NestedScores = Mapping[str, Mapping[int, Sequence[float]]]
"""{arm: {pretraining seed: scores of its fine-tuning seeds}}"""


def seed_means(nested: NestedScores) -> dict[str, dict[int, float]]:
    """Each pretraining seed's mean over its fine-tuning seeds; a seed with any non-finite score has none."""
    return {
        arm: {s: float(np.mean(v)) for s, v in by_seed.items() if len(v) and np.isfinite(v).all()}
        for arm, by_seed in nested.items()
    }


def task_means(tasks: Mapping[str, Scores]) -> dict[str, dict[int, float]]:
    """{arm: {seed: mean over all tasks}}, only where every task was scored: fewer tasks are another score."""
    arms = dict.fromkeys(arm for scores in tasks.values() for arm in scores)
    result: dict[str, dict[int, float]] = {}
    for arm in arms:
        rows = [scores.get(arm, {}) for scores in tasks.values()]
        seeds = sorted(set.intersection(*(set(row) for row in rows)))
        means = {seed: float(np.mean([row[seed] for row in rows])) for seed in seeds}
        result[arm] = {seed: mean for seed, mean in means.items() if math.isfinite(mean)}
    return result


def pooled_t(table: Array, *, level: float = LEVEL) -> tuple[Array, Array, Array, Array]:
    """Every pair of arms from one balanced model: mean, low, high and two-sided p, each (…, pairs).

    Args:
        table: scores (…, A, n), fine-tuning seeds and tasks already averaged; A, n ≥ 2. Pairs run in the order of
            `itertools.combinations`, first minus second. A table without any residual has NaN for all but the mean.
    """
    arms, seeds = table.shape[-2:]
    degrees = (arms - 1) * (seeds - 1)
    error = np.sqrt(2 * _interaction(table) / seeds)
    error = np.where(error > 0, error, np.nan)[..., None]
    means = table.mean(axis=-1)
    pairs = list(combinations(range(arms), 2))
    difference = np.stack([means[..., i] - means[..., j] for i, j in pairs], axis=-1)
    half = stats.t.isf((1 - level) / 2, degrees) * error
    p = 2 * stats.t.sf(np.abs(difference) / error, degrees)
    return difference, difference - half, difference + half, np.asarray(p)


def _interaction(table: Array) -> Array:
    """Mean square of arm × seed: what is left once arms and seeds have their means."""
    arms, seeds = table.shape[-2:]
    rest = table - table.mean(axis=-1, keepdims=True) - table.mean(axis=-2, keepdims=True)
    rest = rest + table.mean(axis=(-1, -2), keepdims=True)
    return np.asarray((rest**2).sum(axis=(-1, -2)) / ((arms - 1) * (seeds - 1)))


@dataclass(frozen=True)
class Pair:
    """Arm a minus arm b under the pooled variance; a positive difference means a is better.

    low, high: an interval that holds together with those of all pairs with 95 %, as p_corrected says of zero.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float


@dataclass(frozen=True)
class MixedModel:
    """One metric's model over all arms; standard deviations in the metric's own unit.

    sd_shared: what a pretraining seed does to all arms alike, which pairing removes. sd_own: what it does to one
    arm, the noise that more pretraining seeds average out. sd_fine: between fine-tuning seeds, None without nesting.
    half_width: of every pair's interval. floor: what is left of it with endlessly many fine-tuning seeds; more of them
    narrow no further.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    fine: int
    degrees: int
    sd_shared: float
    sd_own: float
    sd_fine: float | None
    half_width: float
    floor: float | None
    pairs: tuple[Pair, ...]


def fit(nested: NestedScores, *, higher_is_better: bool) -> MixedModel | None:
    """The balanced mixed model over the seeds that all arms share; None where data do not allow one.

    Data allow it with two arms, two common seeds, and equally many finite fine-tuning scores in every cell; where
    cells differ, the first scores up to the smallest count are used.
    """
    arms = tuple(arm for arm, by_seed in nested.items() if by_seed)
    if len(arms) < 2:
        return None
    finite = {a: {s: [x for x in v if math.isfinite(x)] for s, v in nested[a].items()} for a in arms}
    seeds = tuple(sorted(set.intersection(*({s for s, v in finite[a].items() if v} for a in arms))))
    if len(seeds) < 2:
        return None
    fine = min(len(finite[a][s]) for a in arms for s in seeds)
    cells = np.array([[finite[a][s][:fine] for s in seeds] for a in arms], dtype=float)
    cells = cells if higher_is_better else -cells
    table = cells.mean(axis=-1)
    between = float(_interaction(table))
    if between <= 0:
        return None
    size = len(arms) * (len(arms) - 1) // 2
    difference, low, high, p = pooled_t(table, level=1 - ALPHA / size)
    adjusted = np.minimum(size * p, 1.0)
    named = combinations(arms, 2)
    rows = zip(named, difference, low, high, p, adjusted, strict=True)
    within = float(cells.var(axis=-1, ddof=1).mean()) if fine > 1 else 0.0
    own = max(0.0, between - within / fine)
    seed_square = len(arms) * float(table.mean(axis=0).var(ddof=1))
    width = float(stats.t.isf(ALPHA / size / 2, (len(arms) - 1) * (len(seeds) - 1)))
    return MixedModel(
        arms=arms,
        seeds=seeds,
        fine=fine,
        degrees=(len(arms) - 1) * (len(seeds) - 1),
        sd_shared=math.sqrt(max(0.0, (seed_square - between) / len(arms))),
        sd_own=math.sqrt(own),
        sd_fine=math.sqrt(within) if fine > 1 else None,
        half_width=width * math.sqrt(2 * between / len(seeds)),
        floor=width * math.sqrt(2 * own / len(seeds)) if fine > 1 else None,
        pairs=tuple(Pair(a, b, *(float(x) for x in figures)) for (a, b), *figures in rows),
    )


def best_fine_seeds(model: MixedModel, *, pretraining_cost: float, fine_cost: float) -> int | None:
    """Fine-tuning seeds per run that give the narrowest interval for the money; None where that is not known.

    The variance of a pair is (own² + fine²/m) · 2/n at a price of n · (pretraining + m · fine-tuning), smallest at
    m = (fine / own) · √(pretraining / fine-tuning) (Cochran 1977, chapter 10).
    """
    if model.sd_fine is None or model.sd_own <= 0 or fine_cost <= 0:
        return None
    return max(1, round(model.sd_fine / model.sd_own * math.sqrt(pretraining_cost / fine_cost)))
