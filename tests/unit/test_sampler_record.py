"""The sampler's record: what was seen is in it, what is unknown is null, and training never notices."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.meters.sampler import Sampler, open_sampler
from harness.meters.samples import summarise
from harness.meters.ticker import Ticker

sys.path.insert(0, str(Path(__file__).parents[1] / "fake_nvml"))
import fake_nvml

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"
C = "MIG-cccccccc-0000-0000-0000-000000000003"


@pytest.fixture(autouse=True, scope="module")
def fake_nvml_builds() -> Iterator[None]:
    yield
    fake_nvml.remove_builds()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sample(path: Path, scenario: str, uuids: list[str], times_s: list[float]) -> list[dict[str, Any]]:
    fake_nvml.run("sample", scenario, uuids=uuids, path=str(path), times_s=times_s)
    return rows(path)


# -- what is written -----------------------------------------------------------------------------------
def test_a_record_names_its_devices_samples_them_and_ends(tmp_path: Path) -> None:
    written = sample(tmp_path / "deep" / "gpu.jsonl", "constant", [A, B], [1, 2])
    assert [row["kind"] for row in written] == ["device"] * 2 + ["sample"] * 4 + ["end"]
    first = written[2]
    assert first["uuid"] == A
    assert first["node"] == 3
    assert first["t_s"] == 1
    assert first["power_w"] == 300
    assert first["sm_mhz"] == 1980
    assert first["throttle"] == ["power cap"]
    assert first["memory_used_bytes"] == 1 << 30
    assert first["temperature_c"] == 40
    assert first["busy"] == 0.9
    assert written[0]["tensor_peak_flop_s"] == pytest.approx(132 * 4096 * 1980e6)
    assert "whitepaper" in written[0]["tensor_peak_source"]
    assert written[-1]["error"] is None


def test_the_tensor_estimate_is_utilisation_times_the_peak_at_the_current_clock(tmp_path: Path) -> None:
    scenario = f"device {A}\npower_w 500\nclock_mhz 0:1980 10:990\ngpm tensor 50\n"
    written = sample(tmp_path / "gpu.jsonl", scenario, [A], [0, 10])
    estimates = [row["tensor_estimate_flop_s"] for row in written if row["kind"] == "sample"]
    assert estimates[0] is None  # one GPM sample is no interval
    assert estimates[1] == pytest.approx(0.5 * 132 * 4096 * 990e6)


def test_the_peak_of_a_mig_instance_is_its_own_sms(tmp_path: Path) -> None:
    written = sample(tmp_path / "gpu.jsonl", "mig", [C], [0, 10])
    assert written[2]["tensor_estimate_flop_s"] == pytest.approx(0.5 * 60 * 4096 * 1980e6)
    assert written[2]["power_w"] is None
    assert written[2]["busy"] is None


def test_what_a_device_does_not_tell_is_null_with_its_reason(tmp_path: Path) -> None:
    written = sample(tmp_path / "gpu.jsonl", "no_gpm", [A], [0, 1])
    assert all(row["gpm"] is None and row["tensor_estimate_flop_s"] is None for row in written[1:3])
    assert "no GPM" in written[0]["missing"]["gpm"]
    denied = sample(tmp_path / "denied.jsonl", "denied", [A], [0])
    assert denied[1]["power_w"] is None
    assert denied[-1]["missing"][A]["power"] == "permission denied"


def test_a_lost_device_is_reported_once_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    written = sample(path, "lost", [A, B], [10, 20, 31, 40])
    assert [row["uuid"] for row in written if row["kind"] == "lost"] == [A]
    assert [row["t_s"] for row in written if row["kind"] == "sample" and row["uuid"] == B] == [10, 20, 31, 40]
    gone, alive = summarise([path])
    assert gone.lost_at_s == 31
    assert gone.samples == 2
    assert alive.lost_at_s is None
    assert alive.samples == 4


def test_without_nvml_the_record_says_why_it_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    written = sample(path, "no_driver", [A], [1])
    assert [row["kind"] for row in written] == ["none", "end"]
    assert "Driver Not Loaded" in written[0]["reason"]
    assert summarise([path]) == []
    with open_sampler([], tmp_path / "cpu.jsonl") as sampler:
        assert sampler.error is None
    assert rows(tmp_path / "cpu.jsonl")[0]["reason"] == "the run uses no GPU"


# -- summaries -----------------------------------------------------------------------------------------
def test_a_summary_weighs_samples_by_the_time_they_speak_for(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    scenario = f"device {A}\npower_w 0:100 1:100 1:400 11:400\ngpm tensor 0:10 1:10 1:60 11:60\n"
    sample(path, scenario, [A], [0, 0.9, 10.9])
    (summary,) = summarise([path])
    assert summary.samples == 3
    assert summary.sampled_s == pytest.approx(10.9)
    assert summary.means["power_w"] == pytest.approx((100 * 0.9 + 400 * 10) / 10.9)
    # tensor: 10 % for 0.9 s, then the mean over 0.9 … 10.9, which the fake knows exactly
    busy_s = 0.1 * 0.9 + (0.1 * 0.1 + 0.6 * 9.9)
    assert summary.tensor_estimate_flop == pytest.approx(busy_s * 132 * 4096 * 1980e6, rel=1e-3)
    assert summary.tensor_coverage == pytest.approx(1)
    assert summary.memory_peak_bytes == 1 << 30
    assert summary.throttled == {}


def test_a_summary_of_a_device_without_gpm_has_no_estimate(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    sample(path, "no_gpm", [A], [1, 2])
    (summary,) = summarise([path])
    assert summary.tensor_estimate_flop is None
    assert summary.tensor_coverage == 0
    assert summary.gpm["tensor"] is None


def test_a_record_that_was_killed_and_continued_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    sample(path, "constant", [A], [1, 2])
    with path.open("a") as file:
        file.write('{"kind":"sample","t_s":3,"uu\n')
    sample_again = fake_nvml.run("sample", "constant", uuids=[A], path=str(path), times_s=[1, 2, 3])
    assert sample_again["error"] is None
    (summary,) = summarise([path])
    assert summary.samples == 5
    assert summary.sampled_s == pytest.approx(5)
    assert summary.throttled == {"power cap": 1.0}


# -- running -------------------------------------------------------------------------------------------
def test_the_thread_samples_within_its_share_and_stops_at_once(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    result = fake_nvml.run(
        "sample_threaded", "reset", uuids=[A], path=str(path), period_s=0.05, seconds=2.0, factor=15.0
    )
    assert result["error"] is None
    assert result["stopped_in_s"] < 2
    assert result["overhead"] <= 0.005 * 1.2
    end = rows(path)[-1]
    assert end["kind"] == "end"
    assert end["ticks"] >= 10
    assert end["core_share"] == pytest.approx(result["overhead"], rel=0.2)
    # Polled by the sampler, the energy meter saw the reset at 20.37 s of the fake to within a few periods.
    assert result["energy"]["coverage"] > 0.9
    assert any("reset" in note for note in result["energy"]["notes"])


def test_work_that_is_too_dear_is_done_less_often() -> None:
    def burn() -> None:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass

    ticker = Ticker(burn, period_s=0.001, max_share=0.05)
    ticker.start()
    time.sleep(0.6)
    assert ticker.stop()
    assert 2 <= ticker.ticks <= 9  # 0.004 s at 5 % of a core is every 0.08 s
    assert ticker.overhead < 0.08


def test_a_full_disk_ends_sampling_and_nothing_else() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    polls: list[int] = []
    sampler = Sampler([], full, period_s=0.01, also=[lambda: polls.append(1)])
    sampler.start()
    time.sleep(0.05)
    sampler.stop()
    assert sampler.error is not None
    assert "No space left" in sampler.error


def test_a_failure_while_sampling_is_kept_and_does_not_escape(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the sensor caught fire")

    sampler = Sampler([], tmp_path / "gpu.jsonl", period_s=0.01, also=[fail])
    with sampler:
        time.sleep(0.1)
    assert sampler.error == "RuntimeError: the sensor caught fire"
    assert rows(tmp_path / "gpu.jsonl")[-1]["error"] == sampler.error


def test_a_period_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        Ticker(lambda: None, period_s=0)
