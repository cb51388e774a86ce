"""What the record of the two cores and docs/speed.md say in words is what the record's files hold."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

RECORD = Path("records/2026-11-22_bench_2-core-cpu")


@pytest.fixture
def told(root: Path) -> tuple[str, str]:
    """The record's README, and the page about speed."""
    record, page = root / RECORD / "README.md", root / "docs" / "speed.md"
    return record.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


def read(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / RECORD / name).read_text(encoding="utf-8"))


def test_how_far_the_arms_are_from_the_definition_is_said_as_it_was_measured(root: Path, told: tuple[str, str]) -> None:
    checks = [arm["check"] for name in ("bench.json", "bench_again.json") for arm in read(root, name)["arms"]]
    worst = max(max(check.values()) for check in checks)
    assert 1.2e-6 < worst <= 1.3e-6
    assert "equal the definition's to 1.3e-6" in told[0]
    assert "figures stand at 1.3e-6 and less" in told[1]


def soft_ratios(root: Path, name: str) -> dict[str, float]:
    """Eager's time over the definition's, by problem."""
    rows = [row for row in read(root, name)["rows"] if row["problem"].startswith("soft targets")]
    p50 = {(row["problem"], row["backend"]): row["p50_ms"] for row in rows}
    return {problem: p50[problem, "eager"] / p50[problem, "reference"] for problem, _ in p50}


def test_the_soft_cross_entropys_figures_are_those_of_three_takes(root: Path, told: tuple[str, str]) -> None:
    takes = [soft_ratios(root, name) for name in ("kernels.json", "kernels_again.json", "kernels_soft_earlier.json")]
    assert [set(take) for take in takes] == [set(takes[0])] * 3
    medians = [round(statistics.median(take[problem] for take in takes), 2) for problem in takes[0]]
    assert sum(ratio > 0.7 for take in takes for ratio in take.values()) == 3
    assert sorted(medians) == [0.59, 0.64, 0.66, 0.66]
    assert all("3 of the 12" in text for text in told)
    assert "0.64, 0.59, 0.66, 0.66" in told[0]
    assert "0.64, 0.66, 0.59 and 0.66" in told[1]
