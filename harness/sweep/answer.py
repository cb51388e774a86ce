"""What a sweep says: for every challenger where the order flips, or what else its kind asks; and one headline."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from harness.compare import higher_is_better
from harness.errors import IsoBudgetError
from harness.ladder.breakeven import BreakEven, breakeven
from harness.ladder.crossover import Crossover, crossover
from harness.ladder.rungs import differences_of, scores_of
from harness.ladder.scaling import validated
from harness.ladder.words import Words, listed
from harness.report import numbers
from harness.report.arms import Arm
from harness.report.verdict import UNLIKE_HARDWARE
from harness.sweep.gather import Found

Along = Crossover | BreakEven


@dataclass(frozen=True)
class Line:
    """One sentence about one arm; `data` is what it was made of."""

    arm: str
    sentence: str
    data: dict[str, Any] = field(default_factory=dict)
    along: Along | None = None


@dataclass(frozen=True)
class Answer:
    """The headline first; `lines` in the order of the arms; `asides` answer what the kind asks besides.

    `currencies`: the same in the units that the budget is not in; see `harness.sweep.currency`.
    """

    headline: str
    reason: str
    lines: list[Line]
    asides: list[Line] = field(default_factory=list)
    currencies: list[Line] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        lines = {
            name: [{**line.data, "arm": line.arm, "sentence": line.sentence} for line in group]
            for name, group in (("lines", self.lines), ("asides", self.asides), ("currencies", self.currencies))
        }
        return {"headline": self.headline, "reason": self.reason, **lines}


def words_of(found: Found) -> Words:
    scale = 100.0 if numbers.percent(found.metric) or found.metric.startswith("glue.") else 1.0
    return Words(numbers.unit(found.metric), scale, found.unit)


def answer(found: Found) -> Answer:
    """The sweep's answer from the points that are there; says what is missing where that is too few.

    No curve, place or best value is drawn across unlike machines where the budget is measured.
    """
    if found.withheld:
        arms = found.arms if found.sweep.spec.kind == "tune" else found.challengers
        lines = [Line(arm.name, f"{_asked(found, arm)}: {UNLIKE_HARDWARE}") for arm in arms]
        return Answer(UNLIKE_HARDWARE[:1].upper() + UNLIKE_HARDWARE[1:], found.withheld, lines)
    if found.sweep.spec.kind == "tune":
        return _tuned(found)
    if len(found.at) < 2 or found.baseline is None or not found.challengers:
        why = "it needs two finished points" if len(found.at) < 2 else "it needs a baseline and another arm"
        return Answer("Cannot tell yet", f"{len(found.at)} of {len(found.sweep.points)} points are there; {why}", [])
    lines = [_line(found, arm.name, found.baseline.name) for arm in found.challengers]
    best = max(lines, key=_standing)
    others = (
        f", the best of {len(lines)} challengers on average; intervals hold jointly over all of them"
        if len(lines) > 1
        else ""
    )
    reason = (
        f"{numbers.label(found.metric)} over {found.kind.axis}, {len(found.at)} points from "
        f"{at(found, found.x[0])} to {at(found, found.x[-1])}; {best.arm} against {found.baseline.name}{others}"
    )
    named = best.sentence.startswith(tuple(arm.name for arm in found.arms))
    headline = best.sentence if named else best.sentence[:1].upper() + best.sentence[1:]
    return Answer(
        headline, reason, lines, _between(found, lines) + _same_method(found) + _best_point(found) + _forecasts(found)
    )


def _asked(found: Found, arm: Arm) -> str:
    """ "kd or no_kd", or an arm's name where each is tuned by itself."""
    if found.baseline is None or found.sweep.spec.kind == "tune":
        return arm.name
    return f"{arm.name} or {found.baseline.name}"


def _line(found: Found, challenger: str, baseline: str) -> Line:
    """Where this challenger and the baseline change places along the axis."""
    along: Along
    if reason := found.meaningless.get(challenger) or found.meaningless.get(baseline):
        return Line(challenger, f"{challenger} or {baseline}: cannot tell by this score: {reason}")
    try:
        family = len(found.judged)
        table, seeds = differences_of(found.ladder, challenger=challenger, baseline=baseline, metric=found.metric)
        if found.sweep.spec.kind == "amortise":
            along = breakeven(found.x, table, arm=challenger, baseline=baseline, words=words_of(found), family=family)
        else:
            along = crossover(
                found.x, table, challenger=challenger, baseline=baseline, log=found.kind.log, words=words_of(found),
                family=family,
            )  # fmt: skip
    except IsoBudgetError as error:
        return Line(challenger, f"{challenger} or {baseline}: cannot tell yet ({error})")
    return Line(challenger, along.sentence(), {"seeds": list(seeds), **along.as_json()}, along)


def _standing(line: Line) -> float:
    along = line.along.along if isinstance(line.along, BreakEven) else line.along
    return statistics.fmean(along.mean) if along is not None else float("-inf")


def _between(found: Found, lines: list[Line]) -> list[Line]:
    """Of every flip that is shown: between which points it was read off, and that its interval knows nothing of the bend there."""
    told: list[Line] = []
    for line in lines:
        along = line.along.along if isinstance(line.along, BreakEven) else line.along
        for flip in along.flips if along is not None else ():
            if not flip.shown or flip.x in found.x:
                continue
            below, above = max(x for x in found.x if x < flip.x), min(x for x in found.x if x > flip.x)
            told.append(
                Line(
                    line.arm,
                    f"between {at(found, below)} and {at(found, above)}, where {line.arm} changes places, nothing was measured: the "
                    "interval is that of the seeds on a straight line, and a point between them would show how the line bends",
                    {"below": below, "above": above},
                )
            )
    return told


