"""A study evaluated by domain, run whole: scores, accounts, resuming, the report; and an arm per fraction beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.chaos.tiny import write_corpus
from harness.ds_config import default
from harness.plan.evaluation import items
from harness.plan.outline import sketch
from harness.study import load
from tests.support.tiny import TinyStudy

pytestmark = pytest.mark.slow

ARMS = [
    {"name": "no_kd", "objective": "mlm"},
    {"name": "kd", "objective": "tinybert"},
    {"name": "late", "objective": {"phases": [{"until": 0.5, "name": "mlm"}, {"until": 1.0, "name": "tinybert"}]}},
]


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, one domain that nobody trains on, scored along the curve too."""
    folder = tmp_path_factory.mktemp("domains")
    sources = [
        {"path": str(tiny.corpus), "name": "one", "weight": 0.7},
        {"path": str(write_corpus(folder / "two", seed=1)), "name": "two", "weight": 0.3},
    ]
    other = write_corpus(folder / "three", seed=2, documents=40)
    evaluation = {
        **tiny.tree()["evaluation"],
        "main": "domain.three.loss",
        "domains": [{"path": str(other), "name": "three"}],
    }
    evaluation["readout"] = {**evaluation["readout"], "on_curve": True}
    study = tiny.write(
        folder / "study.yaml", data={"sources": sources, "block_length": 32}, arms=ARMS, seeds=[1, 2],
        evaluation=evaluation, budget="1 Gflop",
    )  # fmt: skip
    assert cli.main(["run", "--study", str(study), "--out", str(folder / "run")]) == 0
    return folder


def record(folder: Path, arm: str, seed: int = 1) -> dict[str, Any]:
    return json.loads((folder / "run" / "arms" / arm / f"seed-{seed}" / "record.json").read_text(encoding="utf-8"))


def test_every_student_and_reference_has_a_loss_on_every_text(finished: Path) -> None:
    references = json.loads((finished / "run" / "references.json").read_text(encoding="utf-8"))
    rows = [record(finished, arm["name"])["scores"] for arm in ARMS]
    for scores in [*rows, references["teacher"]["scores"], references["untrained"]["scores"]]:
        for label in ("one", "two", "three"):
            assert 0 < scores[f"domain.{label}.loss"] < 20
            assert 0 <= scores[f"domain.{label}.accuracy"] <= 1


def test_tokens_follow_the_weights_and_the_report_shows_them(finished: Path) -> None:
    for arm in ARMS:
        found = record(finished, arm["name"])
        seen = found["tokens_by_source"]
        assert sum(seen.values()) == found["tokens"]
        assert abs(seen["one"] - 0.7 * found["tokens"]) <= 32
    page = (finished / "run" / "report.html").read_text(encoding="utf-8")
    assert "Data seen by source" in page
    assert "weight 70" in page


def test_evaluation_is_booked_as_planned(finished: Path) -> None:
    study = load(str(finished / "study.yaml"))
    found = sketch(study, default(bf16=False), world=1, tell=lambda _line: None)
    assert found.complete
    done = json.loads((finished / "run" / "arms" / "no_kd" / "seed-1" / "evaluations.json").read_text(encoding="utf-8"))
    planned = items(found, found.arms["no_kd"].shape, curve=True)
    assert done["readout"]["flop"] == planned["readout"].flop + planned["domains"].flop


def test_what_is_done_is_not_done_again_and_a_new_domain_is_added(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = finished / "run" / "arms" / "kd" / "seed-1"
    before = {name: (place / name).read_bytes() for name in ("evaluations.json", "ledger.jsonl")}
    words = ["run", "--study", str(finished / "study.yaml"), "--out", str(finished / "run")]
    assert cli.main(words) == 0
    assert {name: (place / name).read_bytes() for name in before} == before
    text = (finished / "study.yaml").read_text(encoding="utf-8")
    more = finished / "more.yaml"
    fourth = write_corpus(finished / "four", seed=3, documents=40)
    more.write_text(text.replace("  domains:\n", f"  domains:\n  - {{path: {fourth}, name: four}}\n"), encoding="utf-8")
    scores = record(finished, "kd")["scores"]
    assert cli.main(["run", "--study", str(more), "--out", str(finished / "run")]) == 0
    again = record(finished, "kd")["scores"]
    assert again["domain.four.loss"] > 0
    assert {k: v for k, v in again.items() if not k.startswith("domain.four")} == scores
    assert (place / "ledger.jsonl").read_bytes() == before["ledger.jsonl"]


def test_prefetch_brings_domains_and_the_check_misses_one_that_is_not_built(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import fetch
    from harness.errors import DataError

    study = load(str(finished / "study.yaml"))
    found = fetch.fetch(study, default(bf16=False), tell=lambda _line: None)
    assert [item.source for item in found if item.what == "domain"] == [str(finished / "three")]
    for key, value in fetch.OFFLINE.items():
        monkeypatch.setenv(key, value)
    fetch.check(study, default(bf16=False))
    fourth = write_corpus(tmp_path / "four", seed=5, documents=40)
    grown = load(str(finished / "study.yaml"), assignments=[f"evaluation.domains.0.path={fourth}"])
    with pytest.raises(DataError, match="domains of study"):
        fetch.check(grown, default(bf16=False))


def test_the_report_has_both_sections_only_where_the_study_asks(finished: Path) -> None:
    report = json.loads((finished / "run" / "report.json").read_text(encoding="utf-8"))
    assert [t["label"] for t in report["domains"]["texts"]][:3] in (["one", "two", "three"], ["one", "two", "four"])
    places = report["pretraining_first"][0]["arms"]
    assert [(p["arm"], p["first"]) for p in places] == [("kd", 0.0), ("late", 0.5), ("no_kd", 1.0)]
    page = (finished / "run" / "report.html").read_text(encoding="utf-8")
    assert "<h2>In and out of domain</h2>" in page
    assert "<h2>How much to pretrain first</h2>" in page


@pytest.mark.parametrize(("study", "section"), [("split", "pretraining_first"), ("domains", "domains")])
def test_the_shipped_studies_run_small_and_fill_their_section(
    tiny: TinyStudy, tmp_path: Path, study: str, section: str
) -> None:
    """On the embedded corpora, with the shipped teacher; the session's cache is the tiny study's."""
    assert tiny.folder
    small = ["evaluation.mlm_blocks=16", "evaluation.readout.steps=5", "evaluation.readout.blocks=32"]
    words = ["run", "--study", study, "--out", str(tmp_path), "--budget", "25 Gflop", "--seeds", "1,2"]
    assert cli.main([*words, *(word for change in small for word in ("--set", change))]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert not report["missing"]
    found = report[section]
    if study == "split":
        assert [place["first"] for place in found[0]["arms"]] == [0.0, 0.25, 0.5, 0.75, 1.0, 0.0]
        assert found[0]["best"]
        return
    assert [text["trained_on"] for text in found["texts"]] == [True, True, False]
    assert all(rows[0]["n"] == 2 for rows in found["effects"].values())
    facts = json.loads((tmp_path / "environment.json").read_text(encoding="utf-8"))["data"]["domains"]
    assert facts["python-comments"]["in_training_text"] < 0.01 * facts["python-comments"]["documents"]
