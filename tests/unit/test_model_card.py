"""Laws of the model card and of pushing: a card says what is known and nothing else, and no Hub can lose a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from harness import cli
from harness.errors import ConfigError
from harness.push import check_name, push_students
from harness.report.model_card import card, write_cards
from harness.report.source import read

from .report_fakes import ARMS, MODEL, edit_record, write_study

HOSTILE = "<script>alert(1)</script>|"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two arms, one seed, with folders that look exported."""
    directory = write_study(tmp_path / "s", seeds=1, arms=ARMS[:3:2])
    for folder in directory.glob("arms/*/*"):
        (folder / "student").mkdir()
        (folder / "student" / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
        (folder / "student" / "model.safetensors").write_bytes(b"weights")
    return directory


def parts(path: Path) -> tuple[dict[str, Any], str]:
    _, header, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), body


def student(study: Path, arm: str) -> Path:
    return study / "arms" / arm / "seed-1" / "student" / "README.md"


# -- the card ----------------------------------------------------------------------------------------


def test_every_finished_student_gets_a_card_with_budget_accounts_data_and_scores(study: Path) -> None:
    assert len(write_cards(study)) == 2
    header, body = parts(student(study, "no_kd"))
    assert header["pipeline_tag"] == "fill-mask"
    metrics = {m["type"]: m["value"] for m in header["model-index"][0]["results"][0]["metrics"]}
    record = json.loads((study / "arms/no_kd/seed-1/record.json").read_text())
    assert metrics == record["scores"]
    for words in ("10 TFLOP", "Student step", "python-docs", "Readout loss", "AutoModelForMaskedLM"):
        assert words in body


GLUE = {
    "recipe": {"path": "nyu-mll/glue", "chosen_on": "a held-out part of train"},
    "tasks": {
        "cola": {
            "score": 0.4, "metrics": {"validation": {"matthews": 0.4}}, "by_seed": {"1": 0.39, "2": 0.41}, "lr": 5e-5, "batch": 32,
            "epochs": 3,
        },
        "mnli": {
            "score": 0.7, "metrics": {"validation_matched": {"accuracy": 0.71}, "validation_mismatched": {"accuracy": 0.69}},
            "by_seed": {"1": 0.7}, "lr": 5e-5, "batch": 32, "epochs": 3,
        },
    },
}  # fmt: skip


def test_a_card_names_the_devices_and_the_commit_of_its_own_run(study: Path) -> None:
    """Jobs of one study may run on machines of their own; the study's environment is that of the last."""
    (folder,) = study.glob("arms/no_kd/*")
    identity = {"hardware": {"devices": ["Its own GPU"]}, "code": {"commit": "abc123"}}
    edit_record(folder, identity=identity, energy={"carbon_g": 1.0, "source": "s", "grid_g_per_kwh": 2})
    write_cards(study)
    header, body = parts(student(study, "no_kd"))
    assert header["co2_eq_emissions"]["hardware_used"] == "Its own GPU"
    assert "| hardware | Its own GPU |" in body
    assert "| code | abc123 |" in body


