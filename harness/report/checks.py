"""What a reader should beware of: books that do not balance, unequal costs, and the alarms of known failure signatures."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

from harness import alarms
from harness.alarms import Alarm, Copied
from harness.compare import higher_is_better
from harness.report import numbers
from harness.report.analysis import Analysis, better_of
from harness.report.arms import Arm
from harness.report.noise import unequal
from harness.report.source import Run, mapping, number
from harness.report.verdict import LOSS_MARGIN, SHARE_MARGIN

# Sums of measured charges may differ in the last bits.
_EXACT = 1e-9
# Students this close in parameters are equally large.
_SAME_SIZE = 0.02


def check(analysis: Analysis) -> None:
    """Append every warning and raise every alarm."""
    analysis.alarms = list(_alarms(analysis))
    found = [
        *_recorded(analysis),
        *_books(analysis),
        *unequal(analysis, analysis.spreads),
        *_machines(analysis),
        *_unscored(analysis),
        *_probes(analysis),
    ]
    analysis.warnings += [text for text in dict.fromkeys(found) if text not in analysis.warnings]


def _machines(analysis: Analysis) -> Iterator[str]:
    if analysis.unlike_hardware:
        yield f"Device time and energy are not comparable: {analysis.unlike_hardware}."


def _recorded(analysis: Analysis) -> Iterator[str]:
    """The runs' own warnings, each once, with the seeds that raised it."""
    raised: dict[tuple[str, str], list[int]] = defaultdict(list)
    for arm in analysis.arms:
        for run in arm.runs:
            for text in run.warnings:
                raised[arm.name, text].append(run.seed)
    for (arm, text), seeds in raised.items():
        yield f"{arm}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {text}"


def _books(analysis: Analysis) -> Iterator[str]:
    budget = analysis.budget
    if budget is None:
        return
    for arm in analysis.arms:
        for run in arm.done:
            charged, price = number(run.record.get("charged")), number(run.record.get("step_price"))
            where = f"{arm.name}, seed {run.seed}"
            if charged is None:
                yield f"{where}: the record has no charged cost."
                continue
            # A deterministic unit never exceeds its limit; a measured one may by at most a predicted step.
            allowed = 0.0 if budget.unit.deterministic else (price or 0.0)
            if charged > budget.limit + allowed:
                over = numbers.cost(charged - budget.limit, analysis.unit)
                yield f"{where}: spent {over} more than the budget of {budget}."
            if price and budget.limit - charged >= price * (1 if budget.unit.deterministic else 2):
                yield (
                    f"{where}: stopped {numbers.cost(budget.limit - charged, analysis.unit)} below the budget, "
                    f"although a step costs {numbers.cost(price, analysis.unit)}."
                )
            posted = number(mapping(run.posted).get("spent"))
            if posted is not None and abs(posted - charged) > _EXACT * budget.limit:
                yield (
                    f"{where}: the ledger ends at {numbers.cost(posted, analysis.unit)}, "
                    f"the record says {numbers.cost(charged, analysis.unit)}."
                )


def _unscored(analysis: Analysis) -> Iterator[str]:
    metric = analysis.main
    for arm in analysis.arms:
        mine = analysis.score(arm.name, metric)
        for run in arm.done:
            if mine is None or run.seed not in mine.values:
                yield f"{arm.name}, seed {run.seed}: no finite {numbers.label(metric)}; the run is left out of the verdict."
    for reason in analysis.flags([metric]):
        yield f"The deciding score cannot decide: {reason}."


def _alarms(analysis: Analysis) -> Iterator[Alarm]:
    """The failure signatures of `harness.alarms`, read from scores, curves and records."""
    metric = analysis.main
    for arm in analysis.arms:
        mine = analysis.score(arm.name, metric)
        untrained = analysis.references.get("untrained", {}).get(metric)
        flagged = arm.name in analysis.meaningless(metric)
        if mine and untrained is not None and not flagged and not better_of(metric, mine.mean, untrained):
            figures = f"{numbers.score(mine.mean, metric)} against {numbers.score(untrained, metric)}"
            text = f"{arm.name} is no better than the untrained student in {numbers.label(metric)} ({figures})."
            yield Alarm("no_better_than_untrained", arm.name, text)
        if arm.done:
            yield from alarms.stalled([run.steps for run in arm.done], arm=arm.name)
        for run in arm.done:
            steps, skipped = run.record.get("steps"), run.record.get("skipped_steps")
            yield from alarms.unstable(run.steps, arm=arm.name, seed=run.seed, steps=steps, skipped=skipped)
        yield from _copied(analysis, arm)
        asked = (mapping(mapping(run.record.get("teacher")).get("before_training")) for run in arm.done)
        yield from alarms.weak_teacher(next(filter(None, asked), {}), arm=arm.name)
    yield from _below_no_kd(analysis)
    yield from _teacher(analysis)


