"""Laws of the paired comparison: calibrated false alarms, honest intervals, correct power, no invented certainty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.compare import (
    SEEDS_CAP,
    against_baseline,
    all_pairs,
    compare,
    detectable_effect,
    higher_is_better,
    holm,
    mean_interval,
    paired_t,
    power_at,
    seeds_to_detect,
)

STUDIES = 40_000  # the standard error of a 5 % rate is then 0.11 %


def scored(**arms: list[float]) -> dict[str, dict[int, float]]:
    return {arm: dict(enumerate(values, start=1)) for arm, values in arms.items()}


# -- calibration -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_identical_arms_raise_a_false_alarm_in_one_of_twenty_studies(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    a, b = rng.normal(size=(2, STUDIES, seeds))
    _, low, high, p = paired_t(a - b)
    assert 0.04 <= (p <= 0.05).mean() <= 0.06
    assert 0.04 <= ((low > 0) | (high < 0)).mean() <= 0.06


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_noise_shared_by_a_seed_changes_no_false_alarm_rate(seeds: int) -> None:
    rng = np.random.default_rng(100 + seeds)
    shared = 5 * rng.normal(size=(STUDIES, seeds))
    a, b = shared + rng.normal(size=(2, STUDIES, seeds))
    assert 0.04 <= (paired_t(a - b)[3] <= 0.05).mean() <= 0.06


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_three_arms_against_one_baseline_keep_the_family_at_five_per_cent(seeds: int) -> None:
    rng = np.random.default_rng(200 + seeds)
    arms = rng.normal(size=(4, STUDIES, seeds))
    p = np.stack([paired_t(arms[i] - arms[0])[3] for i in (1, 2, 3)], axis=-1)
    uncorrected, corrected = (p <= 0.05).any(axis=-1).mean(), (holm(p) <= 0.05).any(axis=-1).mean()
    assert corrected <= 0.06
    assert uncorrected > 0.09  # the correction is needed, and the simulation can see it
    assert corrected > 0.02  # and it is no blanket refusal


JOINT_STUDIES = 4_000


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("arms", [2, 4])
def test_all_intervals_of_a_study_hold_their_truths_together(arms: int, seeds: int) -> None:
    """Through `compare` itself; the arms differ truly, one of them by nothing."""
    rng = np.random.default_rng([arms, seeds])
    truth = np.linspace(0.0, 1.5, arms)
    noise = rng.normal(size=(JOINT_STUDIES, arms, seeds)) + 2 * rng.normal(size=(JOINT_STUDIES, 1, seeds))
    held = alone = 0
    for study in truth[:, None] + noise:
        scores = {f"arm{i}": dict(enumerate(map(float, row))) for i, row in enumerate(study)}
        found = against_baseline(scores, "arm0", metric="probe.x")
        held += all(c.low <= truth[i] <= c.high for i, c in enumerate(found, start=1))
        intervals = [paired_t(study[i] - study[0]) for i in range(1, arms)]
        alone += all(low <= truth[i] <= high for i, (_, low, high, _) in enumerate(intervals, start=1))
    assert 0.94 <= held / JOINT_STUDIES <= 0.98
    assert arms == 2 or alone / JOINT_STUDIES <= 0.91  # the correction is needed, and the simulation can see it


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=2, max_size=5))
def test_an_interval_excludes_zero_exactly_where_the_corrected_p_is_below_five_per_cent(
    rows: list[list[float]],
) -> None:
    scores = {f"arm{i}": dict(enumerate(row)) for i, row in enumerate(rows)}
    for family in (against_baseline(scores, "arm0", metric="probe.x"), all_pairs(scores, metric="probe.x")):
        tested = [c for c in family if c.low is not None and c.high is not None]
        for c in tested:
            assert c.family_size == len(tested)
            assert c.p_corrected == pytest.approx(min(1.0, len(tested) * c.p))
            if abs(c.p_corrected - 0.05) > 1e-9:
                assert (c.low > 0 or c.high < 0) == c.significant


def test_what_seeds_can_show_is_said_at_the_level_of_the_corrected_interval() -> None:
    rng = np.random.default_rng(3)
    scores = scored(**{arm: list(rng.normal(size=5)) for arm in ("base", "x", "y", "z")})
    for c in against_baseline(scores, "base", metric="probe.x"):
        spread = c.half_width * math.sqrt(5) / stats.t.isf(0.025 / 3, 4)
        assert c.minimal_detectable == pytest.approx(spread * detectable_effect(5, alpha=0.05 / 3), rel=1e-6)
        assert c.seeds_needed == seeds_to_detect(c.mean_difference / spread, alpha=0.05 / 3)


# -- against other implementations -------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=12))
def test_interval_and_p_are_scipys_related_t_test(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    differences = a - b
    if differences.std(ddof=1) < 1e-6:
        return
    expected = stats.ttest_rel(a, b)
    low_expected, high_expected = expected.confidence_interval(0.95)
    mean, low, high, p = paired_t(differences)
    assert mean == pytest.approx(differences.mean())
    assert (low, high) == pytest.approx((low_expected, high_expected), rel=1e-6, abs=1e-9)
    assert p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


def test_holm_matches_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last is raised to 0.06.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_lies_between_p_and_bonferroni_and_ignores_order(p: list[float], random) -> None:
    adjusted = holm(np.array(p))
    assert (adjusted >= np.array(p) - 1e-15).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-15).all() or len(p) > 1
    assert adjusted.min() == pytest.approx(min(1, len(p) * min(p)))
    order = list(range(len(p)))
    random.shuffle(order)
    assert holm(np.array(p)[order]) == pytest.approx(adjusted[order])


# -- power -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_detectable_effect_is_found_in_four_of_five_studies(seeds: int, alpha: float) -> None:
    effect = detectable_effect(seeds, alpha=alpha)
    differences = np.random.default_rng(seeds).normal(effect, 1.0, size=(STUDIES, seeds))
    assert (paired_t(differences)[3] <= alpha).mean() == pytest.approx(0.80, abs=0.01)


@given(st.floats(0.5, 30))
def test_seeds_to_detect_is_the_fewest_with_enough_power(effect: float) -> None:
    n = seeds_to_detect(effect)
    assert n <= SEEDS_CAP
    assert power_at(effect, n) >= 0.8 - 1e-6
    assert n == 2 or power_at(effect, n - 1) < 0.8


def test_no_effect_needs_more_seeds_than_anyone_has() -> None:
    assert seeds_to_detect(0.0) == seeds_to_detect(0.01) == SEEDS_CAP + 1


# -- meaning -----------------------------------------------------------------------------------------


def test_a_lower_loss_and_a_higher_accuracy_are_better() -> None:
    assert not higher_is_better("readout.loss")
    assert higher_is_better("probe.package")
    loss = compare(scored(a=[1.0, 1.1], b=[2.0, 2.3]), [("a", "b")], metric="mlm.loss", family="x")[0]
    share = compare(scored(a=[1.0, 1.1], b=[2.0, 2.3]), [("a", "b")], metric="mlm.accuracy", family="x")[0]
    assert loss.mean_difference == pytest.approx(1.1)
    assert share.mean_difference == pytest.approx(-1.1)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=3, max_size=6))
def test_swapping_two_arms_swaps_the_sign_and_nothing_else(pairs: list[tuple[float, float]]) -> None:
    a, b = (list(column) for column in zip(*pairs, strict=True))
    scores = scored(a=a, b=b)
    one, two = (compare(scores, [pair], metric="mlm.loss", family="x")[0] for pair in (("a", "b"), ("b", "a")))
    assert one.mean_difference == pytest.approx(-two.mean_difference)
    assert (one.low is None) == (two.low is None)
    if one.low is not None:
        assert one.low == pytest.approx(-two.high)
        assert one.p == pytest.approx(two.p)
        assert one.seeds_needed == two.seeds_needed


def test_pairing_removes_what_a_seed_shares() -> None:
    easy = [4.0, 5.0, 6.0, 7.0]
    scores = scored(a=easy, b=[x + 0.10 + e for x, e in zip(easy, (0.01, -0.01, 0.0, 0.005), strict=True)])
    comparison = compare(scores, [("a", "b")], metric="mlm.loss", family="x")[0]
    assert comparison.significant
    assert stats.ttest_ind(list(scores["a"].values()), list(scores["b"].values())).pvalue > 0.5


def test_one_seed_gives_a_difference_and_no_interval() -> None:
    comparison = compare(scored(a=[1.0], b=[2.0]), [("a", "b")], metric="mlm.loss", family="x")[0]
    assert (comparison.n, comparison.mean_difference) == (1, 1.0)
    assert comparison.low is comparison.high is comparison.p is comparison.p_corrected is None
    assert "one common seed" in comparison.note
    assert not comparison.significant


def test_two_seeds_give_the_huge_interval_they_deserve() -> None:
    comparison = compare(scored(a=[1.00, 1.00], b=[1.10, 1.12]), [("a", "b")], metric="mlm.loss", family="x")[0]
    error = 0.02 / math.sqrt(2) / math.sqrt(2)
    assert comparison.half_width == pytest.approx(12.706 * error, rel=1e-3)


def test_differences_without_spread_are_no_certainty() -> None:
    comparison = compare(scored(a=[0.1, 0.2, 0.3], b=[0.2, 0.3, 0.4]), [("a", "b")], metric="x.accuracy", family="x")[0]
    assert comparison.low is comparison.p is None
    assert "same difference in all 3 seeds" in comparison.note
    assert not comparison.significant


def test_only_seeds_that_both_arms_finished_with_a_number_count() -> None:
    scores = {"a": {1: 1.0, 2: 2.0, 3: float("nan"), 5: 4.0}, "b": {2: 1.0, 3: 1.0, 4: 1.0, 5: 3.5}}
    comparison = compare(scores, [("a", "b")], metric="mlm.accuracy", family="x")[0]
    assert comparison.seeds == (2, 5)
    assert compare(scores, [("a", "c")], metric="mlm.accuracy", family="x")[0].n == 0


def test_a_flagged_arm_is_shown_and_stays_out_of_the_family() -> None:
    rng = np.random.default_rng(0)
    scores = scored(
        base=list(rng.normal(5, 0.01, 4)), good=list(rng.normal(4, 0.01, 4)), odd=list(rng.normal(8, 0.01, 4))
    )
    flagged = against_baseline(scores, "base", metric="mlm.loss", meaningless={"odd": "its head was never trained"})
    good, odd = flagged
    assert good.p_corrected == good.p  # the only member of its family
    assert odd.p is not None
    assert odd.p_corrected is None
    assert not odd.meaningful
    assert not odd.significant
    assert odd.note == "its head was never trained"


def test_families_hold_every_pair_once() -> None:
    scores = scored(a=[1, 2, 3.1], b=[2, 3.3, 4], c=[1.5, 2, 3])
    assert [(c.a, c.b) for c in against_baseline(scores, "b", metric="mlm.loss")] == [("a", "b"), ("c", "b")]
    assert [(c.a, c.b) for c in all_pairs(scores, metric="mlm.loss")] == [("b", "a"), ("c", "a"), ("c", "b")]


def test_the_interval_of_a_mean_needs_two_values_with_a_spread() -> None:
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 1.0]) is None
    low, high = mean_interval([1.0, 2.0, 3.0]) or (0, 0)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 2, 2.0, 1 / math.sqrt(3)))
