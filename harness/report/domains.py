"""Does distillation help as much on other text? Effects in domain, out of domain, and the paired difference of the two.

In domain are the mixture's own sources, weighted as the mixture; out of domain is text that no student learned from,
every source alike. For each seed an arm's loss is averaged over both kinds; the effect of an arm is its paired
difference to the baseline, and whether the effect carries over is the paired difference of these differences: one
number per seed, Student's t, corrected for all arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.compare import Comparison, against_baseline
from harness.report import numbers
from harness.report.source import Json, mapping, number
from harness.study import DataSpec, EvaluationSpec

if TYPE_CHECKING:
    from harness.report.analysis import Analysis

PREFIX = "domain."
INSIDE, OUTSIDE, GAP = "in_domain.loss", "out_of_domain.loss", "out_minus_in.loss"


@dataclass(frozen=True)
class Text:
    """One kind of text; `weight` is its share of the training mixture, None where no student learned from it."""

    label: str
    weight: float | None

    @property
    def metric(self) -> str:
        return f"{PREFIX}{self.label}.loss"


@dataclass(frozen=True)
class Domains:
    """Losses by arm and seed: of each text, in domain, out of domain, and out minus in; with their comparisons."""

    texts: list[Text]
    scores: dict[str, dict[str, dict[int, float]]]
    comparisons: dict[str, list[Comparison]]

    @property
    def kinds(self) -> list[str]:
        """The averages there are: without text out of domain there is no gap."""
        return [kind for kind in (INSIDE, OUTSIDE, GAP) if kind in self.scores]

    def effect(self, arm: str, metric: str) -> Comparison | None:
        """An arm's difference to the baseline; positive is better, for the gap: better out of domain than in."""
        return next((c for c in self.comparisons.get(metric, []) if c.a == arm), None)

    def as_json(self) -> Json:
        return {
            "texts": [{"label": t.label, "weight": t.weight, "trained_on": t.weight is not None} for t in self.texts],
            "scores": self.scores,
            "effects": {metric: [c.as_json() for c in rows] for metric, rows in self.comparisons.items()},
        }


def domains(analysis: Analysis) -> Domains | None:
    """None where the study was not evaluated by domain."""
    texts = _texts(analysis)
    if not texts or analysis.baseline is None:
        return None
    each = {t.metric: dict(analysis.scores.get(t.metric, {})) for t in texts}
    if not any(by_seed for by_arm in each.values() for by_seed in by_arm.values()):
        return None
    inside = [(t.metric, t.weight) for t in texts if t.weight is not None]
    outside = [(t.metric, 1.0) for t in texts if t.weight is None]
    arms = [arm.name for arm in analysis.arms]
    scores = {**each, INSIDE: {arm: _mean(each, inside, arm) for arm in arms}}
    if outside:
        scores[OUTSIDE] = {arm: _mean(each, outside, arm) for arm in arms}
        scores[GAP] = {
            arm: {s: v - scores[INSIDE][arm][s] for s, v in scores[OUTSIDE][arm].items() if s in scores[INSIDE][arm]}
            for arm in arms
        }
    comparisons = {
        metric: against_baseline({arm: by_arm.get(arm, {}) for arm in arms}, analysis.baseline.name, metric=metric)
        for metric, by_arm in scores.items()
    }
    return Domains(texts, scores, comparisons)


def _texts(analysis: Analysis) -> list[Text]:
    study = analysis.source.study
    listed = mapping(study.get("evaluation")).get("domains")
    if not listed:
        return []
    try:
        data = DataSpec.model_validate(study.get("data") or {})
        beside = EvaluationSpec.model_validate({"domains": listed}).domains_beside(data.sources)
    except ValueError:
        return []  # a study of another version: its scores stay in the tables
    whole = sum(source.weight for source in data.sources)
    inside = [Text(source.label, source.weight / whole) for source in data.sources]
    return inside + [Text(domain.label, None) for domain in beside]


def _mean(
    scores: Mapping[str, Mapping[str, Mapping[int, float]]], of: Iterable[tuple[str, float]], arm: str
) -> dict[int, float]:
    """Weighted mean over texts of the seeds that have all of them: fewer texts are another score."""
    rows = [(scores[metric].get(arm, {}), weight) for metric, weight in of]
    seeds = set.intersection(*(set(row) for row, _ in rows))
    whole = sum(weight for _, weight in rows)
    return {seed: sum(row[seed] * weight for row, weight in rows) / whole for seed in sorted(seeds)}


def sentences(found: Domains, arms: Iterable[str]) -> list[str]:
    """For each arm: its effect against the baseline in domain, out of domain, and whether the two differ."""
    said = []
    for arm in arms:
        inside, outside, gap = (found.effect(arm, kind) for kind in (INSIDE, OUTSIDE, GAP))
        if inside is None or outside is None or gap is None or gap.mean_difference is None:
            continue
        half = max((h for c in (inside, outside, gap) if (h := c.half_width)), default=None)
        figures = ", ".join(
            f"{numbers.signed(c.mean_difference, c.metric, spread=half)} nats {where}"
            for c, where in ((inside, "in domain"), (outside, "out of domain"))
        )
        way = "better" if gap.mean_difference > 0 else "worse"
        size = numbers.amount_of(gap.mean_difference, gap.metric, spread=half)
        told = "" if gap.significant else ", which cannot be told from none"
        span = "" if gap.low is None else f" ({numbers.interval(gap.low, gap.high, gap.metric, signs=True)})"
        said.append(f"{arm} against {gap.b}: {figures}; so {size} {way} out of domain than in{span}{told}.")
    return said


def left_out(analysis: Analysis) -> list[str]:
    """Which texts lost documents that stand in the training text."""
    facts = mapping(mapping(analysis.source.environment.get("data")).get("domains"))
    found = []
    for label, row in facts.items():
        repeated = number(mapping(row).get("in_training_text"))
        if repeated:
            kept = number(mapping(row).get("documents")) or 0
            found.append(
                f"{round(repeated)} of {round(kept + repeated)} documents of {label} stand in the training text and are left out."
            )
    return found