def _same_method(found: Found) -> list[Line]:
    """Arms of one method under different teachers: what the other teacher, or its extra data, was worth."""
    lines: list[Line] = []
    specs = {arm.name: _method(found, arm) for arm in found.challengers}
    for first, second in combinations(found.challengers, 2):
        if specs[first.name][0] == specs[second.name][0] and specs[first.name][1] != specs[second.name][1]:
            line = _line(found, first.name, second.name)
            if not (first.name in line.sentence and second.name in line.sentence):
                line = replace(line, sentence=f"{first.name} against {second.name}: {line.sentence}")
            lines.append(line)
    return lines


def _method(found: Found, arm: Arm) -> tuple[str, str]:
    """(objective, teacher) of an arm, as its study says."""
    tree = found.at[0].point.tree
    spec = next((each for each in tree.get("arms") or [] if each.get("name") == arm.name), {})
    shared = (tree.get("teacher") or {}).get("path")
    return str(spec.get("objective")), str((spec.get("differs") or {}).get("teacher.path", shared))


def _forecasts(found: Found) -> list[Line]:
    """For budgets: what each arm's curve through the smaller ones foretold of the largest, which was held out."""
    if found.sweep.spec.kind != "crossover" or len(found.at) < 3:
        return []
    lines: list[Line] = []
    for arm in found.arms:
        if arm.name in found.meaningless:
            continue
        try:
            scores, _ = scores_of(found.ladder, [arm.name])
            foretold = validated(found.x, scores[arm.name], arm=arm.name, words=words_of(found))
        except IsoBudgetError:
            continue  # its line among the answers says what is missing
        lines.append(Line(arm.name, foretold.sentence(), foretold.as_json()))
    return lines


def _best_point(found: Found) -> list[Line]:
    """For sweeps over teachers: at which point each challenger is best. Chosen from the data, so said as that."""
    if not found.sweep.spec.kind.startswith("teacher"):
        return []
    lines: list[Line] = []
    for arm in found.judged:
        means = {each.x: m.mean for each in found.at if (m := each.analysis.score(arm.name, found.metric)) is not None}
        if not means:
            continue
        x = (max if higher_is_better(found.metric) else min)(means, key=lambda x: means[x])
        edge = "; on the edge of the range: a better one may lie beyond" if x in (found.x[0], found.x[-1]) else ""
        lines.append(
            Line(
                arm.name,
                f"{arm.name} is best with {found.kind.axis} at {at(found, x)}, chosen from these data{edge}",
                {"best": x},
            )
        )
    return lines


def _tuned(found: Found) -> Answer:
    """The best value of every arm, and whether it lies on the grid's edge."""
    if len(found.at) < 2:
        return Answer("Cannot tell yet", f"{len(found.at)} of {len(found.sweep.points)} points are there", [])
    lines: list[Line] = []
    for arm in found.arms:
        lost = [each.x for each in found.at if each.diverged(arm.name)]
        means = {
            each.x: m.mean
            for each in found.at
            if each.x not in lost and (m := each.analysis.score(arm.name, found.metric)) is not None
        }
        told = f" Diverged at {listed([f'{x:g}' for x in lost])}." if lost else ""
        if not means:
            lines.append(Line(arm.name, f"{arm.name}: no trial with a score.{told}"))
            continue
        if reason := found.meaningless.get(arm.name):
            lines.append(Line(arm.name, f"{arm.name}: cannot tell by this score: {reason}"))
            continue
        x = (max if higher_is_better(found.metric) else min)(means, key=lambda x: means[x])
        edge = x in (found.x[0], found.x[-1])
        warning = " Warning: it lies on the edge of the grid; widen the grid." if edge else ""
        score = numbers.score(means[x], found.metric)
        lines.append(
            Line(
                arm.name,
                f"{arm.name}: best {found.kind.axis} {x:g} ({numbers.label(found.metric)} {score}).{told}{warning}",
                {"best": x, "edge": edge, "scores": {f"{at:g}": mean for at, mean in means.items()}, "diverged": lost},
            )
        )
    best = {line.data["best"] for line in lines if line.data}
    if not best:
        if all(arm.name in found.meaningless for arm in found.arms):
            return Answer("Cannot tell by this score", f"{numbers.label(found.metric)} measures no arm here", lines)
        return Answer(f"No {found.kind.axis} can be named", "no trial has a score", lines)
    told = [line for line in lines if line.data]
    edges = sum(bool(line.data.get("edge")) for line in told)
    whose = "All arms are" if len(told) == len(lines) else f"{' and '.join(line.arm for line in told)} is"
    headline = (
        f"{whose} best at {found.kind.axis} {best.pop():g}"
        if len(best) == 1
        else f"Arms differ in their best {found.kind.axis}"
    )
    headline += f"; {edges} of {len(told)} on the edge of the grid" if edges else ""
    unnamed = ", ".join(line.arm for line in lines if not line.data)
    headline += f"; none can be named for {unnamed}" if unnamed else ""
    trials = f"{len(found.at)} trials of every arm, {numbers.label(found.metric)} on held-out text"
    seeds = max((len(scores) for each in found.at for scores in each.scores.values()), default=0)
    noise = "; one seed does not tell a neighbour's small difference from chance" if seeds < 2 else ""
    return Answer(
        headline, f"{trials}{noise}; the best of several is a choice from these data, not a comparison of arms", lines
    )


def at(found: Found, x: float) -> str:
    """A place on the axis in words."""
    return found.kind.write(x) if found.kind.write else words_of(found).rung(x)
