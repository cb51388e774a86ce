"""What is kept in records/ is of the studies that ship, names no folder of the machine it was made on, and is quoted as it is."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import yaml

from harness.rundir import load_study
from harness.study import load

TEXTS = (".json", ".jsonl", ".md", ".yaml", ".csv", ".html", ".txt", ".gz")


def test_no_record_names_a_folder_of_the_machine_it_was_made_on(root: Path) -> None:
    files = [file for file in sorted((root / "records").rglob("*")) if file.suffix in TEXTS]
    assert len(files) > 300
    for file in files:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8")
        found = re.search(r"(?<![\w.*/])/(tmp|home|root|work|mnt|var/tmp)/\w+", text)
        assert found is None, f"{file.relative_to(root)} names {found and found[0]}"


@pytest.mark.parametrize("name", ["quickstart", "quickstart_causal", "paper_code_ablation", "split", "domains"])
def test_the_newest_record_of_a_small_study_is_of_the_study_that_ships(root: Path, name: str) -> None:
    assert load_study(newest(root, name)) == load(name)


@pytest.mark.parametrize("name", ["crossover", "amortise", "repetition", "teacher_size", "teacher_budget"])
def test_the_newest_record_of_a_small_sweep_is_of_the_sweep_that_ships(root: Path, name: str) -> None:
    shipped = (root / "harness" / "studies" / f"{name}.yaml").read_text(encoding="utf-8")
    kept = (newest(root, name) / "sweep.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(kept) == yaml.safe_load(shipped)


def newest(root: Path, name: str) -> Path:
    return sorted((root / "records").glob(f"*_{name}_2-core-cpu"))[-1]


def test_the_break_even_that_the_readme_tells_is_the_one_that_was_measured(root: Path) -> None:
    (told,) = re.findall(r"\[(\d+) of them\]\((records/[^)]*)\)", (root / "README.md").read_text(encoding="utf-8"))
    measured = json.loads((root / told[1] / "report.json").read_text(encoding="utf-8"))["answer"]["lines"][0]
    assert int(told[0]) == round(measured["students"])
