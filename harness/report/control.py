"""The equal-tokens control: a teacher's gain per token told apart from the price of its tokens.

A distilled arm sees fewer tokens than the baseline, because each costs more. A control run is one of the two trained
on as many tokens as the other, whatever that costs; it is no contestant and enters no verdict. Then

    difference at equal cost = gain per token + price per token

where the gain compares both arms after equally many tokens, and the price is what the dearer tokens took away.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.compare import Comparison, compare
from harness.report.arms import Arm, objective_words
from harness.report.source import Json, Run, number

if TYPE_CHECKING:
    from harness.report.analysis import Analysis

# Runs whose tokens differ by less than this saw equally many: a step more or less.
SAME_TOKENS = 0.02


@dataclass(frozen=True)
class Split:
    """One contender's difference to the baseline in two parts, each with its interval over the seeds of all three runs."""

    arm: str
    baseline: str
    control: str
    tokens: float
    net: Comparison
    gain: Comparison
    price: Comparison

    def as_json(self) -> Json:
        return asdict(self)


def splits(analysis: Analysis) -> list[Split]:
    """A split for every contender that has a control; nothing where no control was run."""
    baseline, metric = analysis.baseline, analysis.main
    if baseline is None:
        return []
    found: list[Split] = []
    grouped: dict[tuple[str, str | None], list[Run]] = defaultdict(list)
    for run in analysis.source.controls:
        if run.done and run.control:
            of = run.control.get("of")
            grouped[run.arm, str(of) if of else None].append(run)
    base = _by_seed(baseline.done)
    for arm in analysis.arms:
        if arm.baseline:
            continue
        mine = _by_seed(arm.done)
        for (name, of), runs in grouped.items():
            if of not in (None, arm.name, baseline.name):
                continue  # another contender's control
            controls = _by_seed(runs)
            seeds = sorted(set(base) & set(mine) & set(controls))
            kind = _kind(arm, baseline, [(base[s], mine[s], controls[s]) for s in seeds])
            if not seeds or kind is None:
                continue
            label = f"{name} at {(arm if kind == 'baseline' else baseline).name}'s tokens"
            scores = {
                baseline.name: _scores(base, seeds, metric),
                arm.name: _scores(mine, seeds, metric),
                label: _scores(controls, seeds, metric),
            }
            # A control trains one of the two objectives: the gain compares it with the run of equally many tokens.
            equal = (arm.name, label) if kind == "baseline" else (label, baseline.name)
            dear = (label, baseline.name) if kind == "baseline" else (arm.name, label)
            pairs = [(arm.name, baseline.name), equal, dear]
            # The control trains one of the two objectives, and the head that goes with it.
            flagged = analysis.meaningless(metric)
            trained = baseline if kind == "baseline" else arm
            flagged |= {label: flagged[trained.name]} if trained.name in flagged else {}
            net, gain, price = compare(scores, pairs, metric=metric, family="control", meaningless=flagged)
            tokens = statistics.fmean(number(controls[s].record.get("tokens")) or 0.0 for s in seeds)
            found.append(Split(arm.name, baseline.name, label, tokens, net, gain, price))
    return found


def _kind(arm: Arm, baseline: Arm, triples: Iterable[tuple[Run, Run, Run]]) -> str | None:
    """ "baseline" where the control is the baseline on the arm's tokens, "arm" where it is the arm on the baseline's."""
    kinds: set[str | None] = set()
    for base, mine, control in triples:
        words = objective_words(control.record.get("objective"))
        if words == baseline.objective and _same_tokens(control, mine):
            kinds.add("baseline")
        elif words == arm.objective and _same_tokens(control, base):
            kinds.add("arm")
        else:
            kinds.add(None)
    return kinds.pop() if len(kinds) == 1 else None


def _same_tokens(a: Run, b: Run) -> bool:
    first, second = number(a.record.get("tokens")), number(b.record.get("tokens"))
    return bool(first and second and abs(first - second) <= SAME_TOKENS * second)


def _by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    return {run.seed: run for run in runs}


def _scores(runs: Mapping[int, Run], seeds: Iterable[int], metric: str) -> dict[int, float]:
    return {seed: value for seed in seeds if (value := runs[seed].scores.get(metric)) is not None}
