"""Learning curves over budget spent: one light line per seed, one strong line for their mean.

A panel holds only what may be compared: the common readout for all arms, the own MLM score for arms with
a trained head, and each training objective alone, relative to its start, because losses of different
methods have no common scale.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.arms import Arm
from harness.report.axis import Tick, axis, scale_of
from harness.report.source import Json, Run, number

Point = tuple[float, float]
# Training losses are averaged in this many slices of the budget: enough for the eye, little to store.
SLICES = 100
# Labels at the lines' ends need this many pixels each.
LABEL_HEIGHT = 18


@dataclass(frozen=True)
class Dot:
    """A measured point of the mean with the words that hovering shows; coordinates in per cent."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Line:
    """A path in a 100 × 100 box, y downwards, in the colour of its arm; a seed's dots are smaller than a mean's."""

    path: str
    arm: int
    mean: bool
    dots: list[Dot]
    role: str = ""
    """"interval" for a bar of an interval; else what `mean` says."""


@dataclass(frozen=True)
class EndLabel:
    """An arm's name beside its line's end, moved apart from its neighbours; `top` in pixels."""

    text: str
    arm: int
    top: float


@dataclass(frozen=True)
class Chart:
    """One panel; `height` in pixels, everything else in per cent of the plot. `zero`: where a line across is drawn."""

    title: str
    detail: str
    height: int
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_title: str
    ends: list[EndLabel]
    alt: str
    arm: int | None = None
    areas: list[Line] = field(default_factory=list)
    zero: float | None = None


@dataclass(frozen=True)
class Series:
    """The points of one arm: each seed's, and the mean over finished seeds."""

    arm: Arm
    seeds: list[list[Point]]
    mean: list[Point]
    finished: int


def yardsticks(analysis: Analysis) -> list[Chart]:
    """Panels in which arms may be compared; none where nothing was evaluated during training."""
    charts: list[Chart] = []
    for metric, title, detail in (
        ("readout.loss", "Readout loss", "nats; a fresh head on the frozen body, the same for every arm"),
        ("readout.accuracy", "Readout accuracy", "% of predicted tokens"),
        (
            "mlm.loss",
            "Own MLM loss",
            "nats; arms that train their head; on validation text, the last point on test text",
        ),
        (
            "clm.loss",
            "Own next-token loss",
            "nats; arms that train their head; on validation text, the last point on test text",
        ),
    ):
        key = metric.replace(".", "_")
        flagged = analysis.meaningless(metric)
        arms = [arm for arm in analysis.arms if arm.name not in flagged]
        worth = 0.01 if numbers.percent(metric) else 1.0
        series = [s for arm in arms if (s := _evaluated(analysis, arm, key, worth)).seeds]
        if series:
            charts.append(_chart(analysis, series, title, detail, height=320 if not charts else 220, metric=metric))
    return charts


def objectives(analysis: Analysis) -> list[Chart]:
    """One small panel per arm: its own training loss over its mean in the first slice of the budget."""
    every = [s for arm in analysis.arms if (s := _trained(analysis, arm)).seeds]
    if not every:
        return []
    top = max(1.05, *(y for s in every for line in (s.mean or s.seeds[0],) for _, y in line))
    return [_chart(analysis, [s], s.arm.name, "", height=130, floor=0.0, top=top, small=True) for s in every]


def _spent(analysis: Analysis, row: Json) -> float | None:
    """Where a row lies on the x axis: budget spent, or the fraction of it where the budget is unknown."""
    spent, fraction = number(row.get("spent")), number(row.get("fraction"))
    if analysis.budget is None:
        return fraction
    return spent if spent is not None else None if fraction is None else fraction * analysis.budget.limit


def _reach(analysis: Analysis) -> float:
    return 1.0 if analysis.budget is None else float(analysis.budget.limit)


def _evaluated(analysis: Analysis, arm: Arm, key: str, worth: float) -> Series:
    def points(run: Run) -> list[Point]:
        last = {"spent": run.record.get("charged"), key: run.scores.get(key.replace("_", ".", 1))} if run.done else {}
        return _sorted(analysis, [*run.evaluations, last], key, worth)

    return _series(arm, points)


def _sorted(analysis: Analysis, rows: Iterable[Json], key: str, worth: float) -> list[Point]:
    points = {
        x: y / worth
        for row in rows
        if (x := _spent(analysis, row)) is not None and (y := number(row.get(key))) is not None
    }
    return sorted(points.items())


def _trained(analysis: Analysis, arm: Arm) -> Series:
    return _series(arm, lambda run: _sliced(_sorted(analysis, run.steps, "loss", 1.0), _reach(analysis)))


