"""Laws of a curve over budgets: exact on exact data, honest beyond it, and tried on a rung it has not seen."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError, DataError
from harness.ladder.scaling import fit, validated
from harness.ladder.words import Words

STUDIES = 2_000  # the standard error of a coverage of 95 % is 0.5 %
RUNGS = 2.0 ** np.arange(5)


def power(x: np.ndarray, exponent: float) -> np.ndarray:
    return 2 + x**-exponent


def noisy(
    mean: np.ndarray, seeds: int, *, shared: float, own: float | np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    size = (len(mean), seeds)
    return mean[:, None] + shared * rng.normal(size=(1, seeds)) + np.reshape(own, (-1, 1)) * rng.normal(size=size)


def table(seed: int, *, rungs: int = 5, seeds: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mean = power(2.0 ** np.arange(rungs), rng.uniform(0.05, 1.0))
    return noisy(mean, seeds, shared=0.02, own=0.01, rng=rng)


tables = st.builds(table, st.integers(0, 10_000), rungs=st.integers(2, 6), seeds=st.integers(2, 5))


# -- the curve -------------------------------------------------------------------------------------------


@given(st.integers(1, 15), st.floats(-3, 3), st.sampled_from([-2.0, 0.5, 3.0]))
def test_exact_points_of_a_power_law_give_it_back(tenths: int, level: float, amount: float) -> None:
    exponent = tenths / 10
    x = np.array([1.0, 2, 4, 8, 16])
    curve = fit(x, (level + amount * x**-exponent)[:, None], arm="a")
    assert curve.form == "power law"
    assert curve.exponent == pytest.approx(exponent)
    assert curve.level == pytest.approx(level, abs=1e-6)
    assert curve.value(1000.0) == pytest.approx(level + amount * 1000**-exponent, abs=1e-6)


def test_points_on_a_line_in_the_logarithm_are_that_line_at_any_distance() -> None:
    x = np.array([1.0, 3, 9, 27])
    curve = fit(x, (5 - 0.3 * np.log(x))[:, None], arm="a")
    assert (curve.exponent, curve.level) == (0.0, None)
    assert curve.value(1e6) == pytest.approx(5 - 0.3 * math.log(1e6))


def test_three_rungs_of_a_power_law_give_it_back_and_leave_no_misfit_to_judge_it_by() -> None:
    curve = fit([1, 2, 4], power(RUNGS[:3], 1.0)[:, None] + [[-0.01, 0.01]], arm="a")
    assert curve.form == "power law"
    assert curve.exponent == pytest.approx(1.0)
    assert (curve.lack_of_fit_p, curve.misfits) == (None, False)


@pytest.mark.parametrize("scores", [[3.0, 2.99, 2.5], [3.0, 2.5, 2.8]])
def test_three_rungs_that_bend_as_no_power_law_does_contradict_it(scores: list[float]) -> None:
    """Falling faster and faster, or turning back: the exponent is held at 0 or at 2, and what is left is a misfit."""
    noise = 0.01 * np.random.default_rng(0).normal(size=(3, 3))
    assert fit([1, 2, 4], np.array(scores)[:, None] + noise, arm="a").misfits


def test_two_rungs_fit_every_exponent_and_say_so() -> None:
    curve = fit([1, 2], np.array([[3.0, 3.01], [2.5, 2.52]]), arm="a")
    assert (curve.exponent, curve.exponent_low, curve.exponent_high) == (0.0, 0.0, 2.0)
    assert curve.lack_of_fit_p is None
    assert "one of many curves through two rungs" in curve.sentence()
    held = validated([1, 2, 4], np.array([[3.0, 3.01], [2.5, 2.52], [2.3, 2.31]]), arm="a")
    assert held.sentence().startswith("a, 2 smaller rungs (power law of any exponent from 0 to 2), predicts 2.0")
    assert held.inside, "between the straight line, 2.02, and the flattest of its curves, 2.39"


@given(tables, st.sampled_from([1e-3, 1e15]))
def test_other_units_of_the_budget_change_no_prediction(scores: np.ndarray, factor: float) -> None:
    x = 2.0 ** np.arange(len(scores))
    one, other = fit(x, scores, arm="a"), fit(factor * x, scores, arm="a")
    assert one.exponent == pytest.approx(other.exponent, abs=0.011)
    here, there = one.extrapolate(4 * x[-1]), other.extrapolate(4 * factor * x[-1])
    assert (here.value, here.low, here.high) == pytest.approx((there.value, there.low, there.high), rel=1e-3)


@given(tables, st.floats(-10, 10), st.sampled_from([-3.0, 0.1, 100.0]))
def test_a_score_in_other_units_is_predicted_in_them(scores: np.ndarray, shift: float, factor: float) -> None:
    x = 2.0 ** np.arange(len(scores))
    one = fit(x, scores, arm="a").extrapolate(3 * x[-1])
    other = fit(x, shift + factor * scores, arm="a").extrapolate(3 * x[-1])
    assert one.low is not None
    assert one.high is not None
    low, high = sorted((shift + factor * one.low, shift + factor * one.high))
    assert (other.value, other.low, other.high) == pytest.approx(
        (shift + factor * one.value, low, high), rel=1e-6, abs=1e-6
    )


# -- beyond it -------------------------------------------------------------------------------------------


def test_outside_the_rungs_is_marked_and_said_with_its_distance() -> None:
    curve = fit(1e15 * RUNGS, table(1), arm="no_kd", words=Words(axis_unit="flop"))
    far, inside, below = (curve.extrapolate(x) for x in (64e15, 3e15, 0.5e15))
    assert (far.extrapolated, inside.extrapolated, below.extrapolated) == (True, False, True)
    assert (far.beyond, inside.beyond, below.beyond) == (4, 1, 2)
    assert far.sentence().startswith("no_kd at 64 PFLOP: ")
    assert far.sentence().endswith("extrapolated 4 times beyond the ladder")
    assert "extrapolated" not in inside.sentence()


@given(tables)
def test_the_interval_holds_the_value_and_widens_with_the_distance(scores: np.ndarray) -> None:
    x = 2.0 ** np.arange(len(scores))
    curve = fit(x, scores, arm="a")
    widths = []
    for far in (1, 4, 16, 64):
        found = curve.extrapolate(far * x[-1])
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths == sorted(widths)


@given(tables)
def test_more_seeds_of_the_same_spread_narrow_the_interval(scores: np.ndarray) -> None:
    x = 2.0 ** np.arange(len(scores))
    few, many = (fit(x, each, arm="a").extrapolate(4 * x[-1]) for each in (scores, np.tile(scores, 3)))
    assert few.value == pytest.approx(many.value)
    assert None not in (few.low, few.high, many.low, many.high)
    assert few.low <= many.low + 1e-9  # type: ignore[operator]
    assert many.high <= few.high + 1e-9  # type: ignore[operator]


def test_one_seed_gives_a_curve_without_an_interval() -> None:
    scores = table(1)[:, :1]
    curve, held = fit(RUNGS, scores, arm="a"), validated(RUNGS, scores, arm="a")
    found = curve.extrapolate(64)
    assert (curve.sd_own, found.low, found.high, held.inside) == (None, None, None, None)
    assert "one seed gives no interval" in held.sentence()


def test_a_curve_that_its_own_rungs_contradict_is_not_to_be_extrapolated() -> None:
    step = np.array([3.0, 2.99, 2.98, 2.2, 2.1])
    scores = noisy(step, 3, shared=0.0, own=0.01, rng=np.random.default_rng(0))
    curve = fit(RUNGS, scores, arm="a")
    assert curve.misfits
    assert "do not extrapolate" in curve.sentence()
    assert not fit(RUNGS, table(1), arm="a").misfits


# -- on trial --------------------------------------------------------------------------------------------


def test_a_prediction_of_the_top_rung_is_held_against_its_measurement() -> None:
    rng = np.random.default_rng(3)
    good = noisy(power(RUNGS, 0.3), 5, shared=0.05, own=0.005, rng=rng)
    held = validated(1e15 * RUNGS, good, arm="kd", words=Words(axis_unit="flop"))
    assert (held.form, held.rungs, held.x, held.inside) == ("power law", 4, 16e15, True)
    assert held.measured == pytest.approx(good[-1].mean())
    assert "4 smaller rungs (power law), predicts" in held.sentence()
    assert held.sentence().endswith("inside")
    bad = good.copy()
    bad[-1] += 0.5
    failed = validated(RUNGS, bad, arm="kd")
    assert (failed.predicted, failed.inside) == (held.predicted, False)
    assert failed.sentence().endswith("outside")


@given(tables)
def test_results_are_json(scores: np.ndarray) -> None:
    x = 2.0 ** np.arange(len(scores))
    curve = fit(x, scores, arm="a")
    results = [curve, curve.extrapolate(100.0)] + ([validated(x, scores, arm="a")] if len(x) > 2 else [])
    for result in results:
        again = json.loads(json.dumps(result.as_json(), allow_nan=False))
        assert again["sentence"] == result.sentence()


@pytest.mark.parametrize(
    ("x", "scores", "error", "says"),
    [
        ([1], [[1.0]], ConfigError, "1 rung"),
        ([2, 1], [[1.0], [1.0]], ConfigError, "increase"),
        ([0, 1], [[1.0], [1.0]], ConfigError, "positive"),
        ([1, 2], [[1.0, 2.0], [1.0]], DataError, "same seeds"),
        ([1, 2], [[1.0], [math.inf]], DataError, r"scores\[1\]\[0\]"),
    ],
)
def test_bad_ladders_are_refused(x: list, scores: list, error: type, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(error, match=says):
        fit(x, scores, arm="a")


def test_a_budget_that_is_none_and_a_ladder_too_short_to_hold_a_rung_out_are_refused() -> None:
    with pytest.raises(ConfigError, match="positive"):
        fit([1, 2], [[1.0], [2.0]], arm="a").extrapolate(0)
    with pytest.raises(ConfigError, match="holding the largest out"):
        validated([1, 2], [[1.0], [2.0]], arm="a")


# -- calibration -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.15, 0.5])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_extrapolations_and_held_out_rungs_lie_in_their_intervals_in_95_per_cent(
    seeds: int, exponent: float, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng([seeds, round(100 * exponent)])
    line = power(RUNGS, exponent)
    far = np.array([4.0, 20.0]) * RUNGS[-1]
    truth = power(far, exponent)
    held, misfits = np.zeros(3), 0
    for _ in range(STUDIES):
        scores = noisy(line, seeds, shared=0.02, own=0.01, rng=rng)
        curve = fit(RUNGS, scores, arm="a")
        found = [curve.extrapolate(x) for x in far]
        inside = [(f.low or 0) <= t <= (f.high or 0) for f, t in zip(found, truth, strict=True)]
        held += [*inside, bool(validated(RUNGS, scores, arm="a").inside)]
        misfits += curve.misfits
    four, twenty, top = held / STUDIES
    with capsys.disabled():
        print(
            f"\n{seeds} seeds, exponent {exponent}: 4 times beyond {four:.1%}, 20 times {twenty:.1%}, "
            f"top rung {top:.1%}, form wrongly refuted {misfits / STUDIES:.1%}"
        )
    assert min(four, twenty) >= 0.93
    # Adding what a seed carries in squares is on the safe side with few seeds.
    assert max(four, twenty) <= 0.985
    assert 0.93 <= top <= 0.97
    assert misfits / STUDIES <= 0.07


@pytest.mark.slow
def test_noise_that_shrinks_along_the_ladder_makes_intervals_safe_not_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(9)
    own = 0.01 * np.array([2, 1.5, 1.2, 1, 0.8])
    held = 0
    for _ in range(STUDIES // 2):
        found = fit(RUNGS, noisy(power(RUNGS, 0.3), 3, shared=0.02, own=own, rng=rng), arm="a").extrapolate(64)
        held += (found.low or 0) <= power(np.array(64.0), 0.3) <= (found.high or 0)
    with capsys.disabled():
        print(f"\nnoise shrinking from 2 to 0.8: {held / (STUDIES // 2):.1%}")
    assert held / (STUDIES // 2) >= 0.95
