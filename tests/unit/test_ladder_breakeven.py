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
    assert "the order flips" in found.sentence()


def test_one_seed_breaks_even_without_an_interval() -> None:
    found = paid(falling(0.3)[:, 1:2])
    assert (found.kind, found.low, found.high) == ("no interval", None, None)
    assert found.students == pytest.approx(1 / 0.3)
    assert found.sentence() == "kd breaks even at 3.33 students, so 4 or more; one seed gives no interval"
    ahead = paid(falling(2.0)[:, 1:2])
    assert (ahead.kind, ahead.students) == ("no interval", None)
    assert "kd is ahead" in ahead.sentence()


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
