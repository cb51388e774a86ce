"""A sweep's two pictures: every challenger's effect along the axis with its 95 % band, and every arm's score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from harness.compare import higher_is_better, mean_interval
from harness.errors import IsoBudgetError
from harness.ladder.crossover import band
from harness.ladder.rungs import differences_of
from harness.report import numbers
from harness.report.arms import Arm
from harness.report.axis import Tick, axis, scale_of
from harness.report.curves import Chart, Dot, Line, spread_labels
from harness.sweep.answer import at as say
from harness.sweep.answer import words_of
from harness.sweep.gather import Found

# Room beside the first and the last point, and places at which a band is drawn between them.
MARGIN = 4.0
PLACES = 97
# Two labels of the axis need so many per cent of its length.
LABEL_WIDTH = 9.0
# A band of two seeds may be wider than all that was measured, which sets the scale: bands are shown up to so many spans
# of it beyond. A difference is looked at for its band, a score for its curve.
REACH, CURVES_REACH = 1.5, 0.5


class _Axis:
    """Per cent of the plot's width for a place of the axis."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.log = found.kind.log
        self.low, self.high = (self._line(found.x[i]) for i in (0, -1))

    def _line(self, x: float) -> float:
        return math.log(x) if self.log else x

    def __call__(self, x: float) -> float:
        return MARGIN + (100 - 2 * MARGIN) * (self._line(x) - self.low) / ((self.high - self.low) or 1.0)

    def between(self) -> list[float]:
        """Places from end to end, the points among them."""
        line = np.linspace(self.low, self.high, PLACES)
        inner = [float(math.exp(v) if self.log else v) for v in line[1:-1]]
        return sorted({*self.found.x, *inner})

    def ticks(self) -> list[Tick]:
        scale = scale_of(max(self.found.x), self.found.unit)
        plain = words_of(self.found).rung if scale.name in ("", "parameters") else scale.write
        write = self.found.kind.write or plain
        kept: list[Tick] = []
        for x in self.found.x:
            if not kept or self(x) - kept[-1].at >= LABEL_WIDTH:
                kept.append(Tick(self(x), write(x)))
        return kept

    @property
    def title(self) -> str:
        scale = scale_of(max(self.found.x), self.found.unit)
        return f"{self.found.kind.axis}, {scale.name}" if scale.name not in ("", "parameters") else self.found.kind.axis


def charts(found: Found) -> list[Chart]:
    """Effects against the baseline first, then scores; none where no line may join two points. Arms that the score says nothing of
    are in neither."""
    if len(found.at) < 2 or found.withheld:
        return []
    tuning = found.sweep.spec.kind == "tune"
    compared = found.baseline is not None and found.baseline.name not in found.meaningless
    effects = _effects(found) if compared and not tuning else None
    return [chart for chart in (effects, _scores(found)) if chart is not None]


def _effects(found: Found) -> Chart | None:
    assert found.baseline is not None
    place, words = _Axis(found), words_of(found)
    at = place.between()
    tables: list[tuple[Arm, np.ndarray]] = []
    for arm in found.judged:
        try:
            table, _ = differences_of(
                found.ladder, challenger=arm.name, baseline=found.baseline.name, metric=found.metric
            )
        except IsoBudgetError:
            continue
        tables.append((arm, table * words.score_scale))
    if not tables:
        return None
    try:
        bands = [(arm, table, band(found.x, table, at=at, log=found.kind.log)) for arm, table in tables]
    except IsoBudgetError:  # two points at one place: no line goes along them
        return None
    seen = [0.0] + [float(v) for _, table, parts in bands for group in (table.ravel(), *parts) for v in group]
    low, high = _range(seen, measured=[float(v) for _, table in tables for v in table.ravel()] + [0.0], reach=REACH)

    def point(x: float, y: float) -> tuple[float, float]:
        return place(x), min(100.0, max(0.0, 100 * (high - y) / (high - low)))

    areas, lines, ends = [], [], []
    for arm, table, (mean, lower, upper) in bands:
        if np.isfinite(lower).all():
            there = [point(x, float(y)) for x, y in zip(at, upper, strict=True)]
            back = [point(x, float(y)) for x, y in zip(at, lower, strict=True)]
            areas.append(Line(_path([*there, *reversed(back)]), arm.index, False, []))
        for seed in table.T if table.shape[1] > 1 else []:
            lines.append(
                Line(_path([point(x, float(y)) for x, y in zip(found.x, seed, strict=True)]), arm.index, False, [])
            )
        dots = [
            Dot(*_rounded(point(x, float(y))), f"{arm.name}: {y:+.3g} {words.score_unit} at {say(found, x)}")
            for x, y in zip(found.x, table.mean(axis=1), strict=True)
        ]
        lines.append(Line(_path([point(x, float(y)) for x, y in zip(at, mean, strict=True)]), arm.index, True, dots))
        ends.append((arm.name, arm.index, 320 * point(found.x[-1], float(mean[-1]))[1] / 100))
    told = "; ".join(f"{arm.name} {table.mean(axis=1)[-1]:+.3g} at the last point" for arm, table in tables)
    return Chart(
        title=f"Difference to {found.baseline.name}", height=320, lines=lines, areas=areas,
        detail=f"{numbers.label(found.metric)}, {words.score_unit}; above the line is better; band: 95 % at each place",
        x_ticks=place.ticks(), y_ticks=[Tick(100 - t.at, t.text) for t in axis(low, high)], x_title=place.title,
        ends=spread_labels(ends, 320), alt=f"Difference to {found.baseline.name} over {found.kind.axis}: {told}",
        zero=point(found.x[0], 0.0)[1],
    )  # fmt: skip


