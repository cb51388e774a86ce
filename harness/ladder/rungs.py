"""A ladder's axis and scores, checked: increasing rungs, the same seeds at every rung, nothing missing.

Shapes: K rungs, n seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from harness.compare import Array, Scores, higher_is_better
from harness.errors import ConfigError, DataError

# Below this share of the values' own size a spread is rounding, not chance.
_ROUNDING = 1e-12


def axis_of(x: Sequence[float] | Array, *, log: bool) -> Array:
    """The rungs as coordinates (K,): logarithms on a log axis.

    Raises:
        ConfigError: fewer than two rungs, rungs that do not increase or are not finite, or a log axis at or below zero.
    """
    values = np.asarray(x, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ConfigError(
            f"a ladder of {values.size} rung{'s' if values.size != 1 else ''}",
            rule="a line along a ladder needs at least two rungs", remedy="run the study at another value",
        )  # fmt: skip
    for before, after in pairwise(values):
        if not (math.isfinite(before) and math.isfinite(after) and before < after):
            raise ConfigError(
                f"rungs {before:g}, {after:g}",
                rule="rungs are finite and increase",
                remedy="sort them, each value once",
            )
    if log and values[0] <= 0:
        raise ConfigError(
            f"a rung at {values[0]:g}", rule="a logarithmic axis holds positive values", remedy="use a linear axis"
        )
    return np.log(values) if log else values


def table_of(values: Sequence[Sequence[float]] | Array, *, rungs: int, what: str = "differences") -> Array:
    """Scores or differences as (K, n), every value finite.

    Raises:
        DataError: rungs of unequal numbers of seeds, another number of rungs than the axis has, or no number.
    """
    lengths = [np.size(row) for row in values]
    if len(lengths) != rungs or len(set(lengths)) != 1 or lengths[0] == 0:
        raise DataError(
            f"{what} of {lengths} seeds on {rungs} rungs", rule="every rung holds the same seeds",
            remedy="keep the seeds that are finished on every rung",
        )  # fmt: skip
    table = np.asarray(values, dtype=float)
    if table.ndim != 2:
        raise DataError(f"{what} with {table.ndim} axes", rule="a table has one axis of rungs and one of seeds")
    if not np.isfinite(table).all():
        rung, seed = np.argwhere(~np.isfinite(table))[0]
        raise DataError(
            f"{what}[{rung}][{seed}] is {table[rung, seed]:g}", rule="every value is a finite number",
            remedy="leave that seed out on every rung",
        )  # fmt: skip
    return table


def without_spread(table: Array) -> bool:
    """True where some rung's seeds agree to the last digits, or where there is one seed: that rung has no interval."""
    return table.shape[1] < 2 or bool(negligible(table.std(axis=1, ddof=1), table).any())


def negligible(spread: Array | float, table: Array) -> Any:
    """True where a standard deviation is rounding of the values in the table, not chance."""
    return spread <= _ROUNDING * float(np.abs(table).max())


def common_seeds(ladder: Sequence[Scores], arms: Sequence[str]) -> tuple[int, ...]:
    """The seeds finished and scored by all these arms on every rung."""
    finished = [
        {seed for seed, score in rung.get(arm, {}).items() if math.isfinite(score)} for rung in ladder for arm in arms
    ]
    return tuple(sorted(set.intersection(*finished))) if finished else ()


def scores_of(ladder: Sequence[Scores], arms: Sequence[str]) -> tuple[dict[str, Array], tuple[int, ...]]:
    """Every arm's scores (K, n) over the seeds that all arms share on every rung, and those seeds.

    Raises:
        DataError: no seed is shared.
    """
    seeds = common_seeds(ladder, arms)
    if not seeds:
        raise DataError(
            f"{', '.join(arms)} on {len(ladder)} rungs", rule="no seed was finished and scored by all of them everywhere",
            remedy="resume the unfinished rungs",
        )  # fmt: skip
    return {arm: np.array([[rung[arm][s] for s in seeds] for rung in ladder], dtype=float) for arm in arms}, seeds


def differences_of(
    ladder: Sequence[Scores], *, challenger: str, baseline: str, metric: str
) -> tuple[Array, tuple[int, ...]]:
    """Paired differences (K, n), positive where the challenger is better, and their seeds."""
    scores, seeds = scores_of(ladder, [challenger, baseline])
    sign = 1.0 if higher_is_better(metric) else -1.0
    return sign * (scores[challenger] - scores[baseline]), seeds


def plain(value: Any) -> Any:
    """A result's field as JSON holds it: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