def test_glue_stands_under_its_own_data_as_what_a_fine_tuned_copy_scored(study: Path) -> None:
    folder = study / "arms/no_kd/seed-1"
    record = json.loads((folder / "record.json").read_text())
    scores = {**record["scores"], "glue.cola": 0.4, "glue.mnli": 0.7, "glue.mean": 0.55}
    edit_record(folder, glue=GLUE, scores=scores)
    write_cards(study)
    header, body = parts(student(study, "no_kd"))
    own, *fine_tuned = header["model-index"][0]["results"]
    assert own["task"]["type"] == "fill-mask"
    assert {m["type"] for m in own["metrics"]} == set(record["scores"])
    places = [
        (r["task"]["type"], r["dataset"]["type"], r["dataset"]["config"], r["dataset"]["split"]) for r in fine_tuned
    ]
    assert places == [
        ("text-classification", "nyu-mll/glue", "cola", "validation"),
        ("text-classification", "nyu-mll/glue", "mnli", "validation_matched"),
        ("text-classification", "nyu-mll/glue", "mnli", "validation_mismatched"),
    ]
    (matthews,) = fine_tuned[0]["metrics"]
    assert (matthews["type"], matthews["value"]) == ("matthews_correlation", 0.4)
    assert "fine-tuned, lr 5e-05, batch 32, 3 epochs, mean of 2 seeds" in matthews["name"]
    assert "the weights here are not fine-tuned" in body
    # and the Hub's own reader takes the card as it is
    from huggingface_hub import ModelCard

    read_back = ModelCard(student(study, "no_kd").read_text(encoding="utf-8")).data
    assert read_back.eval_results is not None
    assert {(r.dataset_type, r.dataset_config) for r in read_back.eval_results} == {
        ("own", None), ("nyu-mll/glue", "cola"), ("nyu-mll/glue", "mnli"),
    }  # fmt: skip
    assert len(read_back.eval_results) == len(record["scores"]) + 3


def test_glue_from_a_folder_names_the_folder_and_nobodys_disk(study: Path, tmp_path: Path) -> None:
    glue = {**GLUE, "recipe": {"path": str(tmp_path / "my-glue")}}
    edit_record(study / "arms/no_kd/seed-1", glue=glue)
    write_cards(study)
    header, body = parts(student(study, "no_kd"))
    assert {r["dataset"]["type"] for r in header["model-index"][0]["results"]} == {"own", "my-glue"}
    assert str(tmp_path) not in body


def test_a_student_of_its_own_family_is_described_as_what_it_is(study: Path) -> None:
    edit_record(study / "arms/no_kd/seed-1", differs={"student.family": "electra", "optimizer.lr": 1e-3})
    write_cards(study)
    assert "family electra" in parts(student(study, "no_kd"))[1]
    assert "family electra" not in parts(student(study, "minilmv2"))[1]


def test_untrained_parts_are_flagged_and_their_scores_left_out(study: Path) -> None:
    write_cards(study)
    header, body = parts(student(study, "minilmv2"))
    assert "was never trained" in body
    assert "lm_head.dense.weight" in body
    metrics = {m["type"] for m in header["model-index"][0]["results"][0]["metrics"]}
    assert "readout.loss" in metrics
    assert not any(name.startswith("mlm.") for name in metrics)
    _, body = parts(student(study, "no_kd"))
    assert "Untrained" not in body


def test_carbon_is_in_grams_where_energy_is_known_and_absent_where_it_is_not(study: Path) -> None:
    energy = {"joule": 3.6e6, "carbon_g": 400.0, "grid_g_per_kwh": 400, "source": "NVML counter", "coverage": 1.0}
    edit_record(study / "arms/no_kd/seed-1", energy=energy)
    write_cards(study)
    header, body = parts(student(study, "no_kd"))
    assert header["co2_eq_emissions"]["emissions"] == 400.0
    assert "1.00 kWh" in body
    header, body = parts(student(study, "minilmv2"))
    assert "co2_eq_emissions" not in header
    assert "Energy was not measured" in body


def test_a_causal_student_is_told_from_its_own_config(study: Path) -> None:
    config = study / "arms/no_kd/seed-1/student/config.json"
    config.write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    write_cards(study)
    header, body = parts(student(study, "no_kd"))
    assert header["pipeline_tag"] == "text-generation"
    assert "AutoModelForCausalLM" in body


def read_from(study: Path, **identities: dict[str, Any]) -> None:
    """Record where each source was read from, as a run does."""
    file = study / "environment.json"
    sources = {label: {"identity": identity} for label, identity in identities.items()}
    file.write_text(json.dumps({**json.loads(file.read_text()), "data": {"sources": sources}}))


