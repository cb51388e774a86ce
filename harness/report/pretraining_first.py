"""What fraction of the budget to pretrain before distillation starts: arms of one method that differ in that alone.

An arm's place is read from the phases of its objective, never from its name: `first` is the fraction of the budget spent
before anything is asked of a teacher. An arm that never asks stands at 1. Arms that distil first and pretrain afterwards
have the other order: they are compared with the arm that gives pretraining as much at the beginning, and are no fraction.

The best fraction is picked with the scores in hand. So every pair of fractions is compared and corrected together, and
those that cannot be told from the best are named with it; the best one's own score is the luckiest of several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from harness.compare import Comparison, compare, higher_is_better
from harness.report import numbers
from harness.report.arms import Arm, Mean, objective_words
from harness.report.source import Json, arms_of, mapping, number

if TYPE_CHECKING:
    from harness.report.analysis import Analysis

# Objectives that ask nothing of a teacher; all others distil.
PLAIN = ("mlm", "clm")
# Fractions are told apart to a thousandth of the budget.
_DIGITS = 3


@dataclass(frozen=True)
class Course:
    """What an objective does in time, in fractions of the budget.

    first: plain pretraining before distillation starts. plain: plain pretraining in all. method: what distils, in
    words; empty for an arm that never does.
    """

    first: float
    plain: float
    method: str

    @property
    def other_order(self) -> bool:
        """True where plain pretraining follows distillation."""
        return bool(self.method) and self.plain > self.first


@dataclass(frozen=True)
class Place:
    """One arm at its fraction, with its score and its effect against the baseline (None for the baseline)."""

    arm: Arm
    course: Course
    score: Mean | None
    effect: Comparison | None


@dataclass(frozen=True)
class PretrainingFirst:
    """One method's arms, sorted by fraction, the arm that never distils among them, then those of the other order.

    pairs: every two fractions, one family of comparisons. orders: each arm of the other order against the fraction of equally
    much pretraining. untold: fractions that cannot be told from the best.
    """

    method: str
    metric: str
    places: list[Place]
    best: str | None
    pairs: list[Comparison]
    orders: list[Comparison]
    untold: list[str]

    @property
    def fractions(self) -> list[Place]:
        return [place for place in self.places if not place.course.other_order]

    def against_best(self, arm: str) -> Comparison | None:
        """The corrected comparison of an arm with the best one."""
        return next((c for c in self.pairs if {c.a, c.b} == {arm, self.best}), None)

    def as_json(self) -> Json:
        return {
            "method": self.method,
            "metric": self.metric,
            "arms": [
                {"arm": p.arm.name, **asdict(p.course), "mean": None if p.score is None else p.score.mean}
                for p in self.places
            ],
            "best": self.best,
            "not_told_from_best": self.untold,
            "pairs": [c.as_json() for c in self.pairs],
            "orders": [c.as_json() for c in self.orders],
        }


def course(objective: Any) -> Course:
    """The course of an arm's objective as a study writes it."""
    phases = mapping(objective).get("phases")
    rows = phases if isinstance(phases, list) else [objective]
    first = plain = before = 0.0
    methods: dict[str, None] = {}
    for row in rows:
        spec = {k: v for k, v in row.items() if k not in ("until", "restart")} if isinstance(row, dict) else row
        until = number(mapping(row).get("until"))
        end = 1.0 if until is None else until
        if _is_plain(spec):
            plain += end - before
            first = first if methods else end
        else:
            methods[objective_words(spec)] = None
        before = end
    return Course(round(first, _DIGITS), round(plain, _DIGITS), ", then ".join(methods))


def _is_plain(spec: Any) -> bool:
    terms = mapping(spec).get("terms")
    listed = terms if isinstance(terms, list) else [spec]
    names = [t.get("name") if isinstance(t, dict) else t for t in listed if mapping(t).get("weight") != 0]
    return all(name in PLAIN for name in names)


