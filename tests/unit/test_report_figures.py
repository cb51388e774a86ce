"""Laws of the figures: round ticks, lines inside their box, labels apart, bars that add up, colours that can be read."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.report import bars, curves
from harness.report.analysis import Analysis, analyse
from harness.report.axis import axis, scale_of, ticks
from harness.report.curves import LABEL_HEIGHT, mean_line, spread_labels
from harness.report.markdown import escape
from harness.report.source import read

from .report_fakes import ARMS, write_study

STYLE = Path(curves.__file__).parent / "style.css"


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyse(read(write_study(tmp_path_factory.mktemp("runs") / "study", seeds=3)))


# -- axes --------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_evenly_spaced_and_inside(low: float, span: float) -> None:
    high = low + span
    assume(span > 1e-9 * abs(low))
    places = ticks(low, high)
    assert 1 <= len(places) <= 7
    assert all(low - 1e-6 * span <= place <= high + 1e-6 * span for place in places)
    if len(places) > 1:
        step = places[1] - places[0]
        assert np.diff(places) == pytest.approx(step, rel=1e-3)
        digits = f"{step:.3e}".split("e", maxsplit=1)[0]
        assert digits in ("1.000", "2.000", "2.500", "5.000")


def test_axis_labels_share_their_decimals() -> None:
    assert [tick.text for tick in axis(0, 1)] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [tick.text for tick in axis(-0.3, 0.3, count=3)] == ["−0.2", "0.0", "0.2"]
    assert [tick.at for tick in axis(0, 10, count=2)] == [0, 50, 100]


@pytest.mark.parametrize(
    ("amount", "unit", "worth", "name"),
    [
        (1e13, "flop", 1e12, "TFLOP"),
        (3.2e6, "token", 1e6, "M tokens"),
        (54.0, "gpu-second", 1, "device-s"),
        (7200.0, "allocated-gpu-second", 3600, "allocated device-hours"),
        (5e5, "joule", 3600, "Wh"),
        (90.0, "second", 60, "min"),
        (5.0, "parsec", 1, "parsec"),
    ],
)
def test_a_scale_is_the_one_a_person_would_choose(amount: float, unit: str, worth: float, name: str) -> None:
    scale = scale_of(amount, unit)
    assert (scale.worth, scale.name) == (worth, name)


# -- curves ------------------------------------------------------------------------------------------


def test_panels_hold_only_what_may_be_compared(analysis: Analysis) -> None:
    panels = {chart.title: {line.arm for line in chart.lines} for chart in curves.yardsticks(analysis)}
    index = {arm.name: arm.index for arm in analysis.arms}
    assert panels["Readout loss"] == set(index.values())
    assert panels["Own MLM loss"] == {index["no_kd"], index["soft_targets"]}
    small = curves.objectives(analysis)
    assert [chart.title for chart in small] == [arm.name for arm in ARMS]
    assert all(len({line.arm for line in chart.lines}) == 1 for chart in small)


def test_every_line_stays_in_its_box_and_every_arm_has_a_line_per_seed_and_a_mean(analysis: Analysis) -> None:
    for chart in [*curves.yardsticks(analysis), *curves.objectives(analysis)]:
        for line in chart.lines:
            values = [float(v) for v in re.findall(r"-?[\d.]+", line.path)]
            assert all(-0.01 <= v <= 100.01 for v in values)
        arms = {line.arm for line in chart.lines}
        assert all(sum(line.arm == a and line.mean for line in chart.lines) == 1 for a in arms)
        assert all(sum(line.arm == a and not line.mean for line in chart.lines) == 3 for a in arms)
        assert chart.x_title == "TFLOP spent"


def test_a_curve_ends_at_the_final_score(analysis: Analysis) -> None:
    chart = curves.yardsticks(analysis)[0]
    tips = [line.dots[-1].tip for line in chart.lines if line.mean]
    final = analysis.score("tinybert", "readout.loss")
    assert final is not None
    assert any(tip.startswith("tinybert") and f"{final.mean:.3f}" in tip for tip in tips)


def test_the_objective_is_relative_to_its_start(analysis: Analysis) -> None:
    for chart in curves.objectives(analysis):
        first = float(re.findall(r"-?[\d.]+", chart.lines[0].path)[1])
        one = next(tick.at for tick in chart.y_ticks if float(tick.text) == 1)
        assert first == pytest.approx(one, abs=0.01)


def test_the_mean_line_is_the_mean_where_all_seeds_are() -> None:
    first = [(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]
    second = [(0.5, 2.0), (1.5, 4.0)]
    assert mean_line([first, second]) == [(1.0, 3.0), (1.5, 4.0)]
    assert mean_line([first]) == first
    assert mean_line([]) == []
    assert mean_line([[(0.0, 1.0), (1.0, 2.0)], [(2.0, 1.0), (3.0, 2.0)]]) == []


@given(st.lists(st.floats(0, 300), max_size=8))
def test_end_labels_never_overlap_and_keep_the_order_of_their_lines(places: list[float]) -> None:
    wanted = [(str(i), i, y) for i, y in enumerate(places)]
    placed = spread_labels(wanted, 300)
    assert all(b.top - a.top >= LABEL_HEIGHT - 0.2 for a, b in pairwise(placed))
    by_line = [places[label.arm] for label in placed]
    assert by_line == sorted(places)
    assert all(label.top <= 300 for label in placed)


# -- bars --------------------------------------------------------------------------------------------


def test_charged_segments_add_up_to_the_charged_share_of_the_budget(analysis: Analysis) -> None:
    costs = bars.costs(analysis)
    assert costs is not None
    for arm, (name, _, charged, device) in zip(analysis.arms, costs.rows, strict=True):
        assert name == arm.name
        share = 100 * (arm.mean("charged") or 0) / 10**13
        assert sum(s.width for s in charged.segments) == pytest.approx(share, abs=0.01)
        assert all(s.tint != "free" for s in charged.segments)
        assert sum(s.width for s in device.segments) <= 100.01
        assert any(s.tint == "free" for s in device.segments)


def test_effects_are_placed_in_their_true_order(analysis: Analysis) -> None:
    forest = bars.effects(analysis)
    assert forest is not None
    place = {row.arm: row.middle for row in forest.rows}
    assert place["soft_targets"] < place["minilmv2"] < forest.zero < place["tinybert"]
    for row in forest.rows:
        assert row.low is not None
        assert row.low + row.width / 2 == pytest.approx(row.middle, abs=0.01)
        assert 0 <= row.low <= row.low + row.width <= 100


# -- text and colour ---------------------------------------------------------------------------------


@given(st.text())
def test_escaped_markdown_is_one_line_without_tags_or_cells(text: str) -> None:
    written = escape(text)
    assert not re.search(r"[<>\n\r]", written)
    assert not re.search(r"(?<!\\)(\\\\)*[|`]", re.sub(r"\\[|`]", "", written))


def _luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _themes() -> list[dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def test_text_and_arm_colours_are_legible_in_every_theme() -> None:
    themes = _themes()
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        page = _luminance(theme["page"])
        for name, colour in theme.items():
            if name in ("ink", "muted") or name.startswith("arm-"):
                light, dark = sorted((_luminance(colour), page), reverse=True)
                wanted = 3.0 if name == "arm-6" else 4.5  # the seventh is for lines: 3:1 is enough there
                assert (light + 0.05) / (dark + 0.05) >= wanted, (name, colour)


# Full deuteranopia and protanopia in linear RGB (Machado, Oliveira and Fernandes 2009, severity 1.0).
DEFICIENCIES = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_all_eight_colours_differ_for_colour_blind_readers(deficiency: str) -> None:
    for theme in _themes():
        seen = [np.array(DEFICIENCIES[deficiency]) @ _linear(theme[f"arm-{i}"]) for i in range(8)]
        labs = [_lab(np.clip(rgb, 0, 1)) for rgb in seen]
        for (i, first), (j, second) in combinations(enumerate(labs), 2):
            assert np.linalg.norm(first - second) > 10, (i, j)  # in CIE L*a*b*, where 2 can just be seen


def _linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB under D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (matrix @ rgb) / np.array([0.9505, 1.0, 1.089])
    f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