def test_a_folder_that_looks_like_a_hub_name_is_never_published_as_one(study: Path) -> None:
    """Wherever the card is written: the folder may lie below another directory, or on another machine."""
    file = study / "study.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["data"]["sources"] = [{"path": "corpora/mine"}]
    file.write_text(yaml.safe_dump(tree))
    read_from(study, mine={"files": {"count": 1}})
    glue = {**GLUE, "recipe": {"path": "corpora/glue"}}
    teacher = {"path": "models/mine", "trained_on": "same"}
    edit_record(study / "arms/no_kd/seed-1", glue=glue, teacher={**teacher, "hub": False})
    edit_record(study / "arms/minilmv2/seed-1", teacher={**teacher, "path": "google-bert/bert", "hub": True})
    write_cards(study)
    header, body = parts(student(study, "no_kd"))
    assert "datasets" not in header
    assert {r["dataset"]["type"] for r in header["model-index"][0]["results"]} == {"own", "glue"}
    assert not any(place in body for place in ("corpora/", "models/"))
    assert "Teacher: mine," in body
    assert "Teacher: google-bert/bert," in parts(student(study, "minilmv2"))[1]


def test_a_card_describes_the_model_in_its_folder(study: Path) -> None:
    """Layers that were never trained whole may have been left out of the export."""
    folder = study / "arms/no_kd/seed-1"
    tops = [f"bert.encoder.layer.{layer}.output.dense.weight" for layer in (0, 1)]
    edit_record(folder, untrained_parameters=[*tops, "cls.predictions.bias"], exported_layers=1, parameters=942_000)
    write_cards(study)
    _, body = parts(student(study, "no_kd"))
    assert "layers 1," in body
    assert "942" not in body, "that many had the student that was trained"
    assert tops[0] in body
    assert tops[1] not in body
    assert "cls.predictions.bias" in body
    edit_record(folder, model=MODEL)
    write_cards(study)
    assert (
        "A student of 600\u202fk parameters (family roberta-prelayernorm, layers 1,"
        in parts(student(study, "no_kd"))[1]
    )
    assert (
        "A student of 942\u202fk parameters (family roberta-prelayernorm, layers 2,"
        in parts(student(study, "minilmv2"))[1]
    )


def test_a_card_says_what_using_the_student_costs_where_that_was_measured(study: Path) -> None:
    edit_record(study / "arms/no_kd/seed-1", model=MODEL)
    write_cards(study)
    _, body = parts(student(study, "no_kd"))
    for row in (
        "| parameters | 600 k |", "| of them without embeddings | 100 k |", "| weights on disk | 2.4 MB |",
        "| forward pass, batch of 1 | 5.70 ms (20th to 80th percentile: 5.47 to 6.29 ms) |",
        "| forward pass, batch of 32 | 70.6 ms (20th to 80th percentile: 66.2 to 177 ms) |",
        "| measured on | A CPU, 2 threads, fp32, sequences of 128 tokens, the body without a head |",
    ):  # fmt: skip
        assert row in body
    assert "Size and latency" not in parts(student(study, "minilmv2"))[1]


def test_only_names_that_the_hub_could_know_are_listed_as_data(study: Path) -> None:
    file = study / "study.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["data"]["sources"] = [{"path": "wikimedia/wikipedia"}, {"path": "/scratch/own"}, {"path": "python-docs"}]
    file.write_text(yaml.safe_dump(tree))
    read_from(study, wikipedia={"hub": "wikimedia/wikipedia"}, own={"files": {}})
    write_cards(study)
    header, body = parts(student(study, "no_kd"))
    assert header["datasets"] == ["wikimedia/wikipedia"]
    assert "wikimedia/wikipedia" in body
    assert "/scratch" not in body  # a card is published; whose disk it was is nobody's business
    assert "own" in body


