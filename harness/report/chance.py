"""Whether a fine-tuned score can be told from what needs no model: always the most frequent class, or no correlation.

A student that learns nothing of a task still scores something on it, and a table of such scores invites reading noise.
One-sided tests at 1 % over the examples of the judged split, which say nothing of other seeds.
"""

from __future__ import annotations

import math

from scipy import stats

from harness.report.source import Json, mapping, number

LEVEL = 0.01
_CORRELATIONS = ("matthews", "pearson", "spearman")


def at_chance(facts: Json) -> bool | None:
    """True where no metric of a task's record exceeds its baseline; None where too little is recorded to tell.

    Accuracy is held against the share of the most frequent class (exact binomial), a correlation against zero
    (normal approximation, standard error 1/√n). F1 has no such baseline and follows its accuracy.
    """
    tested = [
        p
        for split, found in mapping(facts.get("metrics")).items()
        for metric, value in mapping(found).items()
        if (p := _p(str(metric), number(value), split=str(split), facts=facts)) is not None
    ]
    # Several metrics and splits: any of them may show something, so the level is shared.
    return min(tested) * len(tested) >= LEVEL if tested else None


def _p(metric: str, value: float | None, *, split: str, facts: Json) -> float | None:
    examples = number(mapping(facts.get("examples")).get(split))
    majority = number(mapping(facts.get("majority")).get(split))
    if value is None or not examples:
        return None
    n = round(examples)
    if metric in _CORRELATIONS:
        return float(stats.norm.sf(value * math.sqrt(n)))
    if metric == "accuracy" and majority is not None:
        return float(stats.binom.sf(round(value * n) - 1, n, majority))
    return None