def _below_no_kd(analysis: Analysis) -> Iterator[Alarm]:
    """Distilled arms that are clearly worse than the arm from scratch, be it the study's baseline or not."""
    scratch = sorted((arm for arm in analysis.arms if arm.from_scratch), key=lambda arm: not arm.baseline)
    if not scratch:
        return
    verdicts = analysis.by_arm
    if not scratch[0].baseline:
        verdicts = analysis.judged_against(scratch[0].name)
    distilled = {arm.name for arm in analysis.arms if not arm.from_scratch}
    for verdict in verdicts:
        if verdict.worse in distilled and verdict.better == scratch[0].name:
            text = f"{verdict.worse} is clearly worse than {verdict.better}, which had no teacher."
            yield Alarm("below_baseline", str(verdict.worse), text)


def _copied(analysis: Analysis, arm: Arm) -> Iterator[Alarm]:
    """Compare an arm's share of repeated teacher errors with that of an equally large arm which had no teacher.

    By the own heads where both were trained, for that is where answers are copied; else by the read-outs. Seeds answer
    the same positions, so their mean share counts for one seed's number of positions.
    """
    alike = [each for each in analysis.arms if each.from_scratch and _same_size(arm, each)]
    baseline = min(alike, key=lambda each: not each.baseline, default=None)
    if baseline is None or arm.from_scratch:
        return
    heads = ("mlm", "clm") if arm.head_trained and baseline.head_trained else ("readout",)
    mine, theirs = _repeated(arm.done, heads), _repeated(baseline.done, heads)
    if mine and theirs and min(e for e, _ in (*mine, *theirs)) > 0:
        errors = round(min(e for e, _ in (*mine, *theirs)))
        shares = statistics.fmean(s for _, s in mine), statistics.fmean(s for _, s in theirs)
        copied = Copied(errors, *shares, gain=_gain(analysis, arm, baseline, heads))
        yield from alarms.copies_errors(copied, arm=arm.name, baseline=baseline.name)


def _same_size(arm: Arm, other: Arm) -> bool:
    mine, theirs = arm.mean("parameters"), other.mean("parameters")
    return mine is not None and theirs is not None and abs(mine - theirs) <= _SAME_SIZE * theirs


def _gain(analysis: Analysis, arm: Arm, baseline: Arm, heads: tuple[str, ...]) -> float:
    """How many times more often an arm is right than the baseline, by one of these heads; 1 where nobody knows."""
    for head in heads:
        mine, theirs = (analysis.score(each.name, f"{head}.accuracy") for each in (arm, baseline))
        if mine and theirs and theirs.mean > 0:
            return mine.mean / theirs.mean
    return 1.0


def _repeated(runs: list[Run], heads: tuple[str, ...]) -> list[tuple[float, float]]:
    """(the teacher's errors, the share repeated by one of these heads) of every run that was asked."""
    rows = [mapping(run.record.get("copied")) for run in runs]
    pairs = [(number(row.get("errors")), number(row.get(head))) for row in rows for head in heads if head in row]
    return [(errors, share) for errors, share in pairs if errors is not None and share is not None]


def _teacher(analysis: Analysis) -> Iterator[Alarm]:
    metric = analysis.main
    teacher = analysis.references.get("teacher", {}).get(metric)
    means = [(m.mean, arm.name) for arm in analysis.arms if (m := analysis.score(arm.name, metric))]
    if teacher is None or not means:
        return
    best, name = max(means) if better_of(metric, 1, 0) else min(means)
    gap = SHARE_MARGIN if higher_is_better(metric) else LOSS_MARGIN
    lead = teacher - best if better_of(metric, 1, 0) else best - teacher
    if lead < gap:
        text = (
            f"The teacher ({numbers.score(teacher, metric)}) is not clearly better than the student {name} "
            f"({numbers.score(best, metric)}): it has little left to teach."
        )
        yield Alarm("weak_teacher", name, text)


def _probes(analysis: Analysis) -> Iterator[str]:
    for probe in analysis.probes:
        if probe.informative is None:
            yield f"{numbers.label(probe.metric)} was not checked for information and is left out of the average."
        elif not probe.informative:
            yield (
                f"{numbers.label(probe.metric)} is uninformative: the teacher ({numbers.score(probe.teacher, probe.metric)}) "
                f"does not clearly beat the untrained student ({numbers.score(probe.untrained, probe.metric)})."
            )