def test_what_a_study_wrote_cannot_become_markup_or_yaml(study: Path) -> None:
    file = study / "study.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["name"], tree["budget"] = HOSTILE, HOSTILE
    file.write_text(yaml.safe_dump(tree))
    edit_record(study / "arms/no_kd/seed-1", warnings=[HOSTILE], corpus=HOSTILE, untrained_parameters=[HOSTILE])
    source = read(study)
    text = card(source, source.runs[0])
    header, body = parts_of(text)
    assert "<script" not in body
    assert header["model-index"][0]["name"].startswith(HOSTILE)  # one YAML string


def parts_of(text: str) -> tuple[dict[str, Any], str]:
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_an_unfinished_run_and_one_without_weights_get_no_card(study: Path) -> None:
    edit_record(study / "arms/no_kd/seed-1", state="running")
    assert [path.parts[-4] for path in write_cards(study)] == ["minilmv2"]


# -- the Hub -----------------------------------------------------------------------------------------


class FakeApi:
    """Keeps what it is asked; raises what it is told to, for repositories that contain `refuse`."""

    def __init__(self, refuse: str = "", error: Exception | None = None) -> None:
        self.refuse, self.error = refuse, error or ConnectionError("no route to\nthe Hub")
        self.created: list[dict[str, Any]] = []
        self.uploaded: list[dict[str, Any]] = []

    def create_repo(self, **asked: Any) -> Any:
        if self.refuse and self.refuse in asked["repo_id"]:
            raise self.error
        self.created.append(asked)
        return SimpleNamespace(repo_id=f"me/{asked['repo_id']}")

    def upload_folder(self, **asked: Any) -> None:
        self.uploaded.append(asked)


def test_each_student_goes_to_a_private_repository_of_its_own(study: Path) -> None:
    api = FakeApi()
    pushed = list(push_students(study, "quickstart", api=api))
    assert [p.repository for p in pushed] == ["quickstart-minilmv2-seed-1", "quickstart-no_kd-seed-1"]
    assert all(p.error is None for p in pushed)
    assert all(asked["private"] and asked["exist_ok"] for asked in api.created)
    assert [asked["repo_id"] for asked in api.uploaded] == [f"me/{p.repository}" for p in pushed]
    assert all((Path(asked["folder_path"]) / "model.safetensors").exists() for asked in api.uploaded)


@pytest.mark.parametrize("error", [ConnectionError("no route\nto it"), PermissionError("401"), ValueError("odd")])
def test_a_push_that_fails_is_told_in_a_line_and_the_others_go_on(study: Path, error: Exception) -> None:
    failed, arrived = push_students(study, "me/q", api=FakeApi(refuse="minilmv2", error=error))
    assert failed.error is not None
    assert "\n" not in str(failed)
    assert "is kept in" in str(failed)
    assert arrived.error is None
    assert (failed.folder / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["", "a b", "a/b/c", "/a", "a--b", "me/..", "<script>"])
def test_a_name_the_hub_would_refuse_is_refused_before_anything_is_spent(name: str) -> None:
    with pytest.raises(ConfigError, match="Hub name"):
        check_name(name)
    assert cli.main(["run", "--push-to-hub", name or " ", "--study", "quickstart"]) == 2


def test_a_name_too_long_for_the_hub_is_told_and_nothing_is_created(study: Path) -> None:
    api = FakeApi()
    assert all("96 characters" in (p.error or "") for p in push_students(study, "q" * 96, api=api))
    assert api.created == []


def test_the_command_pushes_a_finished_run_and_fails_only_when_nothing_arrived(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    api = FakeApi()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    assert cli.main(["push", str(study), "me/q", "--public", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["students"]
    assert [row["error"] for row in rows] == [None, None]
    assert not any(asked["private"] for asked in api.created)
    assert student(study, "no_kd").exists()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeApi(refuse="seed"))
    assert cli.main(["push", str(study), "me/q"]) == 3
    assert "not pushed: me/q-no_kd-seed-1" in capsys.readouterr().out