def _sliced(points: list[Point], reach: float) -> list[Point]:
    """Means over equal slices of the budget, relative to the first slice."""
    slices: dict[int, list[float]] = {}
    for x, y in points:
        slices.setdefault(min(SLICES - 1, int(SLICES * x / reach)), []).append(y)
    means = [((i + 0.5) * reach / SLICES, statistics.fmean(values)) for i, values in sorted(slices.items())]
    start = means[0][1] if means else 0.0
    return [(x, y / start) for x, y in means] if start > 0 else []


def _series(arm: Arm, points_of: Callable[[Run], list[Point]]) -> Series:
    lines = [(run, points_of(run)) for run in arm.runs]
    finished = [points for run, points in lines if run.done and len(points) > 1]
    return Series(arm, [points for _, points in lines if len(points) > 1], mean_line(finished), len(finished))


def mean_line(lines: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over lines at the first one's x, inside the range that all of them cover; linear in between."""
    if not lines:
        return []
    low, high = max(line[0][0] for line in lines), min(line[-1][0] for line in lines)
    inside = [x for x, _ in lines[0] if low <= x <= high]
    # Seeds of a measured budget end at slightly different places; the mean ends where the first of them does.
    if inside and inside[-1] < high:
        inside.append(high)
    return [(x, statistics.fmean(_at(line, x) for line in lines)) for x in inside]


def _at(line: Sequence[Point], x: float) -> float:
    right = min(max(1, bisect_left(line, (x,))), len(line) - 1)
    (x0, y0), (x1, y1) = line[right - 1], line[right]
    return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _chart(
    analysis: Analysis,
    series: list[Series],
    title: str,
    detail: str,
    *,
    height: int,
    metric: str = "",
    floor: float | None = None,
    top: float | None = None,
    small: bool = False,
) -> Chart:
    reach = _reach(analysis)
    scale = scale_of(reach, analysis.unit)
    ys = [y for s in series for line in [*s.seeds, s.mean] for _, y in line]
    pad = 0.04 * (max(ys) - min(ys)) or 0.01
    low, high = min(ys) - pad if floor is None else floor, max(ys) + pad if top is None else top

    def place(point: Point) -> Point:
        return 100 * point[0] / reach, min(100.0, max(0.0, 100 * (high - point[1]) / (high - low)))

    lines: list[Line] = []
    for s in series:
        lines += [Line(_path(map(place, seed)), s.arm.index, False, []) for seed in s.seeds]
    for s in series:
        if s.mean:
            dots = [] if small else [_dot(s, p, place(p), metric, scale.write(p[0])) for p in s.mean]
            dots = [Dot(d.x, d.y, f"{d.tip} {scale.name}".strip()) for d in dots]
            lines.append(Line(_path(map(place, s.mean)), s.arm.index, True, dots))
    ends = [(s.arm, place((s.mean or max(s.seeds, key=lambda line: line[-1][0]))[-1])[1]) for s in series]
    last = "; ".join(f"{s.arm.name} ends at {(s.mean or s.seeds[0])[-1][1]:.3g}" for s in series)
    return Chart(
        title=title,
        detail=detail,
        height=height,
        lines=lines,
        x_ticks=axis(0.0, reach, worth=scale.worth, count=2 if small else 5),
        y_ticks=[Tick(100 - t.at, t.text) for t in axis(low, high, count=2 if small else 5)],
        x_title="fraction of the budget" if analysis.budget is None else f"{scale.name} spent",
        ends=[] if small else spread_labels([(arm.name, arm.index, height * y / 100) for arm, y in ends], height),
        alt=f"{title} over budget spent: {last}",
        arm=series[0].arm.index if small else None,
    )


def _dot(series: Series, point: Point, placed: Point, metric: str, spent: str) -> Dot:
    worth = 0.01 if numbers.percent(metric) else 1.0
    shown = numbers.score(point[1] * worth, metric)
    of = f"mean of {series.finished} seeds" if series.finished > 1 else "one seed"
    return Dot(round(placed[0], 2), round(placed[1], 2), f"{series.arm.name}, {of}: {shown} at {spent}")


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def spread_labels(wanted: list[tuple[str, int, float]], height: float) -> list[EndLabel]:
    """Labels as near to their lines as they can be without overlapping or leaving the plot's height."""
    order = sorted(wanted, key=lambda item: item[2])
    tops: list[float] = []
    for _, _, y in order:
        tops.append(max(y, tops[-1] + LABEL_HEIGHT) if tops else y)
    ceiling = height
    for i in reversed(range(len(tops))):
        tops[i] = min(tops[i], ceiling)
        ceiling = tops[i] - LABEL_HEIGHT
    return [EndLabel(name, index, round(top, 1)) for (name, index, _), top in zip(order, tops, strict=True)]
