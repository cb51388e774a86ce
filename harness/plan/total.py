"""The sum of a plan: every trial that is run, what judges it, the references, the controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.controls import EQUAL_TOKENS, baseline_of
from harness.plan import evaluation
from harness.plan.bill import Terms, bill
from harness.plan.speed import Pace, judging_s

if TYPE_CHECKING:
    from harness.plan.estimate import Expected
    from harness.plan.outline import Sketch


@dataclass(frozen=True)
class Made:
    """What need not be made for a study because another study of its sweep makes it.

    seeds: {arm: seeds whose trial is copied whole}; steps: {arm: steps that its other trials begin after, on another's
    trunk}; references: names of those that are judged already.
    """

    seeds: Mapping[str, frozenset[int]] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    references: frozenset[str] = frozenset()


def total(
    found: Sketch, expected: list[Expected], pace: Pace | None, watts: float | None, terms: Terms, made: Made
) -> dict[str, Any]:
    """The study: every arm at every seed, its evaluation, and the references', without what is made already."""
    seeds = len(found.study.seeds)
    # How often each arm is trained here, and what share of its steps.
    times = [seeds - len(made.seeds.get(each.arm.arm.name, ())) for each in expected]
    parts = [1 - made.steps.get(each.arm.arm.name, 0) / max(1, each.steps) for each in expected]
    runs = list(zip(expected, times, parts, strict=True))
    references = {
        name: judged for name, judged in evaluation.of_references(found).items() if name not in made.references
    }
    training = sum(n * round(part * sum(each.training_flops().values())) for each, n, part in runs)
    judged = sum(n * each.judged.flop for each, n, _ in runs)
    reference_flop = sum(reference.flop for reference in references.values())
    written = [each.disk(found) for each in expected]
    controls = _controls(found, expected)
    exports = seeds * sum(d.left_bytes for d in written)
    if controls is not None:
        exports += controls["trials"] * written[expected.index(_baseline(found, expected))].left_bytes
    snapshots = seeds * sum(d.snapshots_bytes for d in written)
    checkpoints = max(d.peak_bytes(found.study.checkpoints) - d.snapshots_bytes for d in written)
    total: dict[str, Any] = {
        "trials": sum(times),
        "trials_made": len(expected) * seeds - sum(times),
        "training_flop": training,
        "evaluation_flop": judged,
        "reference_flop": reference_flop,
        "controls": controls,
        "tokens": sum(n * round(part * each.steps) * each.arm.size.tokens for each, n, part in runs),
        "disk_peak_bytes": exports + snapshots + checkpoints,
        "disk_left_bytes": exports,
    }
    if pace is None:
        return total | dict.fromkeys(("wall_s", "training_s", "evaluation_s", "bill"))
    clocks = [
        replace(each.clock, training_s=part * each.clock.training_s)
        for each, n, part in runs for _ in range(n) if each.clock is not None
    ]  # fmt: skip
    judging = [clock.after_s for clock in clocks]
    judging += [judging_s(reference.afterwards, pace) for reference in references.values()]
    running = sum(clock.run_s for clock in clocks)
    busy = sum((c.training_s + c.validation_s) * found.world + c.vouching_s for c in clocks)
    if controls is not None:
        judging += [controls["after_s"]] * controls["trials"]
        running += controls["run_s"]
        busy += controls["busy_s"]
    ending = max(sum(judging[rank :: found.world]) for rank in range(found.world))
    wall = running + ending
    busy += sum(judging)
    billed = bill(busy, wall * found.world, watts=watts, terms=terms)
    return total | {
        "wall_s": wall,
        "training_s": sum(clock.training_s for clock in clocks),
        "evaluation_s": sum(clock.vouching_s + clock.validation_s for clock in clocks) + ending,
        "startup_s": sum(clock.startup_s for clock in clocks),
        "checkpoints_s": sum(clock.checkpoints_s for clock in clocks),
        "bill": asdict(billed),
    }


def _baseline(found: Sketch, expected: list[Expected]) -> Expected:
    name = baseline_of(found.study)
    return next(each for each in expected if each.arm.arm.name == name)


def _controls(found: Sketch, expected: list[Expected]) -> dict[str, Any] | None:
    """The baseline again at every other arm's tokens, for all seeds; None where the study asks for none.

    Seconds are None where nobody knows the speed. An arm that sees the baseline's tokens needs no control.
    """
    if EQUAL_TOKENS not in found.study.controls:
        return None
    base, seeds = _baseline(found, expected), len(found.study.seeds)
    steps = [each.steps for each in expected if each is not base and each.steps != base.steps]
    trials, share = seeds * len(steps), seeds * sum(steps) / max(1, base.steps)
    cost: dict[str, Any] = {
        "trials": trials,
        "arm": base.arm.arm.name,
        "training_flop": round(share * sum(base.training_flops().values())),
        "evaluation_flop": trials * base.judged.flop,
        **dict.fromkeys(("training_s", "run_s", "busy_s", "after_s")),
    }
    if base.clock is None:
        return cost
    clock = base.clock
    training = share * clock.training_s
    cost["training_s"], cost["after_s"] = training, clock.after_s
    cost["run_s"] = training + trials * (clock.run_s - clock.training_s)
    cost["busy_s"] = (training + trials * clock.validation_s) * found.world + trials * clock.vouching_s
    return cost