def _scores(found: Found) -> Chart | None:
    """Every arm's curve, its seeds and the t interval of its mean over them at every point, joined by straight lines.

    Between two points such a line lies on the safe side: a spread is a norm, so that of the seeds' interpolated scores is
    at most the interpolated spread. Not paired: what seeds share is in it, and differences are read from the other chart.
    """
    place, scale = _Axis(found), words_of(found).score_scale
    series: list[tuple[Arm, dict[float, dict[int, float]]]] = []
    for arm in found.arms:
        scored = [(each.x, each.scores.get(arm.name, {})) for each in found.at if not each.diverged(arm.name)]
        points = {x: {seed: scale * value for seed, value in seeds.items()} for x, seeds in scored if seeds}
        if points and arm.name not in found.meaningless:
            series.append((arm, points))
    if not series:
        return None
    measured = [v for _, points in series for seeds in points.values() for v in seeds.values()]
    bounds = {arm.name: {x: mean_interval(list(s.values())) for x, s in points.items()} for arm, points in series}
    within = [v for each in bounds.values() for pair in each.values() for v in pair or ()]
    low, high = _range([*measured, *within], measured=measured, reach=CURVES_REACH)

    def point(x: float, y: float) -> tuple[float, float]:
        return place(x), min(100.0, max(0.0, 100 * (high - y) / (high - low)))

    # Where a score is worse than any: a trial that diverged has none.
    worst = 100.0 if higher_is_better(found.metric) else 0.0
    given_up = any(each.diverged(arm.name) for each in found.at for arm in found.arms)
    edge = f"dots on the {'lower' if worst else 'upper'} edge: diverged" if given_up else ""
    areas, lines, ends = [], [], []
    for arm, points in series:
        for known, group in groupby(bounds[arm.name].items(), key=lambda item: item[1] is not None):
            edges = [(x, *pair) for x, pair in group if pair is not None]
            if known and len(edges) > 1:
                there, back = [point(x, upper) for x, _, upper in edges], [point(x, lower) for x, lower, _ in edges]
                areas.append(Line(_path([*there, *reversed(back)]), arm.index, False, []))
        for seed in sorted({seed for seeds in points.values() for seed in seeds}):
            path = [point(x, seeds[seed]) for x, seeds in points.items() if seed in seeds]
            if len(path) > 1:
                lines.append(Line(_path(path), arm.index, False, []))
        means = {x: sum(seeds.values()) / len(seeds) for x, seeds in points.items()}
        dots = [
            Dot(
                *_rounded(point(x, y)),
                f"{arm.name}: {numbers.score(y / scale, found.metric)} at {say(found, x)}",
            )
            for x, y in means.items()
        ]
        lost = [each.x for each in found.at if each.diverged(arm.name)]
        dots += [Dot(*_rounded((place(x), worst)), f"{arm.name}: diverged at {say(found, x)}") for x in lost]
        lines.append(Line(_path([point(x, y) for x, y in means.items()]), arm.index, True, dots))
        ends.append((arm.name, arm.index, 260 * point(*list(means.items())[-1])[1] / 100))
    thin = "thin lines: single seeds" if any(len(s) > 1 for _, points in series for s in points.values()) else ""
    shade = "band: 95 % interval of each arm's mean over seeds, unpaired" if areas else ""
    told = "; ".join(f"{name} ends at {100 - top / 2.6:.0f} % of the height" for name, _, top in ends)
    return Chart(
        title=numbers.label(found.metric), detail="; ".join(part for part in (numbers.unit(found.metric), thin, shade, edge) if part), height=260,
        lines=lines, areas=areas, x_ticks=place.ticks(), y_ticks=[Tick(100 - t.at, t.text) for t in axis(low, high)],
        x_title=place.title, ends=spread_labels(ends, 260), alt=f"Scores over {found.kind.axis}: {told}",
    )  # fmt: skip


def _range(values: Sequence[float], *, measured: Sequence[float], reach: float) -> tuple[float, float]:
    """Ends of an axis that shows what was measured, and of the other values those at most `reach` of its spans beyond."""
    beyond = reach * (max(measured) - min(measured) or 1e-3)
    seen = [v for v in values if min(measured) - beyond <= v <= max(measured) + beyond]
    pad = 0.06 * (max(seen) - min(seen)) or 0.01
    return min(seen) - pad, max(seen) + pad


def _rounded(point: tuple[float, float]) -> tuple[float, float]:
    return round(point[0], 2), round(point[1], 2)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
