"""How equal the cost was: what every arm really spent in a measured unit, and whether the hardware was the same.

FLOPs and tokens are counted, and a cut is the same everywhere. Device time, energy and seconds are measured: a run stops
within one predicted step of its limit, and clocks differ. The realised spread is shown and a difference between arms
above 0.5 % is flagged. Between unlike machines measured units mean nothing, so such arms are not compared by them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report.arms import Arm
from harness.report.source import Run, mapping, number

if TYPE_CHECKING:
    from harness.report.analysis import Analysis

# Arms whose mean measured cost differs by more than this share did not cost the same.
UNEQUAL = 0.005


@dataclass(frozen=True)
class Spread:
    """What the finished runs of one arm spent of the budget; `apart`: the mean against the cheapest arm's mean."""

    arm: str
    runs: int
    mean: float
    smallest: float
    largest: float
    within: float
    apart: float


def spreads(analysis: Analysis) -> list[Spread]:
    """The realised cost of every arm in the budget's unit; empty where nothing is finished."""
    charged = {arm.name: [c for run in arm.done if (c := number(run.record.get("charged")))] for arm in analysis.arms}
    means = {name: statistics.fmean(values) for name, values in charged.items() if values}
    cheapest = min(means.values(), default=0.0)
    return [
        Spread(
            arm=name,
            runs=len(charged[name]),
            mean=mean,
            smallest=min(charged[name]),
            largest=max(charged[name]),
            within=(max(charged[name]) - min(charged[name])) / mean if mean else 0.0,
            apart=mean / cheapest - 1 if cheapest else 0.0,
        )
        for name, mean in means.items()
    ]


def unequal(analysis: Analysis, found: list[Spread]) -> list[str]:
    """A sentence where a measured budget was not spent equally; counted budgets are equal to within a step by law."""
    budget = analysis.budget
    if budget is None or budget.unit.deterministic or not found:
        return []
    dearest = max(found, key=lambda s: s.apart)
    texts = []
    if dearest.apart > UNEQUAL:
        cheapest = min(found, key=lambda s: s.apart)
        texts.append(
            f"Arms did not cost the same: {dearest.arm} took {dearest.apart:.2%} more of the budget's unit than "
            f"{cheapest.arm}, above the {UNEQUAL:.1%} that measured units are held to."
        )
    texts += [
        f"{s.arm}: its runs' costs differ by {s.within:.2%}, above {UNEQUAL:.1%}." for s in found if s.within > UNEQUAL
    ]
    return [text.replace("%", "\u202f%") for text in texts]


def unlike_hardware(arms: list[Arm]) -> str:
    """Why device time cannot be compared between these arms, or nothing.

    Pairing is by seed: arms may move to another machine from seed to seed, if all of a seed's arms move together.
    """
    by_seed: dict[int, dict[str, str]] = defaultdict(dict)
    for arm in arms:
        for run in arm.done:
            machine = hardware_of(run)
            if machine:
                by_seed[run.seed][arm.name] = machine
    for seed, machines in sorted(by_seed.items()):
        if len(set(machines.values())) > 1:
            (first, one), (second, other) = _unlike(machines)
            return f"of seed {seed}, {first} ran on {one} and {second} on {other}"
    return ""


def _unlike(machines: dict[str, str]) -> tuple[tuple[str, str], tuple[str, str]]:
    (first, one), *rest = machines.items()
    return (first, one), next((name, other) for name, other in rest if other != one)


def hardware_of(run: Run) -> str:
    """Devices and ranks of a run in words; nothing where its record does not say."""
    identity = mapping(run.record.get("identity"))
    devices = mapping(identity.get("hardware")).get("devices")
    ranks = mapping(identity.get("world_size")).get("ranks")
    if not isinstance(devices, list) or not devices:
        return ""
    return f"{' + '.join(map(str, devices))} × {ranks} rank{'s' if ranks != 1 else ''}" if ranks else str(devices[0])
