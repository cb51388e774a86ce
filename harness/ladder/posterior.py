"""What a pilot leaves possible: each arm's mean score at a budget that was not run, as a distribution.

An arm's mean score follows E + A·b^(−α) (`harness.ladder.exponents`). Before the pilot every pair of scores at the two
end rungs is as likely as any other, and α is exponential with mean 1/2, cut at 2: losses over compute were found to
fall with exponents of 0.05 to 0.5, and nothing is ruled out that would matter. Given α the rest is linear regression
with normal noise, so the distribution is a mixture over the grid of exponents, exact but for the grid.

The noise is the seeds', pooled over arms and rungs after what a seed does to all arms and rungs alike, which changes
no order of arms, is taken out; its variance is as uncertain as its degrees of freedom make it.

Shapes: A arms, K rungs, n seeds, G exponents, M draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.compare import Array
from harness.ladder.exponents import GRID, Exponents, curves, design

EXPONENT_MEAN = 0.5


@dataclass(frozen=True)
class Noise:
    """Variances of a score: `own` of one arm at one rung, on `degrees`; `shared` by all of a seed's."""

    own: float
    shared: float
    degrees: int


def noise_of(scores: Array) -> Noise:
    """The noise in scores (A, K, n), n ≥ 2."""
    arms, rungs, n = scores.shape
    cells = arms * rungs
    centred = scores - scores.mean(axis=-1, keepdims=True)
    by_seed = centred.mean(axis=(0, 1))
    degrees = (cells - 1) * (n - 1)
    own = float(((centred - by_seed) ** 2).sum()) / degrees
    return Noise(own, max(0.0, float(by_seed.var(ddof=1)) - own / cells), degrees)


@dataclass(frozen=True)
class Draws:
    """M curves of one arm: which exponent (M,), and the values at the first and last rung (M, 2)."""

    exponent: NDArray[np.intp]
    ends: Array

    def at(self, axis: Array, place: float) -> Array:
        """(M,) values of these curves at the log budget `place`."""
        rows = design(GRID, axis, np.array([place]))[:, 0]
        return np.einsum("mi,mi->m", rows[self.exponent], self.ends)


def draw(means: Array, axis: Array, variance: Array, *, rng: np.random.Generator) -> Draws:
    """Curves that the means (K,) of one arm leave possible, one for each variance (M,) of such a mean."""
    family = curves(axis, axis[-1])
    weights = _weights(family, family.misfits(means), variance)
    chosen = (weights.cumsum(axis=-1) < rng.random((len(variance), 1))).sum(axis=-1).clip(max=len(GRID) - 1)
    rows = design(GRID, axis, axis)
    covariance = np.linalg.inv(np.einsum("gki,gkj->gij", rows, rows))
    fitted = np.einsum("gij,gkj,k->gi", covariance, rows, means)
    spread = np.linalg.cholesky(covariance)[chosen]
    step = np.einsum("mij,mj->mi", spread, rng.normal(size=(len(variance), 2)))
    return Draws(chosen, fitted[chosen] + step * np.sqrt(variance)[:, None])


def expected(means: Array, axis: Array, place: float, variance: float) -> Array:
    """(…,) expected value at the log budget `place` given means (…, K) of one arm, each with this variance."""
    family = curves(axis, place)
    weights = _weights(family, family.misfits(means), np.asarray(variance))
    return np.asarray((weights * family.values(means)).sum(axis=-1))


def _weights(family: Exponents, misfits: Array, variance: Array) -> Array:
    """How likely each exponent is, (…, G), given the misfits (…, G) of its curve and the variance (…,) of a mean."""
    logarithm = -misfits / (2 * variance[..., None]) - family.log_determinant / 2 - family.exponents / EXPONENT_MEAN
    weights = np.exp(logarithm - logarithm.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def variances(noise: Noise, n: int, number: int, *, rng: np.random.Generator) -> Array:
    """M possible variances of a mean over n seeds: scaled inverse chi-squared around the pooled estimate."""
    return noise.own * noise.degrees / rng.chisquare(noise.degrees, size=number) / n
