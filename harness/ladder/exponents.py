"""Curves E + A·b^(−α) of every exponent at once: for each α the curve is a straight line in (1, b^(−α)).

Fitting one exponent is linear least squares, so a whole grid of them costs a few small matrix products, and what a
curve says at any budget is a weighted sum of the means at the rungs. α = 0 is the limit E − B·log b, the straight line.

Shapes: K rungs, G exponents, … anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from harness.compare import Array

# Losses over compute fall with exponents of 0.05 to 0.5; beyond 2 a curve is flat after one doubling.
GRID = np.linspace(0.0, 2.0, 201)


@dataclass(frozen=True)
class Exponents:
    """What each curve of the family makes of means at K rungs.

    exponents (G,). weights (G, K): a curve's value at the place asked for is their product with the means; their
    sum of squares is that value's variance in units of a mean's. rest (G, K, K): what a curve does not explain.
    log_determinant (G,): of XᵀX where the parameters are the curve's values at the two end rungs.
    """

    exponents: Array
    weights: Array
    rest: Array
    log_determinant: Array

    def values(self, means: Array) -> Array:
        """(…, G) values at the place asked for, of means (…, K)."""
        return np.asarray(means @ self.weights.T)

    def misfits(self, means: Array) -> Array:
        """(…, G) sums of squared residuals of means (…, K)."""
        return np.maximum(np.einsum("...k,gkl,...l->...g", means, self.rest, means), 0.0)

    @property
    def leverage(self) -> Array:
        """(G,) variance of the value in units of a mean's variance."""
        return np.asarray((self.weights**2).sum(axis=-1))


def curves(axis: Array, at: float) -> Exponents:
    """The family over rungs at log budgets `axis` (K,), asked at the log budget `at`."""
    return _curves(tuple(map(float, axis)), float(at))


@lru_cache(maxsize=128)
def _curves(rungs: tuple[float, ...], at: float) -> Exponents:
    axis = np.array(rungs)
    rows = design(GRID, axis, axis)
    asked = design(GRID, axis, np.array([at]))[:, 0]
    gram = np.einsum("gki,gkj->gij", rows, rows)
    solved = np.linalg.solve(gram, np.swapaxes(rows, 1, 2))
    hat = rows @ solved
    return Exponents(
        exponents=GRID,
        weights=np.einsum("gi,gik->gk", asked, solved),
        rest=np.eye(len(axis)) - hat,
        log_determinant=np.linalg.slogdet(gram)[1],
    )


def level_weights(axis: Array, exponent: float) -> Array:
    """(2,) weights of a curve's values at the two end rungs in the level E it falls to; exponent above 0."""
    run = -np.expm1(-exponent * (axis[-1] - axis[0]))
    return np.array([1 - 1 / run, 1 / run])


def design(grid: Array, axis: Array, at: Array) -> Array:
    """(G, len(at), 2): how far along from the first rung's value to the last one's a curve is at each place."""
    span = axis[-1] - axis[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        along = np.expm1(-grid[:, None] * (at - axis[0])) / np.expm1(-grid[:, None] * span)
    along = np.where(grid[:, None] == 0, (at - axis[0]) / span, along)
    return np.stack([1 - along, along], axis=-1)
