"""Energy from NVML against the truth of each scenario; and what cannot be known is marked, not made up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fake_nvml"))
import fake_nvml

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"
C = "MIG-cccccccc-0000-0000-0000-000000000003"
D = "MIG-dddddddd-0000-0000-0000-000000000004"
ONE_PERCENT = 0.01
EVERY_SECOND = [float(t) for t in range(1, 61)]


@pytest.fixture(autouse=True, scope="module")
def fake_nvml_builds() -> Iterator[None]:
    yield
    fake_nvml.remove_builds()


def total(scenario: str, uuids: list[str], **arguments: Any) -> dict[str, Any]:
    return fake_nvml.run("integrate", scenario, uuids=uuids, **arguments)["total"]


def square(low_w: int, high_w: int, half_s: float, until_s: float) -> str:
    """A load that switches between two powers, with an update period that does not divide its own."""
    points = [
        f"{i * half_s:.3f}:{(low_w, high_w)[i % 2]} {(i + 1) * half_s:.3f}:{(low_w, high_w)[i % 2]}" for i in range(100)
    ]
    assert 100 * half_s >= until_s
    return f"device {A}\nupdate_s 0.07\npower_w {' '.join(points)}\n"


# -- within one percent of the truth ---------------------------------------------------------------------
def test_constant_power_of_two_gpus() -> None:
    sum_ = total("constant", [A, B], reads_s=[0.35, 10, 33.3, 60])
    assert sum_["joules"] == pytest.approx((300 + 500) * 60, rel=ONE_PERCENT)
    assert sum_["coverage"] == 1
    assert sum_["device_s"] == pytest.approx(120)
    assert sum_["source"] == "NVML energy counter"


def test_a_ramp() -> None:
    sum_ = total("ramp", [A], reads_s=[7.77, 60])
    assert sum_["joules"] == pytest.approx(100 * 60 + 600 * 60 / 2, rel=ONE_PERCENT)
    assert sum_["coverage"] == 1


def test_a_load_that_switches_fast() -> None:
    run = fake_nvml.run("integrate", square(100, 600, 0.61, 60), uuids=[A], reads_s=[11.1, 60.0])
    whole_periods, rest = divmod(60, 1.22)
    truth = whole_periods * 0.61 * 700 + min(rest, 0.61) * 100 + max(0, rest - 0.61) * 600
    assert run["total"]["joules"] == pytest.approx(truth, rel=ONE_PERCENT)


def test_many_short_steps_add_up() -> None:
    run = fake_nvml.run("throttle", "constant", uuids=[A], every_s=0.01, count=20_000)
    covered_s = run["total"]["device_s"]
    assert run["total"]["joules"] == pytest.approx(300 * covered_s, rel=ONE_PERCENT)
    assert covered_s > 199
    assert run["zeros"] == 0
    assert run["calls"] <= 200 / 0.1 + 2  # at most one look per update of the counter


def test_the_reported_uncertainty_covers_the_truth() -> None:
    run = fake_nvml.run("integrate", "ramp", uuids=[A], reads_s=[0.33, 1.01, 1.49, 7.77, 60])
    begin = 0.0
    for end, reading in zip([0.33, 1.01, 1.49, 7.77, 60], run["readings"], strict=True):
        truth = 100 * (end - begin) + 10 * (end**2 - begin**2) / 2
        assert abs(reading["joules"] - truth) <= reading["uncertainty_j"] * 1.1
        begin = end


def test_a_timeout_of_the_driver_loses_nothing() -> None:
    sum_ = total("hiccup", [A], reads_s=[60], polls_s=EVERY_SECOND)
    assert sum_["joules"] == pytest.approx(400 * 60, rel=ONE_PERCENT)
    assert sum_["coverage"] == 1
    assert "Timeout" in sum_["notes"][0]


def test_a_stall_that_catches_up_has_all_its_joules() -> None:
    sum_ = total("stall_catches_up", [A], reads_s=[60], polls_s=EVERY_SECOND)
    assert sum_["joules"] == pytest.approx(400 * 60, rel=ONE_PERCENT)
    assert sum_["coverage"] < 1  # it cannot be known that it caught up


def test_the_polled_fallback_is_right_where_power_changes_slowly() -> None:
    polls = [i / 10 for i in range(1, 600)]
    sum_ = total("denied_counter", [A], reads_s=[30, 60], polls_s=polls)
    assert sum_["joules"] == pytest.approx(24000, rel=ONE_PERCENT)
    assert sum_["coverage"] == pytest.approx(1)
    assert "fallback" in sum_["source"]
    assert sum_["uncertainty_j"] >= 0.05 * sum_["joules"]


def test_counter_and_polled_power_agree_on_the_same_load() -> None:
    polls = [i / 10 for i in range(1, 600)]
    by_counter, by_power = (total("ramp", [A], reads_s=[60], polls_s=polls, counters=c) for c in (True, False))
    assert "fallback" in by_power["source"]
    assert "fallback" not in by_counter["source"]
    assert by_power["joules"] == pytest.approx(by_counter["joules"], rel=ONE_PERCENT)


def test_the_polling_thread_covers_its_span() -> None:
    scenario = f"device {A}\npower_w 300\ndenied energy\n"
    value = fake_nvml.run("polled_in_real_time", scenario, uuids=[A], factor=4.0, seconds=4.0)
    # On a busy machine the thread may be kept waiting: those gaps are uncovered, never filled in.
    assert value["coverage"] > 0.5
    assert value["joules"] == pytest.approx(300 * value["coverage"] * value["device_s"])


# -- partial ---------------------------------------------------------------------------------------------
def test_a_reset_costs_the_time_before_it_and_no_more() -> None:
    sum_ = total("reset", [A], reads_s=[60], polls_s=EVERY_SECOND)
    assert 0.98 < sum_["coverage"] < 1
    assert sum_["joules"] == pytest.approx(400 * 60 * sum_["coverage"], rel=ONE_PERCENT)
    assert sum_["joules"] == pytest.approx(400 * 60, rel=ONE_PERCENT)
    assert any("reset" in note for note in sum_["notes"])


def test_a_reset_between_distant_reads_is_seen_too() -> None:
    run = fake_nvml.run("integrate", "reset", uuids=[A], reads_s=[15, 30, 45])
    _, second, third = run["readings"]
    assert second["joules"] == pytest.approx(400 * (30 - 20.37), rel=ONE_PERCENT)
    assert second["coverage"] == pytest.approx((30 - 20.37) / 15, rel=ONE_PERCENT)
    assert third["joules"] == pytest.approx(6000)
    assert third["coverage"] == 1


def test_a_stall_is_uncovered_and_the_other_gpu_is_not() -> None:
    sum_ = total("stall", [A, B], reads_s=[20, 40, 60], polls_s=EVERY_SECOND)
    assert sum_["joules"] == pytest.approx(400 * 50 + 200 * 60, rel=ONE_PERCENT)
    assert sum_["coverage"] == pytest.approx(110 / 120, rel=ONE_PERCENT)


def test_a_counter_stuck_from_the_start_is_unknown() -> None:
    run = fake_nvml.run("integrate", "stuck", uuids=[A], reads_s=[1, 5, 20])
    pending, *later = run["readings"]
    assert pending["pending"]
    assert all(r["joules"] is None and r["coverage"] == 0 for r in later)
    assert later[0]["text"].startswith("unknown")


def test_a_gpu_lost_in_the_middle_leaves_a_hole_and_the_run_goes_on() -> None:
    run = fake_nvml.run("integrate", "lost", uuids=[A, B], reads_s=[20, 40, 60], polls_s=EVERY_SECOND)
    before, during, after = run["readings"]
    assert before["coverage"] == 1
    assert before["joules"] == pytest.approx(12000)
    assert during["coverage"] == pytest.approx(0.75, abs=0.03)
    assert during["joules"] == pytest.approx(300 * 20 + 300 * 9, rel=0.02)  # last seen at 29 s
    assert after["coverage"] == 0.5
    assert after["joules"] == pytest.approx(6000)
    assert after["notes"] == [f"{A}: the GPU is lost"]


def test_what_one_gpu_lacks_another_instrument_measures() -> None:
    other = "GPU-cccccccc-0000-0000-0000-000000000003"
    polls = [i / 10 for i in range(1, 100)]
    run = fake_nvml.run("integrate", "unlike_sensors", uuids=[A, B, other], reads_s=[10], polls_s=polls)
    assert run["total"]["joules"] == pytest.approx(5000, rel=ONE_PERCENT)
    assert run["total"]["coverage"] == pytest.approx(2 / 3)
    assert "energy counter" in run["source"]
    assert "fallback" in run["source"]


# -- unknown ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scenario", "uuids", "words"),
    [
        ("denied", [A], "permission denied"),
        ("no_driver", [A], "Driver Not Loaded"),
        ("constant", ["GPU-ffffffff"], "does not see it"),
        ("mig", [C], "share it"),
    ],
)
def test_what_cannot_be_measured_is_unknown_and_its_budget_is_refused(
    scenario: str, uuids: list[str], words: str
) -> None:
    sum_ = total(scenario, uuids, reads_s=[10, 20])
    assert sum_["joules"] is None
    assert sum_["coverage"] == 0
    assert sum_["text"].startswith("unknown")
    found = fake_nvml.run("source", scenario, uuids=uuids)
    assert not found["available"]
    assert words in found["reason"]
    assert found["exit_code"] == 2
    assert words in found["refusal"]
    assert "0.5 kWh" in found["refusal"]


@pytest.mark.parametrize(
    ("scenario", "uuids", "kind"),
    [
        ("constant", [A, B], "nvml-counter"),
        ("constant", [A.removeprefix("GPU-")], "nvml-counter"),
        ("no_gpm", [A], "nvml-counter"),
        ("denied_counter", [A], "nvml-power"),
        ("mig", [C, D], "nvml-counter"),
    ],
)
def test_what_can_be_measured_is_named(scenario: str, uuids: list[str], kind: str) -> None:
    found = fake_nvml.run("source", scenario, uuids=uuids)
    assert found["available"]
    assert found["kind"] == kind
    assert found["exit_code"] == 0


def test_a_budget_in_joules_needs_every_gpu_to_be_metered() -> None:
    uuids = [A, B, "GPU-cccccccc-0000-0000-0000-000000000003"]
    found = fake_nvml.run("source", "unlike_sensors", uuids=uuids)
    assert found["kind"] == "nvml-mixed"
    assert found["exit_code"] == 2
    assert "not supported" in found["refusal"]
    assert fake_nvml.run("source", "unlike_sensors", uuids=uuids[:2])["exit_code"] == 0


def test_an_old_driver_falls_back_to_power_and_says_so() -> None:
    found = fake_nvml.run("source", "constant", uuids=[A], defines=("OLD_DRIVER",))
    assert found["kind"] == "nvml-power"
    assert "fallback" in found["description"]


def test_a_gpu_all_of_whose_instances_are_ours_is_counted_once() -> None:
    sum_ = total("mig", [C, D], reads_s=[60])
    assert sum_["joules"] == pytest.approx(500 * 60, rel=ONE_PERCENT)
    assert sum_["device_s"] == 60
    assert "metered as a whole" in sum_["notes"][0]


def test_the_uuid_decides_not_the_order() -> None:
    assert total("other_order", [B], reads_s=[10])["joules"] == pytest.approx(6000, rel=ONE_PERCENT)
    assert total("other_order", [A], reads_s=[10])["joules"] == pytest.approx(700, rel=ONE_PERCENT)


def test_meters_take_half_a_percent_of_a_step_at_most() -> None:
    cost = fake_nvml.run("cost", "constant", uuids=[A, B], count=2000)
    # A step of 100 ms is as often as the counter moves; between its updates a read returns at once.
    assert cost["read_us"] < 0.005 * 100_000
    assert cost["skipped_us"] < 0.005 * 10_000
