"""NVML through the real nvidia-ml-py, over a library of our own: devices by UUID, None with a reason, never 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.meters.peaks import PEAKS, peak_of

sys.path.insert(0, str(Path(__file__).parents[1] / "fake_nvml"))
import fake_nvml

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"
C = "MIG-cccccccc-0000-0000-0000-000000000003"
D = "MIG-dddddddd-0000-0000-0000-000000000004"


@pytest.fixture(autouse=True, scope="module")
def fake_nvml_builds() -> Iterator[None]:
    yield
    fake_nvml.remove_builds()


def test_every_query_answers_in_its_stated_unit() -> None:
    answers = fake_nvml.run("describe", "constant", uuid=A, at_s=10.0)
    assert answers["energy_mj"] == 123456789 + 300 * 10 * 1000
    assert answers["power_w"] == 300
    assert answers["power_limit_w"] == 700
    assert answers["sm_mhz"] == 1980
    assert answers["temperature_c"] == 40
    assert answers["memory"] == {"used_bytes": 1 << 30, "total_bytes": 80 << 30}
    assert answers["utilisation"] == {"busy": 0.9, "memory": 0.3}
    assert answers["throttle"] == ["power cap"]
    assert answers["capability"] == [9, 0]
    assert answers["gpm"]
    assert not answers["lost"]
    assert answers["reasons"] == {}


def test_refused_queries_are_none_with_a_reason_and_are_not_asked_again() -> None:
    once = fake_nvml.run("describe", "denied", uuid=A)
    assert once["energy_mj"] is None
    assert once["power_w"] is None
    assert not once["gpm"]
    assert once["reasons"] == dict.fromkeys(("energy", "power", "gpm"), "permission denied")
    twice = fake_nvml.run("describe", "denied", uuid=A, times=2)
    assert twice["calls"] == once["calls"] - 3
    assert twice["reasons"] == once["reasons"]


def test_an_old_driver_lacks_functions_and_the_older_spelling_is_used() -> None:
    answers = fake_nvml.run("describe", "constant", uuid=A, defines=("OLD_DRIVER",))
    assert answers["energy_mj"] is None
    assert "not in this driver" in answers["reasons"]["energy"]
    assert not answers["gpm"]
    assert "not in this driver" in answers["reasons"]["gpm"]
    assert answers["temperature_c"] == 40
    assert answers["throttle"] == ["power cap"]
    assert answers["power_w"] == 300


def test_a_lost_gpu_answers_nothing_and_is_left_alone() -> None:
    answers = fake_nvml.run("describe", "lost", uuid=A, at_s=31.0, times=2)
    assert answers["lost"]
    assert answers["calls"] == 0
    values = ("energy_mj", "power_w", "sm_mhz", "temperature_c", "memory", "utilisation", "throttle")
    assert all(answers[key] is None for key in values)
    assert set(answers["reasons"].values()) == {"the GPU is lost"}
    assert not fake_nvml.run("describe", "lost", uuid=B, at_s=31.0)["lost"]


def test_a_mig_instance_has_its_own_memory_the_boards_clock_and_no_power() -> None:
    answers = fake_nvml.run("describe", "mig", uuid=C)
    assert answers["is_mig"]
    assert answers["sm_count"] == 60
    assert answers["gpm"]
    assert answers["memory"]["total_bytes"] == (80 << 30) * 60 // 132
    assert answers["sm_mhz"] == 1980
    assert answers["temperature_c"] == 40
    assert answers["capability"] == [9, 0]
    assert answers["energy_mj"] is None
    assert answers["power_w"] is None
    assert "whole GPU" in answers["reasons"]["energy"]
    assert "whole GPU" in answers["reasons"]["power"]


def test_a_device_is_found_by_every_spelling_of_its_uuid() -> None:
    spellings = [A, A.removeprefix("GPU-"), A.upper().replace("GPU", "GPU"), "GPU-aaaa", C, C.removeprefix("MIG-")]
    old = f"MIG-{B}/2/0"
    assert fake_nvml.run("resolve", "mig", uuids=[*spellings, old, "MIG-d"]) == [A, A, A, A, C, C, D, D]


def test_an_unknown_or_ambiguous_uuid_is_refused() -> None:
    answers = fake_nvml.run("resolve", "mig", uuids=["GPU-ffffffff", "0", "GPU-", "MIG-"])
    assert all(answer.startswith("refused") for answer in answers)


def test_visible_devices_follow_cudas_rules() -> None:
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    cases: list[tuple[dict[str, str], list[str]]] = [
        ({}, [A, B]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, [B, A]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [B]),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, [A]),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, [A]),
        ({"CUDA_VISIBLE_DEVICES": f"{B},GPU-aaaa"}, [B, A]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-ffff,0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, []),
        ({**order, "CUDA_VISIBLE_DEVICES": "1,0"}, [B, A]),
    ]
    seen = fake_nvml.run("visible", "constant", environments=[environment for environment, _ in cases])
    assert seen == [expected for _, expected in cases]


def test_cudas_order_of_unlike_gpus_is_not_guessed() -> None:
    index, by_bus, by_uuid = fake_nvml.run(
        "visible",
        "other_order",
        environments=[
            {"CUDA_VISIBLE_DEVICES": "0"},
            {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            {"CUDA_VISIBLE_DEVICES": B},
        ],
    )
    assert index.startswith("refused")
    assert "sorts them by speed" in index
    assert by_bus == [A]
    assert by_uuid == [B]


def test_an_index_of_a_split_gpu_is_refused_and_an_instances_uuid_is_not() -> None:
    index, instance = fake_nvml.run(
        "visible", "mig", environments=[{"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": C}]
    )
    assert "MIG" in index
    assert instance == [C]


def test_nvml_that_cannot_be_opened_says_why_and_what_to_do(tmp_path: Path) -> None:
    driver = fake_nvml.run("connect", "no_driver")
    assert not driver["open"]
    assert driver["reason"] == "Driver Not Loaded"
    assert "kernel module" in driver["remedy"]
    # A file that is no library hides whatever the machine itself has.
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    absent = fake_nvml.run("connect", "constant", folder=tmp_path)
    assert not absent["open"]
    assert "Library Not Found" in absent["reason"]
    assert "install the NVIDIA driver" in absent["remedy"]


def test_gpm_averages_between_two_samples() -> None:
    first, rising, level = fake_nvml.run("gpm", "constant", uuid=A, times_s=[0, 10, 20])["readings"]
    assert first is None
    assert rising["tensor"] == pytest.approx(0.4)
    assert level["tensor"] == pytest.approx(0.6)
    assert level["sm"] == pytest.approx(0.8)
    assert level["dram"] == pytest.approx(0.5)
    assert level["hmma"] is None
    assert level["fp32"] is None


def test_gpm_of_a_mig_instance_is_sampled_through_its_gpu() -> None:
    assert fake_nvml.run("gpm", "mig", uuid=C, times_s=[0, 10])["readings"][1]["tensor"] == pytest.approx(0.5)


def test_a_gpu_without_gpm_says_so() -> None:
    answer = fake_nvml.run("gpm", "no_gpm", uuid=A, times_s=[0])
    assert answer["readings"] is None
    assert "no GPM" in answer["reason"]


def test_gpm_of_a_gpu_that_is_lost_ends_with_a_reason() -> None:
    answer = fake_nvml.run("gpm", "lost", uuid=A, times_s=[0, 10, 31, 32])
    assert answer["readings"][1]["tensor"] == pytest.approx(0.5)
    assert answer["readings"][2:] == [None, None]
    assert answer["reason"] == "the GPU is lost"


# -- peaks ---------------------------------------------------------------------------------------------
DATASHEET_TFLOPS = {
    "B200": 2250, "H100 PCIe": 756, "H100 NVL": 835, "H200 NVL": 836, "H200": 989, "GH200": 989, "H100": 989,
    "A100": 312, "L40S": 362, "L4": 121, "V100": 125, "T4": 65,
}  # fmt: skip


def test_the_table_of_peaks_reproduces_the_data_sheets() -> None:
    assert {peak.model for peak in PEAKS} == set(DATASHEET_TFLOPS)
    for peak in PEAKS:
        assert peak.datasheet_flop_s == pytest.approx(DATASHEET_TFLOPS[peak.model] * 1e12, rel=0.01), peak.model
        assert peak.at(peak.tensor_mhz / 2) == pytest.approx(peak.datasheet_flop_s / 2)


def test_a_peak_is_found_by_nvmls_names_and_not_for_strangers() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA A100-PCIE-40GB": "A100", "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe", "NVIDIA H100 NVL": "H100 NVL", "NVIDIA H200": "H200",
        "NVIDIA GH200 480GB": "GH200", "NVIDIA B200": "B200", "Tesla V100-SXM2-16GB": "V100", "Tesla T4": "T4",
        "NVIDIA L40S": "L40S", "NVIDIA L4": "L4",
    }  # fmt: skip
    found = {name: peak_of(name) for name in names}
    assert {name: peak and peak.model for name, peak in found.items()} == names
    assert peak_of("NVIDIA GeForce RTX 5090") is None
