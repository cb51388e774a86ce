"""Law 5: the learning rate is a function of the fraction of the budget spent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.study import ScheduleSpec
from harness.train import learning_rate

fractions = st.floats(0, 1)


@given(fractions, st.floats(0, 0.9), st.sampled_from(["linear", "cosine", "constant"]))
def test_the_rate_stays_between_zero_and_its_peak(fraction: float, warmup: float, decay: str) -> None:
    rate = learning_rate(ScheduleSpec(warmup=warmup, decay=decay), 1e-3, fraction)
    assert 0 <= rate <= 1e-3 * (1 + 1e-12)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decayed_schedule_ends_at_zero_when_the_budget_does(decay: str) -> None:
    schedule = ScheduleSpec(warmup=0.06, decay=decay)
    assert learning_rate(schedule, 1.0, 0.06) == pytest.approx(1.0)
    assert learning_rate(schedule, 1.0, 0.03) == pytest.approx(0.5)
    assert learning_rate(schedule, 1.0, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_half_way_down_the_decay() -> None:
    assert learning_rate(ScheduleSpec(warmup=0.0, decay="linear"), 2.0, 0.5) == pytest.approx(1.0)
    assert learning_rate(ScheduleSpec(warmup=0.2, decay="cosine"), 2.0, 0.6) == pytest.approx(1.0)
    assert learning_rate(ScheduleSpec(warmup=0.2, decay="constant"), 2.0, 0.6) == 2.0
