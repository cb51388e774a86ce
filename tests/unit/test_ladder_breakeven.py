"""Laws of break-even: a share turned over is a number of students, and neither end is promised beyond the shares."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.ladder.breakeven import BreakEven, breakeven
from harness.ladder.words import Words

SHARES = [0, 0.25, 0.5, 1]
NOISE = np.array([-0.01, 0.0, 0.01])


def paid(differences: object, shares: list[float] | None = None) -> BreakEven:
    return breakeven(shares or SHARES, differences, arm="kd", baseline="scratch", words=Words("nats"))  # type: ignore[arg-type]


def falling(at: float, slope: float = 1.0) -> np.ndarray:
    return slope * (at - np.array(SHARES))[:, None] + NOISE


@given(st.integers(2, 40), st.floats(0.5, 50))
def test_a_flip_at_a_share_of_one_in_k_breaks_even_at_k_students(k: int, slope: float) -> None:
    found = paid(falling(1 / k, slope))
    assert found.students == pytest.approx(k)
    if found.kind == "break-even":
        assert found.low is not None
        assert found.high is not None
        assert found.low < k < found.high
        assert f"so {k} or more" in found.sentence()


def test_the_interval_is_the_shares_interval_turned_over() -> None:
    found = paid(falling(0.3))
    (flip,) = found.along.flips
    assert flip.low is not None
    assert flip.high is not None
    assert (found.kind, found.low, found.high) == (
        "break-even",
        pytest.approx(1 / flip.high),
        pytest.approx(1 / flip.low),
    )
    assert found.sentence() == "kd breaks even at 3.33 students (95 % interval 3.08 to 3.63), so 4 or more"


def test_better_at_its_full_cost_pays_at_any_number_of_students() -> None:
    found = paid(falling(2.0))
    assert found.kind == "always pays"
    assert found.sentence().startswith("kd pays for its teacher at any number of students: no crossover")
    some = paid(falling(2.0)[:3], SHARES[:3])
    assert some.sentence().startswith("kd pays for its teacher from 2 students on")


def test_worse_with_a_sunk_teacher_never_pays() -> None:
    found = paid(falling(-0.5))
    assert found.kind == "never pays"
    assert found.sentence().startswith("kd does not pay even with a free teacher")
    some = paid(falling(-0.5)[1:], SHARES[1:])
    assert some.sentence().startswith("kd does not pay with up to 4 students")


def test_noise_alone_cannot_tell_and_a_free_teacher_may_not_help_either() -> None:
    found = paid([[0.2, -0.1, 0.0], [0.1, -0.1, -0.1], [-0.2, 0.1, -0.1], [-0.3, 0.3, -0.2]])
    assert found.kind == "cannot tell"
    assert found.high == math.inf
    assert found.as_json()["high"] is None
    assert "cannot tell yet" in found.sentence()


def test_a_flip_in_the_wrong_direction_is_no_break_even() -> None:
    found = paid(-falling(0.3))
    assert (found.kind, found.students) == ("cannot tell", None)
    assert found.sentence().startswith("no break-even: the order flips at 0.3 of the teacher's cost")
    alone = paid(-falling(0.3)[:, 1:2])
    assert alone.students is None
    assert alone.sentence().startswith("no break-even: the order flips at 0.3 of the teacher's cost: scratch is ahead")


def test_a_means_wobble_inside_what_cannot_be_told_hides_no_break_even() -> None:
    """The order of the means changes three times between two decided ends: that is one break-even."""
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    means = np.array([0.3, 0.01, -0.01, 0.01, -0.3])
    found = paid(means[:, None] + 2 * NOISE, shares)
    assert found.kind == "break-even"
    assert found.students == pytest.approx(1 / 0.375)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.students < found.high


def test_a_break_even_that_is_shown_says_what_lies_open_beyond_it() -> None:
    """At its full cost the mean is back by less than the seeds' spread: no second flip, and no certain loss either."""
    found = paid(np.array([0.3, 0.2, -0.3, 0.002])[:, None] + NOISE)
    assert found.kind == "break-even"
    assert [flip.shown for flip in found.along.flips] == [True, False]
    assert found.students == pytest.approx(1 / 0.35)
    assert found.sentence().startswith("kd breaks even at 2.86 students (")
    assert "; cannot tell from 0.9" in found.sentence()


def test_what_is_won_at_some_shares_alone_is_no_sentence_about_a_break_even_of_it() -> None:
    won = paid(np.array([0.3, 0.3, 0.3, 0.0])[:, None] + np.array([[-0.01], [-0.01], [-0.01], [-1.0]]) * [-1, 0, 1])
    assert won.along.kind == "cannot tell"
    assert won.sentence().startswith("no break-even yet: kd beats scratch up to ")


def test_one_seed_breaks_even_without_an_interval() -> None:
    found = paid(falling(0.3)[:, 1:2])
    assert (found.kind, found.low, found.high) == ("no interval", None, None)
    assert found.students == pytest.approx(1 / 0.3)
    assert found.sentence() == "kd breaks even at 3.33 students, so 4 or more; one seed gives no interval"
    ahead = paid(falling(2.0)[:, 1:2])
    assert (ahead.kind, ahead.students) == ("no interval", None)
    assert ahead.sentence().startswith("break-even unknown: kd is ahead from ")


def test_results_are_json() -> None:
    for at in (-0.5, 0.3, 2.0):
        found = paid(falling(at))
        again = json.loads(json.dumps(found.as_json(), allow_nan=False))
        assert again["sentence"] == found.sentence()
        assert again["along"]["kind"] == found.along.kind


@pytest.mark.parametrize("shares", [[-0.1, 0.5], [0.5, 1.5]])
def test_shares_outside_none_and_all_are_refused(shares: list[float]) -> None:
    with pytest.raises(ConfigError, match="share"):
        paid([[1.0, 2.0], [0.0, 1.0]], shares)
