"""A teacher's cache before it is written: samples, bytes, cost, how often each is read, and from which use on it pays.

In FLOPs a sample costs the same once, asked or remembered, so every further use is a gain. In device time writing and reading
have a price of their own: with t seconds of asking and b bytes a sample, n uses cost n · t asked, and
t + b / W + n · b / R remembered.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.budget import Account
from harness.data import mixture
from harness.data.repeats import Repeats
from harness.plan.speed import WRITE_BYTE_S
from harness.teacher_cache.content import Content
from harness.teacher_cache.coverage import most_steps, sample_price

if TYPE_CHECKING:
    from harness.objectives.composition import Plan
    from harness.plan.outline import Sketch
    from harness.plan.speed import StepTime
    from harness.setting import ArmSetting

# Where nobody has measured the disk: it reads as fast as it writes.
READ_BYTE_S = WRITE_BYTE_S


def repeats(found: Sketch) -> Repeats:
    """Which samples come again; none where nobody knows how much text there is."""
    data = found.study.data
    sizes = [found.train_blocks[source.label] for source in data.sources]
    shares = mixture.shares([source.weight for source in data.sources])
    cycle = 1 if found.study.causal else data.mask_epochs
    known = [size for size in sizes if size is not None]
    return (
        Repeats(tuple(known or [1]), shares, cycle)
        if len(known) == len(sizes)
        else Repeats((1,) * len(sizes), shares, None)
    )


def distinct(found: Sketch, arm: ArmSetting, steps: int) -> int:
    """Different samples in so many steps."""
    return sum(repeats(found).distinct(steps * arm.size.sequences))


def steps_of(found: Sketch, arm: ArmSetting, plan: Plan, limit: float) -> int:
    """Steps of an arm of one phase whose teacher is remembered; `limit` is what is left of a counted budget for them."""
    ledger = arm.ledger()
    policy = arm.study.accounting.teacher_cache
    sample = sample_price(
        arm.sample_flop(plan), shared_by=1 if isinstance(policy, str) else policy.amortised_over,
        unit=ledger.budget.unit, charged=arm.study.charged,
    )  # fmt: skip
    meters = arm.analytic_meters(plan, arm.cache_meter(plan, fresh=lambda: 0))
    price = ledger.price(charge for meter in meters for charge in meter.next_step(0))
    return most_steps(limit, price=price, sample_price=sample, distinct=lambda steps: distinct(found, arm, steps))


@dataclass(frozen=True)
class Remembered:
    """`flop` and `bytes` are of all samples, `share_flop` what this arm is told to pay. `uses` counts how often a sample is
    read here, by all arms and seeds that share it. The break-even is in uses of a sample, None where it is never reached."""

    samples: int
    bytes: float
    flop: int
    share_flop: int
    charged: bool
    uses: float
    pays_from_uses_flop: int
    pays_from_uses_device: float | None
    writing_s: float | None
    reading_s: float | None


def remembered(
    found: Sketch, arm: ArmSetting, plan: Plan, steps: int, time: StepTime | None, *, half_teacher: bool
) -> Remembered | None:
    """What this arm's cache will be; None for a teacher that is asked."""
    if not arm.remembers(plan) or not steps:
        return None
    content = _content(arm, plan)
    samples, sequences = distinct(found, arm, steps), arm.size.sequences
    row_bytes = content.row_bytes(2 if half_teacher else 4)
    flop = arm.sample_flop(plan) * samples
    policy = arm.study.accounting.teacher_cache
    share = flop if isinstance(policy, str) else flop // policy.amortised_over
    sharers = sum(_same(arm, other) for other in found.arms.values())
    seeds = len(found.study.seeds) if found.study.data.seed is not None else 1
    pays = writing = reading = None
    if time is not None:
        asking = time.teacher_s * found.world / sequences
        reading = row_bytes / READ_BYTE_S
        writing = asking + row_bytes / WRITE_BYTE_S
        pays = writing / (asking - reading) if asking > reading else None
    return Remembered(
        samples, float(samples) * row_bytes, flop, share, Account.TEACHER_CACHE in arm.study.charged,
        steps * sequences / samples * sharers * seeds, 1, pays,
        None if writing is None else samples * writing / found.world,
        None if reading is None else steps * sequences * reading / found.world,
    )  # fmt: skip


def row(each: Remembered | None) -> dict[str, Any] | None:
    return None if each is None else asdict(each)


def _content(arm: ArmSetting, plan: Plan) -> Content:
    assert arm.teacher is not None
    spec = arm.study.speed.teacher_cache
    assert spec is not None
    return Content.of(plan, arm.teacher.shape, arm.size, spec, arm=arm.arm.name)


def _same(arm: ArmSetting, other: ArmSetting) -> bool:
    """Whether another arm reads the same cache."""
    theirs = other.plan()
    if not other.remembers(theirs) or other.teacher is None or arm.teacher is None:
        return False
    return other.teacher.path == arm.teacher.path and _content(other, theirs) == _content(arm, arm.plan())
