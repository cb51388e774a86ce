"""Sweep files: which studies they stand for, and what is refused before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import cli
from harness.errors import ConfigError
from harness.study import STUDIES, load, names
from harness.study.reading import SWEEP, read, sweeps
from harness.sweep import check, expand
from harness.sweep.kinds import KINDS, place, unit_of
from tests.support.tiny import TinyStudy

NOWHERE = Path("nowhere")


def ladder(tiny: TinyStudy, **changes: Any) -> dict[str, Any]:
    """A tiny sweep over two budgets, as a tree."""
    tree = tiny.tree(sweep={"kind": "crossover", "key": "budget", "values": ["1 Gflop", "2 Gflop"]})
    tree["arms"] = [{"name": "no_kd", "objective": "mlm"}, {"name": "tinybert", "objective": "tinybert"}]
    return {**tree, **changes}


def test_every_value_is_a_study_that_differs_in_its_key_alone(tiny: TinyStudy) -> None:
    sweep = expand(ladder(tiny), where="here")
    studies = [point.study({}) for point in sweep.points]
    assert [study.limit.limit for study in studies] == [1_000_000_000, 2_000_000_000]
    assert studies[0].model_copy(update={"budget": studies[1].budget}) == studies[1]
    assert [point.folder for point in sweep.points] == ["points/1-gflop", "points/2-gflop"]


@pytest.mark.parametrize(
    ("sweep", "named"),
    [
        ({"kind": "crossover", "key": "budget"}, "key and values belong together"),
        ({"kind": "crossover", "values": ["1 Gflop", "2 Gflop"]}, "key and values belong together"),
        ({"kind": "crossover"}, "either key and values, or points"),
        ({"kind": "crossover", "key": "budget", "values": ["1 Gflop"]}, "at least two points"),
        ({"kind": "sideways", "key": "budget", "values": ["1 Gflop", "2 Gflop"]}, "kind"),
        ({"kind": "crossover", "key": "budget", "values": ["1 Gflop", "1 Gflop"]}, "two points are called so"),
        ({"kind": "crossover", "key": "budget", "values": ["1 Gflop", "2 Gflop"], "teachers": [
            {"name": "t", "budget": "1 Gflop", "student": {"width": 3}}]}, "student.width is no key of a model"),
        ({"kind": "crossover", "key": "budget", "values": ["1 Gflop", "2 Gflop"], "teachers": [
            {"name": "t", "budget": "1 Gflop", "student": {"layers": 3}}]}, "no point uses it"),
        ({"kind": "crossover", "key": "budget", "values": ["1 Gflop", "2 Gflop"], "trunk": True}, "no constant part"),
        ({"kind": "tune", "key": "optimizer.lr", "values": [1e-3, 2e-3], "trunk": True}, "only budgets"),
    ],
)  # fmt: skip
def test_a_sweep_that_makes_no_sense_is_refused_with_its_reason(tiny: TinyStudy, sweep: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        expand(ladder(tiny, sweep=sweep), where="here")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sweep": {"kind": "crossover", "key": "budget", "values": ["0.02 Tflop", "20 Gflop"]}}, "both lie at 2e\\+10"),
        ({"sweep": {"kind": "crossover", "key": "optimizer.lr", "values": [1e-3, 2e-3]}}, "goes along the budget per arm"),
        ({"sweep": {"kind": "crossover", "key": "budget", "values": ["1 Gflop", "5e3 tokens"]}}, "along one unit"),
        ({"sweep": {"kind": "amortise", "key": "budget", "values": ["1 Gflop", "2 Gflop"]}}, "share of the teacher's training"),
        ({"sweep": {"kind": "repetition", "key": "budget", "values": ["1 Gflop", "2 Gflop"]}}, "set data.limit_tokens"),
        ({"sweep": {"kind": "teacher_size", "key": "budget", "values": ["1 Gflop", "2 Gflop"]}}, "0 teachers of the sweep"),
        ({"sweep": {"kind": "crossover", "points": [{"at": 5, "set": {"optimizer.lr": lr}} for lr in (1e-3, 2e-3)]}}, "both lie at 5"),
        ({"arms": [{"name": "no_kd", "objective": "mlm"}]}, "a sweep compares arms"),
    ],
)  # fmt: skip
def test_points_that_no_answer_could_be_read_from_are_refused_before_anything_is_tried(
    tiny: TinyStudy, changes: dict[str, Any], named: str
) -> None:
    sweep = expand(ladder(tiny, **changes), where="here")
    with pytest.raises(ConfigError, match=named):
        check(sweep, lambda study: pytest.fail("it was tried"))


def of_teachers(tiny: TinyStudy, kind: str, *teachers: dict[str, Any]) -> dict[str, Any]:
    """A sweep over these teachers."""
    named = [{"name": f"t{i}", "budget": "1 Gflop", **teacher} for i, teacher in enumerate(teachers)]
    points = [{"label": t["name"], "set": {"teacher.path": f"@{t['name']}"}} for t in named]
    return ladder(tiny, sweep={"kind": kind, "points": points, "teachers": named})


def test_two_teachers_at_one_place_are_refused_before_either_is_trained(tiny: TinyStudy) -> None:
    """What only their records will say exactly, their studies foretell well enough to tell them apart."""
    of_one_size = of_teachers(
        tiny, "teacher_size", {"student": {"layers": 3}}, {"student": {"layers": 3}, "budget": "2 Gflop"}
    )
    with pytest.raises(ConfigError, match=r"points t0 and t1: both lie at .* along the size of the teacher"):
        check(expand(of_one_size, where="here"), lambda study: pytest.fail("it was tried"))
    of_one_budget = of_teachers(tiny, "teacher_budget", {"student": {"layers": 3}}, {"student": {"layers": 4}})
    with pytest.raises(
        ConfigError, match=r"points t0 and t1: both lie at 1e\+09; .* along the training of the teacher"
    ):
        check(expand(of_one_budget, where="here"), lambda study: pytest.fail("it was tried"))
    apart = of_teachers(tiny, "teacher_size", {"student": {"layers": 3}}, {"student": {"layers": 4}})
    assert len(check(expand(apart, where="here"), lambda study: study)) == 4


@pytest.mark.parametrize("family", ["bert", "modernbert", "electra", "gpt2"])
def test_a_teachers_size_is_foretold_as_its_record_will_say_it(tiny: TinyStudy, family: str) -> None:
    from harness.models.student import build_student
    from harness.sweep import stand_in

    tree = of_teachers(
        tiny, "teacher_size", {"student": {"family": family}}, {"student": {"layers": 4, "family": family}}
    )
    run = expand(tree, where="here").teachers[0]
    config, _ = stand_in._config(run)
    assert stand_in.parameters(run) == sum(p.numel() for p in build_student(config, seed=1).parameters())


def test_a_teacher_that_nobody_trains_is_refused(tiny: TinyStudy) -> None:
    with pytest.raises(ConfigError, match="no teacher of this name"):
        expand(ladder(tiny, teacher={"path": "@ghost"}), where="here")


def test_a_key_that_no_study_has_is_refused_at_plan(tiny: TinyStudy, tmp_path: Path, capsys: Any) -> None:
    tree = ladder(tiny, sweep={"kind": "tune", "key": "optimizer.rate", "values": [1e-3, 2e-3]})
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert cli.main(["plan", "--study", str(file)]) == 2
    assert "optimizer.rate" in capsys.readouterr().err


def test_a_command_for_one_study_says_so(tiny: TinyStudy, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(ladder(tiny)), encoding="utf-8")
    with pytest.raises(ConfigError, match="family of studies"):
        load(str(file))


def test_a_ladder_sets_its_budgets_itself(tiny: TinyStudy, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(ladder(tiny)), encoding="utf-8")
    assert cli.main(["plan", "--study", str(file), "--budget", "3 Gflop"]) == 2
    assert "sets the budget of every point" in capsys.readouterr().err


def test_a_point_lies_where_its_study_says(tiny: TinyStudy) -> None:
    rungs = expand(ladder(tiny), where="here")
    assert [place(rungs, point, NOWHERE) for point in rungs.points] == [1e9, 2e9]
    assert unit_of(rungs) == "flop"
    values = ["free", {"amortised_over": 4}, "full"]
    shares = expand(
        ladder(tiny, sweep={"kind": "amortise", "key": "accounting.teacher_training", "values": values}), where="here"
    )
    assert [place(shares, point, NOWHERE) for point in shares.points] == [0.0, 0.25, 1.0]
    unique = {"kind": "repetition", "key": "data.limit_tokens", "values": [1000, 4000]}
    assert [place(s, p, NOWHERE) for s in [expand(ladder(tiny, sweep=unique), where="here")] for p in s.points] == [
        1e3,
        4e3,
    ]


def test_a_per_point_teacher_is_trained_on_that_points_data(tiny: TinyStudy) -> None:
    sweep = expand(
        ladder(
            tiny, teacher={"path": "@same", "allow_worse": True},
            sweep={
                "kind": "repetition", "key": "data.limit_tokens", "values": [1000, 4000],
                "teachers": [{"name": "same", "budget": "1 Gflop", "student": {"layers": 3}, "per_point": True}],
            },
        ),
        where="here",
    )  # fmt: skip
    assert [run.study.data.limit_tokens for run in sweep.teachers] == [1000, 4000]
    assert {run.study.student.layers for run in sweep.teachers} == {3}
    assert {arm.objective for run in sweep.teachers for arm in run.study.arms} == {"mlm"}


@pytest.mark.parametrize("name", sweeps())
def test_every_shipped_sweep_stands_for_valid_studies(name: str) -> None:
    sweep = expand(read(name), where=name)
    studies = check(sweep, lambda study: study, complete=False)
    assert len(studies) == len(sweep.points) + len(sweep.teachers)
    assert all(point.study(dict.fromkeys(point.teachers, "builtin")).baseline for point in sweep.points)
    assert sweep.question


def test_every_shipped_file_is_a_study_or_a_sweep() -> None:
    assert sorted([*names(), *sweeps()]) == sorted(path.stem for path in STUDIES.glob("*.yaml"))
    assert all(SWEEP in read(name) for name in sweeps())
    assert not any(SWEEP in read(name) for name in names())


def test_each_kind_of_sweep_is_shipped_in_a_small_and_a_paper_sized_version() -> None:
    kinds = {name: read(name)[SWEEP]["kind"] for name in sweeps()}
    small = {kind for name, kind in kinds.items() if not name.startswith("paper_")}
    paper = {kind for name, kind in kinds.items() if name.startswith("paper_")}
    asked_by_command = {"tune"}
    assert small == paper == set(KINDS) - asked_by_command


def test_a_plan_prices_every_study_and_their_sum(tiny: TinyStudy, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(ladder(tiny)), encoding="utf-8")
    assert cli.main(["plan", "--study", str(file), "--on", "1xh200", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert list(table["plans"]) == ["1 Gflop", "2 Gflop"]
    parts = [plan["total"]["training_flop"] for plan in table["plans"].values()]
    assert table["total"]["training_flop"] == sum(parts) > 0


def test_prefetch_takes_a_sweep_and_forgets_teachers_still_to_be_trained(
    tiny: TinyStudy, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "sweep.yaml"
    block = {
        "kind": "amortise", "key": "accounting.teacher_training", "values": ["free", {"amortised_over": 4}],
        "teachers": [{"name": "own", "budget": "1 Gflop", "student": {"layers": 4}}],
    }  # fmt: skip
    tree = ladder(tiny, sweep=block, teacher={"path": "@own", "trained_on": "same"})
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert cli.main(["prefetch", "--study", str(file), "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert sorted(item["what"] for item in items) == ["corpus", "tokenizer"]
