"""The table a person reads: names whole at any width, lines within the width, every amount with its unit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ds_config import default
from harness.plan.bill import Terms
from harness.plan.estimate import estimate
from harness.plan.machines import parse_on
from harness.plan.outline import sketch
from harness.plan.show import duration, grid, size, text
from harness.study import load, validate
from tests.support.tiny import TinyStudy

LONG = "soft_targets_with_a_name_as_long_as_names_may_be_and_no_longer_x"  # 64 characters, the most a study allows


def silent(line: str) -> None:
    del line


def table_of(tiny: TinyStudy, *names: str) -> dict[str, object]:
    arms = [{"name": name, "objective": "mlm"} for name in names]
    study = validate(tiny.tree(arms=arms), where="test")
    found = sketch(study, default(bf16=True), world=8, tell=silent)
    return estimate(found, machine=parse_on("8xh200"), terms=Terms(price=2.5, currency="EUR", grid_g_per_kwh=300.0))


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_names_and_headings_are_never_cut(tiny: TinyStudy, width: int) -> None:
    shown = text(table_of(tiny, "a", LONG), width=width)
    assert "…" not in shown
    assert len(re.findall(rf"(?m)^{LONG}\b", shown)) >= 5
    headings = (
        "steps",
        "tokens",
        "epochs",
        "evaluation",
        "student",
        "activations",
        "energy",
        "money",
        "carbon",
        "held",
    )
    for heading in headings:
        assert re.search(rf"\b{heading}\b", shown), heading


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal(tiny: TinyStudy, width: int) -> None:
    shown = text(table_of(tiny, "no_kd", "soft_targets_published", LONG), width=width)
    assert max(len(line) for line in shown.splitlines()) <= width


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("study", ["quickstart", "paper_6l_6epochs"])
def test_shipped_studies_fit_the_terminal(study: str, width: int) -> None:
    found = sketch(load(study), default(bf16=True), world=8, tell=silent)
    shown = text(estimate(found, machine=parse_on("8xh200"), terms=Terms(price=3.0)), width=width)
    assert max(len(line) for line in shown.splitlines()) <= width
    for arm in found.study.arms:
        assert arm.name in shown


@given(
    names=st.lists(st.text("ab_", min_size=1, max_size=64), min_size=1, max_size=4),
    cells=st.lists(st.text("0123456789", min_size=1, max_size=12), min_size=1, max_size=9),
    width=st.integers(20, 160),
)
def test_a_grid_keeps_every_cell(names: list[str], cells: list[str], width: int) -> None:
    headings = ["arm", *(f"column{i}" for i in range(len(cells)))]
    shown = grid("Title", headings, [[name, *cells] for name in names], width)
    words = shown.replace(":", " ").split()
    for word in (*headings[1:], *names, *cells):
        assert word in words
    for name in set(names):
        assert words.count(name) >= names.count(name)


@given(seconds=st.floats(1e-6, 1e9))
def test_durations_are_read_back_within_their_digits(seconds: float) -> None:
    number, unit = duration(seconds).split()
    scale = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "days": 86400}[unit]
    assert float(number.replace(",", "")) * scale == pytest.approx(seconds, rel=0.006)


def test_sizes_have_units() -> None:
    assert [size(n) for n in (None, 0, 12, 2.5e3, 3e6, 1.41e11, 2e12)] == [
        "unknown", "–", "12 B", "2.5 kB", "3 MB", "141 GB", "2 TB",
    ]  # fmt: skip
