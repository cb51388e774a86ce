"""The two bar figures: each arm's effect against the baseline with its interval, and each arm's cost by account."""

from __future__ import annotations

from dataclasses import dataclass

from harness.budget import Account
from harness.compare import Comparison
from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.arms import Arm
from harness.report.axis import Tick, axis, scale_of
from harness.report.cells import account_name
from harness.report.source import mapping
from harness.report.verdict import Verdict
from harness.units import Unit

# Tints of an arm's colour, by account: the student's own step is solid.
TINTS = ("STUDENT_STEP", "TEACHER_FORWARD", "OBJECTIVE")


@dataclass(frozen=True)
class Effect:
    """One arm against the baseline: places in per cent of the track; `low` is None without an interval."""

    arm: str
    index: int
    middle: float | None
    low: float | None
    width: float | None
    words: str
    tip: str
    meaningful: bool


@dataclass(frozen=True)
class Effects:
    """The forest plot: its rows, ticks, zero line, and the band of differences too small to matter."""

    rows: list[Effect]
    ticks: list[Tick]
    zero: float
    band_low: float
    band_width: float
    baseline: str
    unit: str


def effects(analysis: Analysis) -> Effects | None:
    """Every arm's difference to the baseline on the deciding score; None where no two arms share a seed."""
    shown = [c for c in analysis.compared(analysis.main, "baseline") if c.mean_difference is not None]
    if not shown or analysis.baseline is None:
        return None
    metric = analysis.main
    worth = 100.0 if numbers.unit(metric) == "points" and numbers.percent(metric) else 1.0
    ends = [worth * v for c in shown for v in (c.mean_difference, c.low, c.high) if v is not None]
    margin = worth * analysis.margin
    low, high = min(*ends, -margin, 0.0), max(*ends, margin, 0.0)
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 3)

    index = {arm.name: arm.index for arm in analysis.arms}
    verdicts = {verdict.a: verdict for verdict in analysis.by_arm}
    rows = [
        Effect(
            arm=c.a,
            index=index[c.a],
            middle=place(worth * (c.mean_difference or 0.0)),
            low=None if c.low is None else place(worth * c.low),
            width=None if c.low is None or c.high is None else place(worth * c.high) - place(worth * c.low),
            words=_words(c, verdicts[c.a]),
            tip=f"{numbers.signed(c.mean_difference, metric, spread=c.half_width)} "
            f"({numbers.interval(c.low, c.high, metric, signs=True)}), {c.n} seeds",
            meaningful=c.meaningful,
        )
        for c in shown
    ]
    return Effects(
        rows=rows,
        ticks=axis(low, high),
        zero=place(0.0),
        band_low=place(-margin),
        band_width=place(margin) - place(-margin),
        baseline=analysis.baseline.name,
        unit=numbers.unit(metric),
    )


def _words(c: Comparison, verdict: Verdict) -> str:
    size = numbers.amount_of(c.mean_difference or 0.0, c.metric, spread=c.half_width)
    if verdict.kind == "beats" and c.half_width is not None:
        way = "better" if verdict.better == c.a else "worse"
        return f"{way} by {size} ± {numbers.amount_of(c.half_width, c.metric, spread=c.half_width)}"
    if verdict.kind == "no difference":
        return verdict.sentence.split(": ", 1)[1]
    if not c.meaningful:
        return "not comparable"
    return verdict.sentence.rsplit(": ", 1)[1].replace(" yet, run", ":").replace("at least", "≥")


@dataclass(frozen=True)
class Segment:
    """A part of a bar, in per cent of the track; `tint` 0 is solid, 3 is the palest, "free" is not charged."""

    width: float
    tint: str
    tip: str


@dataclass(frozen=True)
class Bar:
    """One arm's cost in one currency."""

    segments: list[Segment]
    text: str


@dataclass(frozen=True)
class Costs:
    """Bars of all arms in the budget's unit and in the other currency, with the legend of tints."""

    titles: tuple[str, str]
    rows: list[tuple[str, int, Bar, Bar]]
    legend: list[tuple[str, str]]


def costs(analysis: Analysis) -> Costs | None:
    """None before any run is finished."""
    arms = [arm for arm in analysis.arms if arm.done]
    if not arms:
        return None
    unit = analysis.unit or Unit.FLOP.value
    other = Unit.FLOP.value if unit == Unit.GPU_SECOND else Unit.GPU_SECOND.value
    first = _bars(analysis, arms, unit, reach=float(analysis.budget.limit) if analysis.budget else None)
    second = _bars(analysis, arms, other, reach=None)
    used = {segment.tint: segment.tip.split(":")[0] for bar in (*first, *second) for segment in bar.segments}
    order = ["0", "1", "2", "3", "free", "whole"]
    names = {"3": "Other charged accounts", "free": "Not charged", "whole": "Not split by account"}
    return Costs(
        titles=(_title(unit), _title(other)),
        rows=[(arm.name, arm.index, a, b) for arm, a, b in zip(arms, first, second, strict=True)],
        legend=[(tint, names.get(tint, used[tint])) for tint in order if tint in used],
    )


def _title(unit: str) -> str:
    words = {Unit.FLOP.value: "FLOPs", Unit.GPU_SECOND.value: "Device time", Unit.TOKEN.value: "Tokens"}
    words |= {Unit.JOULE.value: "Energy", Unit.SECOND.value: "Time"}
    return words.get(unit, unit)


def _bars(analysis: Analysis, arms: list[Arm], unit: str, *, reach: float | None) -> list[Bar]:
    """With `reach` (the budget) only charged accounts; without it, uncharged ones follow, marked as such."""
    parts = [_parts(analysis, arm, unit, free=reach is None) for arm in arms]
    longest = max((sum(amount for _, amount, _ in row) for row in parts), default=0.0)
    full = max(longest, reach or 0.0) or 1.0
    charged_sums = [sum(amount for _, amount, tint in row if tint != "free") for row in parts]
    scale = scale_of(min((amount for amount in charged_sums if amount > 0), default=1.0), unit)
    bars: list[Bar] = []
    for row, charged in zip(parts, charged_sums, strict=True):
        segments = [
            Segment(round(100 * amount / full, 3), tint, f"{name}: {scale.write(amount)} {scale.name}")
            for name, amount, tint in row
            if amount > 0
        ]
        bars.append(Bar(segments, f"{scale.write(charged)} {scale.name}" if row else "not measured"))
    return bars


def _parts(analysis: Analysis, arm: Arm, unit: str, *, free: bool) -> list[tuple[str, float, str]]:
    accounts = {str(a) for run in arm.done for a in mapping(run.record.get("accounts"))}
    order = [*TINTS, *sorted(accounts - set(TINTS))]
    charged = set(analysis.charged) or set(TINTS)
    parts = [
        (account_name(a), amount, str(TINTS.index(a)) if a in TINTS else "3")
        for a in order
        if a in charged and (amount := arm.account(a, unit)) is not None
    ]
    if not parts:
        whole = (
            arm.mean("seconds") if unit == Unit.GPU_SECOND else arm.mean("charged") if unit == analysis.unit else None
        )
        parts = [("Total", whole, "whole")] if whole is not None else []
    if free:
        parts += [
            (account_name(a), amount, "free")
            for a in order
            # A teacher's training is no part of a run and would dwarf it; the accounts' table has it.
            if a not in charged and a != Account.TEACHER_TRAINING and (amount := arm.account(a, unit)) is not None
        ]
    return parts
