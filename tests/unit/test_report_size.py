"""Laws of the table of size and latency: means over seeds of what was measured, and nothing where nothing was."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from harness.models.families import family_of
from harness.models.parameter_names import layer_of, within
from harness.report import build_report

from .model_zoo import ZOO, build, config, shape
from .report_fakes import ARMS, MODEL, REFERENCES, edit_record, write_study


def measured(milliseconds: float, *, device: str = "A CPU") -> dict[str, Any]:
    """A measurement whose batch of one took this long."""
    one = {"p20_ms": milliseconds - 1, "p50_ms": milliseconds, "p80_ms": milliseconds + 2, "runs": 9}
    return {**MODEL, "latency": {**MODEL["latency"], "device": device, "batch_1": one}}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    directory = write_study(tmp_path / "s", seeds=2, arms=ARMS[:2])
    for path in directory.glob("arms/*/*/metrics.jsonl"):
        path.write_text("")
    return directory


def table(directory: Path) -> list[str]:
    """The table's lines in the Markdown."""
    text = (directory / "report.md").read_text()
    return text.partition("## Size and latency\n")[2].partition("\n## ")[0].strip().splitlines()


def test_size_and_latency_reach_every_form_of_the_report(study: Path) -> None:
    for seed, time in ((1, 5.0), (2, 7.0)):
        edit_record(study / f"arms/no_kd/seed-{seed}", model=measured(time), exported_layers=2)
    report = build_report(study)
    assert [run.get("model") for run in report["arms"]] == [measured(5.0), measured(7.0), None, None]
    assert report["arms"][0]["exported_layers"] == 2
    lines = table(study)
    assert lines[0] == "| Arm | Parameters | Without embeddings | On disk | Batch of 1, ms | Batch of 32, ms |"
    assert lines[2] == "| no_kd | 600 k | 100 k | 2.4 MB | 6.00 5.00 to 8.00 | 70.6 66.2 to 177 |"
    assert "soft_targets" not in "".join(lines)
    assert "on A CPU, 2 threads, fp32, sequences of 128 tokens" in lines[-1]
    html = (study / "report.html").read_text()
    assert "Size and latency" in html
    assert "seed 1: 5.00, seed 2: 7.00" in html
    with (study / "tables" / "size.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["bytes"], row["batch_1_p50_ms"]) for row in rows] == [
        ("no_kd", "1", "2400000", "5.0"), ("no_kd", "2", "2400000", "7.0"),
    ]  # fmt: skip


def test_without_a_measurement_there_is_no_table(study: Path) -> None:
    build_report(study)
    assert table(study) == []
    assert "Size and latency" not in (study / "report.html").read_text()


def test_references_stand_below_where_they_were_measured(study: Path) -> None:
    edit_record(study / "arms/no_kd/seed-1", model=measured(5.0))
    teacher = {**REFERENCES["teacher"], "model": {**measured(20.0), "parameters": 3_000_000}}
    (study / "references.json").write_text(json.dumps({**REFERENCES, "teacher": teacher}))
    build_report(study)
    assert table(study)[3].startswith("| Teacher | 3 M | ")
    assert "| 20.0 19.0 to 22.0 |" in table(study)[3]


def test_latencies_of_two_devices_are_not_passed_off_as_comparable(study: Path) -> None:
    for arm, device in (("no_kd", "A CPU"), ("soft_targets", "H200")):
        edit_record(study / f"arms/{arm}/seed-1", model=measured(5.0, device=device))
    build_report(study)
    text = "\n".join(table(study))
    assert "A CPU, 2 threads, fp32, sequences of 128 tokens; H200, 2 threads" in text
    assert "not comparable" in text


@pytest.mark.parametrize(
    "broken",
    [
        {"latency": "?"},
        {"latency": {"batch_1": {"p50_ms": None}, "batch_x": 3}},
        {"bytes": "many"},
        {"parameters": None},
    ],
)
def test_a_broken_measurement_leaves_a_gap_and_breaks_nothing(study: Path, broken: dict[str, Any]) -> None:
    edit_record(study / "arms/no_kd/seed-1", model=broken)
    build_report(study)
    assert table(study)[2].startswith("| no_kd | –")


@pytest.mark.parametrize("name", ZOO)
def test_a_parameter_s_name_tells_its_layer_in_every_family(name: str) -> None:
    made = config(name)
    model = build(made)
    layers = family_of(model, shape(made)).layers
    place = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters()}
    parameters = dict(model.named_parameters())
    assert {each: layer_of(each) for each in parameters} == {each: place.get(id(p)) for each, p in parameters.items()}
    assert within(parameters, 2) == [each for each, p in parameters.items() if place.get(id(p)) != 2]
    assert within(parameters, None) == list(parameters)
