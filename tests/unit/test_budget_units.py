"""A budget in every unit cuts a real run; energy through the real nvidia-ml-py on a fake library, and from a fake RAPL."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import cli
from harness.meters import rapl
from tests.support.tiny import TinyStudy

sys.path.insert(0, str(Path(__file__).parents[1] / "fake_nvml"))
import fake_nvml

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
STEPS_ONLY = "accounting.charged=[STUDENT_STEP, TEACHER_FORWARD, OBJECTIVE]"
# One arm, one seed, no curve: the budget decides how long a run is, not the evaluation.
SMALL = ["--arms", "minilmv2"]
for _key, _value in (("curve_points", "0"), ("readout", "null"), ("main", "mlm.loss")):
    SMALL += ["--set", f"evaluation.{_key}={_value}"]


def command(tiny: TinyStudy, out: Path, budget: str, *flags: str) -> list[str]:
    return ["run", "--study", str(tiny.file), "--out", str(out), "--budget", budget, *SMALL, *flags]


def record(out: Path) -> dict:
    return json.loads((out / "arms" / "minilmv2" / "seed-1" / "record.json").read_text())


def postings(out: Path, account: str, unit: str) -> list[float]:
    rows = (out / "arms" / "minilmv2" / "seed-1" / "ledger.jsonl").read_text().splitlines()
    return [c[1] for row in map(json.loads, rows) for c in row["charges"] if c[0] == account and c[2] == unit]


@pytest.fixture(autouse=True, scope="module")
def fake_nvml_builds() -> Iterator[None]:
    yield
    fake_nvml.remove_builds()


@pytest.fixture
def rapl_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """A package that draws 100 W, its register as it stands when it is read; gives its power."""
    watts, zone = 100.0, tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    (zone / "energy_uj").write_text("0\n")
    begun, readable, read = time.monotonic(), rapl.readable, rapl.Zone.read_j

    def moved(found: rapl.Zone) -> float | None:
        (zone / ".energy").write_text(f"{int((time.monotonic() - begun) * watts * 1e6)}\n")
        os.replace(zone / ".energy", zone / "energy_uj")
        return read(found)

    monkeypatch.setattr(rapl.Zone, "read_j", moved)
    monkeypatch.setattr(rapl, "readable", lambda: readable(zone.parent))
    return watts


@pytest.mark.parametrize(("budget", "unit"), [("1.5 s", "second"), ("1.5 gpu-s", "gpu-second")])
def test_time_cuts_a_run_within_one_step(tiny: TinyStudy, tmp_path: Path, budget: str, unit: str) -> None:
    out = tmp_path / "run"
    assert cli.main(command(tiny, out, budget, "--set", STEPS_ONLY)) == 0
    row, student = record(out), postings(out, "STUDENT_STEP", unit)
    teacher = postings(out, "TEACHER_FORWARD", unit)
    assert row["budget_unit"] == unit
    assert row["charged"] == pytest.approx(sum(student) + sum(teacher))
    assert abs(row["unspent"]) <= max(student) + max(teacher, default=0)
    assert row["steps"] > 1


def test_allocated_time_is_billed_from_start_to_end(tiny: TinyStudy, tmp_path: Path) -> None:
    """Start-up and checkpoints are charged; on one process held and waited are the same number."""
    out = tmp_path / "run"
    assert cli.main(command(tiny, out, "12 allocated-gpu-s", "--set", "checkpoints=2")) == 0
    row = record(out)
    accounts = row["accounts"]
    charged = [accounts[name]["allocated-gpu-second"] for name in ("STARTUP", "CHECKPOINT", "STUDENT_STEP")]
    assert all(seconds > 0 for seconds in charged)
    assert row["charged"] == pytest.approx(sum(charged))
    assert row["charged_in"]["second"] == pytest.approx(row["charged"])
    assert abs(row["unspent"]) <= max(postings(out, "STUDENT_STEP", "second"))


def test_two_runs_of_a_counted_budget_give_the_same_ledger(tiny: TinyStudy, tmp_path: Path) -> None:
    def counted(out: Path) -> list:
        rows = (out / "arms" / "minilmv2" / "seed-1" / "ledger.jsonl").read_text().splitlines()
        kept = [(r["step"], [c for c in r["charges"] if c[3] == "analytic"], r["spent"]) for r in map(json.loads, rows)]
        return [row for row in kept if row[1]]

    for out in (tmp_path / "one", tmp_path / "two"):
        assert cli.main(command(tiny, out, "3000 tokens")) == 0
    first = record(tmp_path / "one")
    assert counted(tmp_path / "one") == counted(tmp_path / "two")
    assert first["charged"] == first["tokens"] == 3000 // 256 * 256
    assert 0 <= first["unspent"] < first["step_price"] == 256


def test_energy_of_a_cpu_package_cuts_a_run(tiny: TinyStudy, tmp_path: Path, rapl_tree: float) -> None:
    out = tmp_path / "run"
    assert cli.main(command(tiny, out, "150 J", "--set", "accounting.grid_g_per_kwh=400")) == 0
    row, energy = record(out), record(out)["energy"]
    assert row["charged"] == pytest.approx(row["accounts"]["STUDENT_STEP"]["joule"])
    assert abs(row["unspent"]) <= max(postings(out, "STUDENT_STEP", "joule"))
    assert energy["source"].startswith("RAPL counters (package-0)")
    assert energy["coverage"] == pytest.approx(1.0)
    assert energy["joule"] == pytest.approx(sum(energy["by_account"].values()))
    assert energy["by_account"]["STARTUP"] > 0
    lasted = sum(units.get("second", 0) for units in row["accounts"].values())
    assert energy["joule"] == pytest.approx(rapl_tree * lasted, rel=0.05)
    assert energy["carbon_g"] == pytest.approx(energy["joule"] / 3.6e6 * 400)


def test_energy_without_an_instrument_is_refused_in_one_line(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rapl, "readable", lambda: ([], "no RAPL zones here"))
    assert cli.main(command(tiny, tmp_path / "run", "0.5 kWh")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert "no RAPL zones here" in line
    assert "flop, tokens, gpu-hours or minutes" in line
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.parametrize("budget", ["0 gpu-hours", "-1 kWh", "3 parsecs", "nan s"])
def test_a_limit_that_is_none_is_refused(tiny: TinyStudy, tmp_path: Path, budget: str) -> None:
    assert cli.main(command(tiny, tmp_path / "run", budget)) == 2
    assert not (tmp_path / "run").exists()


def test_other_hardware_may_not_join_in_a_measured_unit(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(tiny, tmp_path / "run", "1.5 gpu-s", "--allow", "hardware")) == 2
    assert "different currencies" in capsys.readouterr().err


def test_energy_from_nvml_cuts_a_run_and_a_lost_gpu_does_not_end_one(tiny: TinyStudy, tmp_path: Path) -> None:
    """Through the real nvidia-ml-py: a budget in joules; then one in device time whose GPU is lost on the way."""
    scenario = f"device {A}\npower_w 200\nupdate_s 0.02\nlost_at 100000\ngpm tensor 50\nclock_mhz 1000\n"
    runs = []
    for name, budget, at_s in (("joules", "300 J", 0.0), ("lost", "5 gpu-s", 99_996.0)):
        out = tmp_path / name
        file = out / "arms" / "minilmv2" / "seed-1" / "record.json"
        runs.append({"command": command(tiny, out, budget), "at_s": at_s, "record": str(file)})
    joules, lost = fake_nvml.run("train", scenario, uuids=[A], runs=runs, timeout_s=300)
    assert joules["code"] == lost["code"] == 0
    assert joules["energy"]["source"] == "NVML energy counter"
    assert joules["energy"]["coverage"] == pytest.approx(1.0, abs=0.05)
    assert abs(joules["unspent"]) <= max(postings(tmp_path / "joules", "STUDENT_STEP", "joule"))
    assert joules["utilisation"]["devices"][0]["uuid"] == A
    assert lost["steps"] > 0
    assert lost["energy"]["coverage"] < 1
    assert any("lost" in note for note in lost["energy"]["notes"])
