"""The table of devices is complete and plausible; a malformed machine is refused in one line."""

from __future__ import annotations

import pytest

from harness import cli
from harness.errors import ConfigError
from harness.meters.peaks import peak_of
from harness.plan.machines import PRESETS, parse_on, preset_of
from harness.plan.speed import Utilisation


def test_every_preset_is_complete_positive_and_names_its_source() -> None:
    for name, preset in PRESETS.items():
        figures = (
            preset.half_flop_s, preset.single_flop_s, preset.memory_bytes, preset.memory_byte_s, preset.watts,
            preset.link_byte_s, preset.network_byte_s,
        )  # fmt: skip
        assert all(figure > 0 for figure in figures), name
        assert preset.half_flop_s >= preset.single_flop_s, f"{name}: tensor cores are not slower than plain ones"
        assert preset.link_byte_s >= preset.network_byte_s, f"{name}: a node's inside is not slower than its outside"
        assert any(year in preset.source for year in map(str, range(2017, 2027))), f"{name}: a source has a year"
    wanted = "b200 h200 h100 a100-80 a100-40 l40s rtx4090 mi300x v100 t4".split()
    assert set(wanted) <= set(PRESETS)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"), ("NVIDIA A100-SXM4-40GB", "a100-40"), ("NVIDIA B200", "b200"),
        ("Tesla V100-SXM2-32GB", "v100"), ("Tesla T4", "t4"), ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"),
    ],
)  # fmt: skip
def test_plan_and_meters_agree_on_a_devices_peak(device: str, name: str) -> None:
    """Two tables for two questions (per clock, per second) tell one number."""
    preset, peak = preset_of(device), peak_of(device)
    assert preset is PRESETS[name]
    assert peak is not None
    assert preset.half_flop_s == pytest.approx(peak.datasheet_flop_s, rel=0.02)


def test_machines_are_read_as_people_write_them() -> None:
    assert (parse_on("h200").devices, parse_on("h200").nodes) == (1, 1)
    assert (parse_on("8xH200").devices, parse_on("8 x h200").per_node) == (8, 8)
    big = parse_on("64xa100-80")
    assert (big.nodes, big.per_node, big.preset.name) == (8, 8, "a100-80")


@pytest.mark.parametrize("text", ["8xh201", "0xh200", "x", "8x", "-8xh200", "8.5xh200", "12xh200", "h200 h200"])
def test_a_malformed_machine_exits_with_2_and_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        parse_on(text)
    assert cli.main(["plan", f"--on={text}"]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert text.strip() in said


@pytest.mark.parametrize("flags", [["--price=-1"], ["--watts=-5"], ["--grid=-1"], ["--price=nan"], ["--price=inf"]])
def test_a_negative_or_endless_amount_exits_with_2_and_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *flags]) == 2
    assert "\n" not in capsys.readouterr().err.strip()


@pytest.mark.parametrize("text", ["0", "1.5", "-0.3", "a", "0.3,0.4,0.5", "", "nan"])
def test_a_utilisation_is_one_or_two_shares(text: str) -> None:
    with pytest.raises(ConfigError):
        Utilisation.parse(text)


def test_the_teachers_share_rises_with_the_students_and_never_above_one() -> None:
    low, high = Utilisation.parse("0.2"), Utilisation.parse("0.9")
    assert low.teacher > low.student
    assert high.teacher == 1.0
    assert Utilisation.parse("0.4,0.55") == Utilisation(0.4, 0.55)
