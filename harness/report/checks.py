"""What a reader should beware of: books that do not balance, known failure signatures, and the second currency.

The signatures are those of the distillation literature: a student no better than its own initialisation or
than training from scratch, a distillation loss that stops falling early, a teacher hardly better than the student.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

from harness.report import numbers
from harness.report.analysis import Analysis, better_of, describe_unit
from harness.report.arms import Arm, device_seconds
from harness.report.axis import scale_of
from harness.report.source import Json, Run, mapping, number
from harness.report.verdict import LOSS_MARGIN, SHARE_MARGIN
from harness.units import Unit

# A loss that gains less than this share of its whole fall in the last half of the budget has stopped falling.
PLATEAU = 0.02
# Sums of measured charges may differ in the last bits.
_EXACT = 1e-9


def check(analysis: Analysis) -> None:
    """Append every warning, and fill in the second currency."""
    analysis.device_time = second_currency(analysis)
    found = [*_recorded(analysis), *_books(analysis), *_signatures(analysis), *_probes(analysis)]
    analysis.warnings += [text for text in dict.fromkeys(found) if text not in analysis.warnings]


def second_currency(analysis: Analysis) -> Json:
    """What the two arms of the headline used in device time (in FLOPs, when device time was the budget).

    Scores part-way through a run are no substitute for runs of equal device time: the learning rate has
    not been annealed there. So nothing is interpolated; the sentence says what was measured and what was not.
    """
    verdict = analysis.verdict
    pair = [arm for name in (verdict.a, verdict.b) for arm in analysis.arms if arm.name == name]
    if len(pair) < 2:
        return {"sentence": "", "used": {}, "unit": None, "flip": "unknown"}
    seeds = set(pair[0].seeds) & set(pair[1].seeds)
    timed = analysis.unit in (Unit.GPU_SECOND, Unit.ALLOCATED_GPU_SECOND)
    unit = Unit.FLOP if timed else Unit.GPU_SECOND
    used = {arm.name: _flop(arm, analysis) if timed else device_seconds(arm, seeds) for arm in pair}
    (a, first), (b, second) = used.items()
    if not first or not second:
        sentence = f"{'FLOPs' if timed else 'Device time'} of {a} and {b}: not measured for both."
        return {"sentence": sentence, "used": used, "unit": unit.value, "flip": "unknown"}
    scale = scale_of(min(first, second), unit)
    sentence = (
        f"At equal {describe_unit(analysis.unit)}, {a} used {scale.write(first)} {scale.name} "
        f"and {b} {scale.write(second)} {scale.name} ({numbers.ratio(first / second)})."
    )
    winner, flip = verdict.better, "unknown"
    remedy = f'run the study with --budget "{min(first, second):.3g} {"flop" if timed else "gpu-seconds"}"'
    other = "FLOPs" if timed else "device time"
    if winner is None:
        sentence += f" Scores at equal {other} were not measured; to see them, {remedy}."
    elif (used[winner] or 0) <= min(first, second):
        flip = "no"
        sentence += (
            f" {winner} won with less {other}, so the order holds there too unless training longer would harm it."
        )
    else:
        flip = "possible"
        sentence += f" {winner} needed more {other}, so the order may flip there. That was not measured: {remedy}."
    return {"sentence": sentence, "used": used, "unit": unit.value, "flip": flip}


def _flop(arm: Arm, analysis: Analysis) -> float | None:
    amounts = [arm.account(account, Unit.FLOP) for account in analysis.charged]
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


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


def _signatures(analysis: Analysis) -> Iterator[str]:
    metric = analysis.main
    for arm in analysis.arms:
        mine = analysis.score(arm.name, metric)
        untrained = analysis.references.get("untrained", {}).get(metric)
        flagged = arm.name in analysis.meaningless(metric)
        if mine and untrained is not None and not flagged and not better_of(metric, mine.mean, untrained):
            figures = f"{numbers.score(mine.mean, metric)} against {numbers.score(untrained, metric)}"
            yield f"{arm.name} is no better than the untrained student in {numbers.label(metric)} ({figures})."
        for run in arm.done:
            if mine is None or run.seed not in mine.values:
                yield f"{arm.name}, seed {run.seed}: no finite {numbers.label(metric)}; the run is left out of the verdict."
        if _flat(arm.done):
            yield f"{arm.name}: the training objective stopped falling before half of the budget was spent."
    for verdict in analysis.by_arm:
        if verdict.worse and verdict.better and analysis.baseline and verdict.better == analysis.baseline.name:
            yield f"{verdict.worse} is clearly worse than {verdict.better}."
    yield from _teacher(analysis)
    for reason in analysis.flags([metric]):
        yield f"The deciding score cannot decide: {reason}."


def _teacher(analysis: Analysis) -> Iterator[str]:
    metric = analysis.main
    teacher = analysis.references.get("teacher", {}).get(metric)
    means = [(m.mean, arm.name) for arm in analysis.arms if (m := analysis.score(arm.name, metric))]
    if teacher is None or not means:
        return
    best, name = max(means) if better_of(metric, 1, 0) else min(means)
    gap = LOSS_MARGIN if metric.endswith("loss") else SHARE_MARGIN
    lead = teacher - best if better_of(metric, 1, 0) else best - teacher
    if lead < gap:
        yield (
            f"The teacher ({numbers.score(teacher, metric)}) is not clearly better than the student {name} "
            f"({numbers.score(best, metric)}): it has little left to teach."
        )


def _flat(runs: list[Run]) -> bool:
    """True when, on average over runs, the second half of the budget adds next to nothing to the loss's fall."""
    shares: list[float] = []
    for run in runs:
        losses = [value for row in run.steps if (value := number(row.get("loss"))) is not None]
        tenth = len(losses) // 10
        if tenth < 2:
            return False
        start, middle, end = (
            statistics.fmean(losses[i : i + tenth]) for i in (0, len(losses) // 2, len(losses) - tenth)
        )
        if start <= end:
            return False
        shares.append((middle - end) / (start - end))
    return bool(shares) and statistics.fmean(shares) < PLATEAU


def _probes(analysis: Analysis) -> Iterator[str]:
    for probe in analysis.probes:
        if probe.informative is None:
            yield f"{numbers.label(probe.metric)} was not checked for information and is left out of the average."
        elif not probe.informative:
            yield (
                f"{numbers.label(probe.metric)} is uninformative: the teacher ({numbers.score(probe.teacher, probe.metric)}) "
                f"does not clearly beat the untrained student ({numbers.score(probe.untrained, probe.metric)})."
            )