def pretraining_first(analysis: Analysis) -> list[PretrainingFirst]:
    """One entry for every method whose arms give pretraining unlike shares; none in other studies."""
    listed = {str(arm["name"]): arm for arm in arms_of(analysis.source.study)}
    grouped: dict[tuple[str, str], list[tuple[Arm, Course]]] = {}
    never: dict[str, list[tuple[Arm, Course]]] = {}
    for arm in analysis.arms:
        recorded = next((run.record["objective"] for run in arm.runs if run.record.get("objective")), "mlm")
        taken = course(listed.get(arm.name, {}).get("objective", recorded))
        # An arm that departs from the recipe in anything else is no point of the same line.
        recipe = json.dumps(arm.differs, sort_keys=True, default=str)
        if taken.method:
            grouped.setdefault((taken.method, recipe), []).append((arm, taken))
        else:
            never.setdefault(recipe, []).append((arm, taken))
    return [
        _compared(analysis, method, [*arms, *never.get(recipe, [])[:1]])
        for (method, recipe), arms in grouped.items()
        if len({(c.first, c.plain) for _, c in arms}) > 1
    ]


def _compared(analysis: Analysis, method: str, arms: Sequence[tuple[Arm, Course]]) -> PretrainingFirst:
    metric = analysis.main
    effects = {c.a: c for c in analysis.compared(metric, "baseline")}
    ordered = sorted(arms, key=lambda pair: (pair[1].other_order, pair[1].first, pair[1].plain))
    places = [Place(arm, taken, analysis.score(arm.name, metric), effects.get(arm.name)) for arm, taken in ordered]
    fractions = [p for p in places if not p.course.other_order]
    meaningless = analysis.meaningless(metric)
    scores = {p.arm.name: {} if p.score is None else p.score.values for p in places}
    settings = {"metric": metric, "meaningless": meaningless}
    pairs = compare(
        scores, list(combinations([p.arm.name for p in fractions], 2)), family="pretraining_first", **settings
    )
    likes = [
        (p.arm.name, q.arm.name)
        for p in places if p.course.other_order
        for q in fractions if q.course.first == p.course.plain
    ]  # fmt: skip
    orders = compare(scores, likes, family="order", **settings)
    scored = [p for p in fractions if p.score is not None and p.arm.name not in meaningless]
    sign = 1.0 if higher_is_better(metric) else -1.0
    best = max(scored, key=lambda p: sign * p.score.mean).arm.name if len(scored) > 1 else None  # type: ignore[union-attr]
    untold = [
        c.b if c.a == best else c.a for c in pairs if best in (c.a, c.b) and not c.significant
    ] if best else []  # fmt: skip
    return PretrainingFirst(method, metric, places, best, pairs, orders, untold)


def sentences(found: PretrainingFirst) -> list[str]:
    """What the scores say of the fractions, and how far to believe it."""
    share = {p.arm.name: percent(p.course.first) for p in found.places}
    best = next((p for p in found.places if p.arm.name == found.best), None)
    if best is None or best.score is None:
        return ["No two fractions have a score yet."]
    count, n = len(found.fractions), len(best.score.values)
    value = numbers.score(best.score.mean, found.metric, spread=best.score.sd)
    said = [f"Best of {count} fractions: {share[best.arm.name]} ({numbers.label(found.metric)} {value})."]
    if found.untold:
        names = ", ".join(share[name] for name in found.untold)
        said.append(f"It cannot be told from {names} with {n} seed{'s' if n != 1 else ''}.")
    else:
        said.append("It beats every other fraction.")
    said.append(
        f"All {len(found.pairs)} pairs of fractions are compared and corrected together. The best of several is also "
        "the luckiest: run it again with new seeds before its own score is quoted."
    )
    for c in found.orders:
        if c.mean_difference is None:
            continue
        half = c.half_width
        said.append(
            f"{c.a} distils first and pretrains afterwards: against {c.b} it is "
            f"{numbers.signed(c.mean_difference, c.metric, spread=half)} {numbers.unit(c.metric)} "
            f"({numbers.interval(c.low, c.high, c.metric, signs=True)}, {_told(c)})."
        )
    return said


def _told(c: Comparison) -> str:
    if not c.significant:
        return "not told apart"
    return "better" if (c.mean_difference or 0) > 0 else "worse"


def percent(share: float) -> str:
    """A fraction of the budget, "25 %"."""
    return f"{100 * share:g}\u202f%"
