"""Laws of the two study sections: a fraction is read from phases, many comparisons are corrected, effects are paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.compare import paired_t
from harness.report.pretraining_first import PLAIN, course
from harness.report.publish import build_report

from .objective_cases import every_case, make
from .report_fakes import ARMS, FakeArm, write_study


# -- fractions -------------------------------------------------------------------------------------
def test_plain_objectives_are_those_that_never_ask_a_teacher() -> None:
    asks = {case.name: bool(make(case).objective.teacher_needs) for case in every_case()}
    assert {name for name, needs in asks.items() if not needs} == set(PLAIN)


@given(ends=st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True).map(sorted), start=st.booleans())
def test_a_course_adds_up_whatever_the_phases(ends: list[int], start: bool) -> None:
    """Phases alternate between plain pretraining and distillation."""
    ends = [*ends, 100]
    names = ["mlm" if (i % 2 == 0) == start else "tinybert" for i in range(len(ends))]
    phases = [{"until": e / 100, "name": n} for e, n in zip(ends, names, strict=True)]
    found = course({"phases": phases})
    lengths = np.diff([0, *ends]) / 100
    assert found.plain == pytest.approx(sum(x for x, n in zip(lengths, names, strict=True) if n == "mlm"), abs=1e-3)
    assert found.first == pytest.approx(ends[0] / 100 if start else 0.0, abs=1e-3)
    assert found.method == "tinybert"
    assert found.other_order == (found.plain > found.first)


@pytest.mark.parametrize(
    ("objective", "first", "method"),
    [
        ("mlm", 1.0, ""),
        ({"name": "clm"}, 1.0, ""),
        ("minilm", 0.0, "minilm"),
        ({"terms": [{"name": "mlm"}, {"name": "minilm", "weight": 2}]}, 0.0, "mlm + 2 × minilm"),
        ({"terms": [{"name": "mlm"}, {"name": "minilm", "weight": 0}]}, 1.0, ""),
        ({"phases": [{"until": 0.3, "name": "mlm"}, {"until": 1.0, "name": "pkd", "restart": True}]}, 0.3, "pkd"),
    ],
)
def test_the_fraction_is_what_comes_before_any_question_to_a_teacher(objective: Any, first: float, method: str) -> None:
    found = course(objective)
    assert (found.first, found.method) == (first, method)


def arm(name: str, until: float, loss: float) -> FakeArm:
    phases = [{"until": until, "name": "mlm"}, {"until": 1.0, "name": "tinybert"}]
    return FakeArm(name, {"phases": phases}, loss, 0.3, 4.2, 6_000_000_000, 9_000_000_000, 0, 60.0, 8.0, {})


def split_arms() -> tuple[FakeArm, ...]:
    reverse = {"phases": [{"until": 0.5, "name": "tinybert"}, {"until": 1.0, "name": "mlm"}]}
    other = FakeArm("z_is_reversed", reverse, 4.6, 0.3, 4.2, 6_000_000_000, 9_000_000_000, 0, 60.0, 8.0, {})
    # Names say nothing of the fractions, and their order is not that of the fractions.
    return (ARMS[0], arm("b", 0.75, 4.10), ARMS[3], arm("c", 0.25, 3.5), arm("a", 0.5, 3.51), other)


def test_fractions_are_sorted_compared_together_and_the_best_is_told_with_its_rivals(tmp_path: Path) -> None:
    report = build_report(write_study(tmp_path / "split", arms=split_arms(), seeds=5, noise=0.05))
    (found,) = report["pretraining_first"]
    places = [(p["arm"], p["first"]) for p in found["arms"]]
    assert places == [("tinybert", 0.0), ("c", 0.25), ("a", 0.5), ("b", 0.75), ("no_kd", 1.0), ("z_is_reversed", 0.0)]
    assert found["best"] in ("a", "c")
    assert set(found["not_told_from_best"]) == {"a", "c"} - {found["best"]}
    assert len(found["pairs"]) == 10, "every two of the five fractions; the other order is no fraction"
    raw = sorted(pair["p"] for pair in found["pairs"])
    smallest = min(found["pairs"], key=lambda pair: pair["p"])
    assert smallest["p_corrected"] == pytest.approx(min(1.0, 10 * raw[0]))
    assert [(c["a"], c["b"]) for c in found["orders"]] == [("z_is_reversed", "a")]
    page = (tmp_path / "split" / "report.html").read_text(encoding="utf-8")
    assert "% of the budget pretrained before distillation starts" in page
    assert "luckiest" in page


def test_no_section_where_arms_differ_in_their_method_alone(tmp_path: Path) -> None:
    report = build_report(write_study(tmp_path / "quick"))
    assert report["pretraining_first"] == []
    assert report["domains"] is None
    page = (tmp_path / "quick" / "report.html").read_text(encoding="utf-8")
    for heading in ("How much to pretrain first", "In and out of domain", "Data seen by source"):
        assert heading not in page


def test_an_arm_with_another_recipe_is_no_point_of_the_line(tmp_path: Path) -> None:
    odd = FakeArm(
        "odd",
        arm("x", 0.5, 4.0).objective,
        4.0,
        0.3,
        4.2,
        6_000_000_000,
        9_000_000_000,
        0,
        60.0,
        8.0,
        {"optimizer.lr": 1e-3},
    )
    report = build_report(write_study(tmp_path / "odd", arms=(ARMS[0], ARMS[3], odd)))
    assert report["pretraining_first"] == []


# -- domains ---------------------------------------------------------------------------------------
def write_domains(
    directory: Path, losses: dict[str, dict[str, list[float]]], *, outside: bool = True
) -> dict[str, Any]:
    """A study whose arms have these losses (per seed) on texts; `other` is no source of the mixture."""
    seeds = len(next(iter(next(iter(losses.values())).values())))
    write_study(directory, seeds=seeds, arms=tuple(a for a in ARMS if a.name in losses))
    file = directory / "study.yaml"
    study = yaml.safe_load(file.read_text(encoding="utf-8"))
    study["data"]["sources"] = [{"path": "python-docs", "weight": 3}, {"path": "python-code", "weight": 1}]
    study["evaluation"]["domains"] = (
        [{"path": "python-comments", "name": "other"}] if outside else [{"path": "python-docs"}]
    )
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    for name, by_text in losses.items():
        for number in range(seeds):
            place = directory / "arms" / name / f"seed-{number + 1}" / "record.json"
            record = json.loads(place.read_text(encoding="utf-8"))
            record["scores"] |= {f"domain.{text}.loss": values[number] for text, values in by_text.items()}
            place.write_text(json.dumps(record), encoding="utf-8")
    return build_report(directory)


LOSSES = {
    "no_kd": {"python-docs": [5.0, 5.2, 5.1], "python-code": [4.0, 4.1, 4.3], "other": [6.0, 6.3, 6.1]},
    "tinybert": {"python-docs": [4.5, 4.75, 4.55], "python-code": [4.0, 4.05, 4.25], "other": [5.9, 6.25, 6.05]},
}  # fmt: skip


def test_the_difference_of_effects_is_the_paired_difference_of_differences(tmp_path: Path) -> None:
    found = write_domains(tmp_path / "domains", LOSSES)["domains"]
    rows = {name: {text: np.array(v) for text, v in by.items()} for name, by in LOSSES.items()}
    inside = {name: (3 * by["python-docs"] + by["python-code"]) / 4 for name, by in rows.items()}
    effect_in = inside["no_kd"] - inside["tinybert"]
    effect_out = rows["no_kd"]["other"] - rows["tinybert"]["other"]
    for metric, expected in (
        ("in_domain.loss", effect_in),
        ("out_of_domain.loss", effect_out),
        ("out_minus_in.loss", effect_out - effect_in),
    ):
        (c,) = found["effects"][metric]
        mean, low, high, p = (float(x) for x in paired_t(expected))
        assert (c["mean_difference"], c["low"], c["high"], c["p"]) == pytest.approx((mean, low, high, p))
    assert [(t["label"], t["weight"]) for t in found["texts"]] == [
        ("python-docs", 0.75),
        ("python-code", 0.25),
        ("other", None),
    ]
    page = (tmp_path / "domains" / "report.html").read_text(encoding="utf-8")
    assert "out of domain" in page
    assert "worse out of domain than in" in page


def test_a_seed_without_one_of_the_texts_is_in_no_average(tmp_path: Path) -> None:
    losses = json.loads(json.dumps(LOSSES))
    losses["tinybert"]["python-code"][1] = float("nan")
    found = write_domains(tmp_path / "domains", losses)["domains"]
    assert sorted(found["scores"]["in_domain.loss"]["tinybert"]) == [1, 3] or sorted(
        found["scores"]["in_domain.loss"]["tinybert"]
    ) == ["1", "3"]
    assert found["effects"]["out_minus_in.loss"][0]["n"] == 2


def test_without_text_out_of_domain_there_is_no_gap(tmp_path: Path) -> None:
    losses = {arm: {k: v for k, v in by.items() if k != "other"} for arm, by in LOSSES.items()}
    found = write_domains(tmp_path / "domains", losses, outside=False)["domains"]
    assert set(found["effects"]) == {"domain.python-docs.loss", "domain.python-code.loss", "in_domain.loss"}
