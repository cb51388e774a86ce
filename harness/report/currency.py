"""The verdict in the other currency: each arm's score at the cheapest arm's cost, read from its own learning curve.

Arms of one study cost the same in the budget's unit and something else in every other. For each seed the cheapest arm's
whole cost in the other unit is taken, and every dearer arm's score is read where its own curve had cost as much:
linear between evaluations, per seed and paired, then compared and judged as the main verdict is. Where the deciding
score was not evaluated along the way another one stands in, and the report says which.

A point half-way is not what a budget of half the size would have given: its learning rate had not decayed, and a straight
line between evaluations lies above a falling loss. Both are to the dearer arm's disadvantage. So a dearer arm that
wins here wins all the more, and a flip towards the cheaper arm asks for a run to confirm it: the report gives the command.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from harness.budget import Account
from harness.compare import Comparison, Scores, against_baseline
from harness.report import numbers
from harness.report.axis import scale_of
from harness.report.cells import account_name
from harness.report.on_curve import OWED, SAME_COST, score_at, total_cost
from harness.report.source import Json, Run, mapping, number
from harness.report.verdict import Verdict, headline, judge
from harness.units import Unit

if TYPE_CHECKING:
    from harness.report.analysis import Analysis

Flip = Literal["no", "possible", "yes", "unknown"]
WORDS = {Unit.FLOP: "FLOPs", Unit.GPU_SECOND: "device time"}
# What can stand in for a deciding score that was not evaluated along the way, the one that measures most arms first.
STAND_IN = ("readout.loss", "mlm.loss", "clm.loss")
# Scores of one read-out: on the curve they are there together.
READ_OUT = ("readout.", "domain.")
OWN_HEAD = ("mlm.", "clm.")


@dataclass(frozen=True)
class Currency:
    """One other currency: what arms used in it, what they scored at equal cost in it, and what that says.

    `flip`: "yes" where the order of the main verdict is reversed and the reversal is significant; "possible" where
    it may be; "no" where the main verdict holds: it is of the same kind and names the same winner, or follows from the
    costs alone; "unknown" where nothing could be read, or what was read settles nothing.
    """

    unit: str
    words: str
    used: dict[str, float]
    at: float | None = None
    metric: str | None = None
    basis: str = ""
    scores: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])
    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    verdict: Verdict | None = None
    by_arm: list[Verdict] = field(default_factory=list[Verdict])
    flip: Flip = "unknown"
    sentence: str = ""
    note: str = ""
    """What the sentence adds to the verdict: where arms were read, by which score, and how to confirm a flip."""

    def as_json(self) -> Json:
        tree = {k: v for k, v in asdict(self).items() if k not in ("comparisons", "verdict", "by_arm")}
        return {
            **tree,
            "verdict": None if self.verdict is None else self.verdict.as_json(),
            "arms": [verdict.as_json() for verdict in self.by_arm],
            "comparisons": [c.as_json() for c in self.comparisons],
        }


def currencies(analysis: Analysis) -> list[Currency]:
    """FLOPs and device time, less the one that the budget is in."""
    units = [unit for unit in (Unit.FLOP, Unit.GPU_SECOND) if unit.value != analysis.unit]
    return [in_currency(analysis, unit) for unit in units] if len(analysis.arms) > 1 else []


def in_currency(analysis: Analysis, unit: Unit) -> Currency:
    """Everything that can be said at equal cost in `unit`."""
    words = WORDS[unit]
    costs = {
        arm.name: {run.seed: c for run in arm.done if (c := total_cost(run, unit)) is not None} for arm in analysis.arms
    }
    used = {name: statistics.fmean(by_seed.values()) for name, by_seed in costs.items() if by_seed}
    refused = analysis.unlike_hardware if unit is Unit.GPU_SECOND else ""
    if refused:
        text = f"not comparable, {refused}."
        return Currency(unit.value, words, used, sentence=f"In {words}: {text}", note=text)
    pair = [name for name in (analysis.verdict.a, analysis.verdict.b) if name in used]
    if len(pair) < 2 or not all(used[name] > 0 for name in pair):
        lack = " and ".join(n for n in (analysis.verdict.a, analysis.verdict.b) if n and not used.get(n))
        text = f"not measured for {lack or 'these arms'}."
        return Currency(unit.value, words, used, sentence=f"In {words}: {text}", note=text)
    if why := unpriced(analysis, unit):
        text = (
            f"not comparable, {why}. To compare there, say what it cost in the study (docs/accounting.md) and give a "
            f"budget in {words}."
        )
        return Currency(unit.value, words, used, sentence=f"In {words}: {text}", note=text)
    equal = _equal_costs(costs)
    metric, scores, basis = _scores(analysis, unit, equal)
    at = statistics.fmean(equal.values()) if equal else None
    if metric is None or analysis.baseline is None or at is None:
        return _unread(analysis, unit, used, pair, basis)
    found = against_baseline(
        {arm.name: scores.get(arm.name, {}) for arm in analysis.arms},
        analysis.baseline.name,
        metric=metric,
        meaningless=analysis.meaningless(metric),
    )
    margin = analysis.margin if metric == analysis.main else analysis.margin_for(metric)
    by_arm = [judge(c, margin=margin) for c in found]
    if not scores.get(analysis.verdict.a or ""):
        # What stands in measures other arms than those of the main verdict: the table has it, the headline not.
        told = _unread(analysis, unit, used, pair, basis)
        return replace(told, at=at, metric=metric, scores=scores, comparisons=found, by_arm=by_arm)
    verdict = headline(found, margin=margin)
    same_pair = next((c for c in found if c.a == analysis.verdict.a), None)
    stands_apart = _stands_apart(analysis, metric, margin)
    flip: Flip = "unknown" if stands_apart else _flip(analysis.verdict, same_pair, verdict)
    if stands_apart:
        basis = f"{basis}; {stands_apart}"
    elif same_pair is not None and _reversed(analysis.verdict, same_pair):
        # The answer to the main verdict comes first, whatever another contender does here.
        verdict = judge(same_pair, margin=margin)
    return Currency(
        unit=unit.value,
        words=words,
        used=used,
        at=at,
        metric=metric,
        basis=basis,
        scores=scores,
        comparisons=found,
        verdict=verdict,
        by_arm=by_arm,
        flip=flip,
        sentence=_sentence(unit, verdict, flip, note := _note(unit, used, at, flip, basis)),
        note=note,
    )


def _equal_costs(costs: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """{seed: the cheapest arm's cost}, over seeds that every arm with any cost has."""
    known = [by_seed for by_seed in costs.values() if by_seed]
    seeds = set.intersection(*(set(by_seed) for by_seed in known)) if known else set()
    return {seed: min(by_seed[seed] for by_seed in known) for seed in sorted(seeds)}


def _scores(
    analysis: Analysis, unit: Unit, equal: Mapping[int, float]
) -> tuple[str | None, dict[str, dict[int, float]], str]:
    """(metric, {arm: {seed: score at the equal cost}}, in words what was read); metric None where nothing can be."""
    main = analysis.main
    for metric in dict.fromkeys((main, *STAND_IN)):
        flagged = analysis.meaningless(metric)
        scores = {
            arm.name: {
                run.seed: value
                for run in arm.done
                if run.seed in equal and (value := score_at(analysis, run, metric, unit, equal[run.seed])) is not None
            }
            for arm in analysis.arms
            if arm.name not in flagged
        }
        # An arm that is the cheapest in some seeds has its last score there and none elsewhere: not an answer.
        scores = {name: by_seed for name, by_seed in scores.items() if len(by_seed) == len(equal)}
        if analysis.baseline and scores.get(analysis.baseline.name) and sum(map(bool, scores.values())) > 1:
            return metric, scores, _basis(analysis, metric, scores)
    return None, {}, _lack(analysis)


def unpriced(analysis: Analysis, unit: Unit) -> str:
    """Which charged account some arm owes in the budget's unit and has no price of in this one, and why; empty without."""
    for account in OWED:
        name = account_name(account.value).lower()
        for run in (run for arm in analysis.arms for run in arm.done if account.value in analysis.charged):
            known = mapping(mapping(run.record.get("accounts")).get(account.value))
            if number(known.get(analysis.unit or "")) and number(known.get(unit.value)) is None:
                return f"{name} is charged and nobody said what it cost in {WORDS[unit]}"
            if account is Account.TEACHER_TRAINING and unit is Unit.GPU_SECOND and number(known.get(unit.value)):
                there, here = _teachers_devices(run), _devices(run)
                if there is not None and here is not None and there != here:
                    return f"{name} is charged and took place on {' + '.join(there)}, not on {' + '.join(here)}"
    return ""


def _teachers_devices(run: Run) -> list[str] | None:
    """What this run's teacher was trained on, where its cost in device time is its card's."""
    told = (mapping(each) for each in run.record.get("teacher_training") or [])
    devices = next((each.get("devices") for each in told if each.get("unit") == Unit.GPU_SECOND.value), None)
    return [str(device) for device in devices] if isinstance(devices, list) else None


def _devices(run: Run) -> list[str] | None:
    devices = mapping(mapping(run.record.get("identity")).get("hardware")).get("devices")
    return [str(device) for device in devices] if isinstance(devices, list) else None


def _lack(analysis: Analysis) -> str:
    """That the deciding score cannot be read along the way, why, and what would change that, as far as anything would."""
    main, study = analysis.main, analysis.source.study
    evaluation = mapping(study.get("evaluation"))
    readout, points = evaluation.get("readout", {}), evaluation.get("curve_points")
    told = f"{numbers.label(main)} was not evaluated along the way"
    if mapping(study.get("schedule")).get("keep_trunk"):
        return f"{told}: runs that share a trunk have no curve, and the report of the whole sweep compares them"
    own = main.startswith(OWN_HEAD)
    keys = []
    if not own and readout is None:
        keys.append("evaluation.readout: {on_curve: true}")
    elif not own and not mapping(readout).get("on_curve"):
        keys.append("evaluation.readout.on_curve: true")
    if points == 0:
        keys.append("evaluation.curve_points: 4")
    remedy = f" (set {' and '.join(keys)})" if keys else ""
    choices = mapping(evaluation.get("choices"))
    listed = choices.get("tasks") if choices.get("head", "readout") == "readout" else None
    if own or main.startswith(READ_OUT) or main.removeprefix("probe.") in (listed or []):
        return f"{told}{remedy}"
    then = f"; the read-out's loss can stand in{remedy}" if remedy else ""
    return f"{numbers.label(main)} is measured at the end alone{then}"


def _basis(analysis: Analysis, metric: str, scores: Scores) -> str:
    label = numbers.label(metric)
    if metric == analysis.main and not metric.startswith(OWN_HEAD):
        text = f"{label} from the learning curves"
    elif metric == analysis.main:
        text = f"{label} from the learning curves, on validation text; at its own end each arm's is on test text"
    else:
        place = "" if metric.startswith(READ_OUT) else ", on validation text"
        text = f"{label} stands in{place}: {_lack(analysis)}"
    left = [arm.name for arm in analysis.arms if not scores.get(arm.name)]
    return f"{text}; nothing can be read for {', '.join(left)}" if left else text


def _flip(main: Verdict, same_pair: Comparison | None, other: Verdict) -> Flip:
    """Whether the order of the main verdict's pair, or its headline, is another one here."""
    if main.kind == "beats":
        if same_pair is None or same_pair.mean_difference is None:
            return "unknown"
        if _reversed(main, same_pair):
            return "yes" if same_pair.significant else "possible"
        # The order of the pair holds; another contender may lead here all the same.
        if other.better not in (None, main.better):
            return "possible"
    elif other.kind == "beats":
        return "possible"
    # The same order without its proof is no verdict that holds.
    return "no" if (other.kind, other.better) == (main.kind, main.better) else "unknown"


def _stands_apart(analysis: Analysis, metric: str, margin: float) -> str:
    """Why a stand-in's order says nothing of the main verdict's: it is another one at the equal budget already."""
    main = analysis.verdict
    if metric == analysis.main:
        return ""
    same = next((c for c in analysis.compared(metric, "baseline") if c.a == main.a), None)
    if same is None or same.mean_difference is None:
        return "how it stands at the equal budget is not known, so it tells nothing of the verdict"
    agrees = not _reversed(main, same) if main.kind == "beats" else judge(same, margin=margin).kind != "beats"
    return "" if agrees else "by that score the answer is another one at the equal budget too, so this is no flip"


def _reversed(main: Verdict, same_pair: Comparison) -> bool:
    """Whether the main verdict's winner scores worse here, significantly or not."""
    difference = same_pair.mean_difference
    return main.kind == "beats" and difference is not None and (difference > 0) != (main.better == same_pair.a)


def _sentence(unit: Unit, verdict: Verdict, flip: Flip, note: str) -> str:
    start = {"yes": "The verdict flips in ", "possible": "The verdict may flip in "}.get(flip, "In ")
    return f"{start}{WORDS[unit]}: {verdict.sentence}. {note}"


def _note(unit: Unit, used: Mapping[str, float], at: float, flip: Flip, basis: str) -> str:
    scale = scale_of(at, unit)
    cheapest = min(used, key=lambda name: used[name])
    text = f"At {scale.write(at)} {scale.name} each, what {cheapest} took; {basis}."
    if flip in ("yes", "possible"):
        text += f" Dearer arms were read before their rate had decayed; to confirm it, {_remedy(unit, at)}."
    return text


def _remedy(unit: Unit, at: float) -> str:
    return f'run the study with --budget "{at:.3g} {"flop" if unit is Unit.FLOP else "gpu-seconds"}"'


def _unread(analysis: Analysis, unit: Unit, used: dict[str, float], pair: list[str], basis: str) -> Currency:
    """Costs are known and scores at equal cost are not: what follows from the costs alone."""
    words = WORDS[unit]
    first, second = (used[name] for name in pair)
    scale = scale_of(min(first, second), unit)
    text = (
        f"{pair[0]} used {scale.write(first)} {scale.name} and {pair[1]} {scale.write(second)} {scale.name} "
        f"({numbers.ratio(first / second)}); {basis}."
    )
    winner, flip = analysis.verdict.better, "unknown"
    remedy = _remedy(unit, min(first, second))
    if winner is None:
        text += f" To see scores at equal {words}, {remedy}."
    elif used[winner] <= min(first, second) * (1 + SAME_COST):
        flip = "no"
        text += (
            f" {winner} won with no more {words}, so the order holds there too unless training longer would harm it."
        )
    else:
        flip = "possible"
        text += f" {winner} needed more {words}, so the verdict may flip there: {remedy}."
    sentence = f"In {words}: {text}"
    return Currency(unit.value, words, used, basis=basis, flip=flip, sentence=sentence, note=text)
