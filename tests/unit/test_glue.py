"""GLUE fine-tuning: it learns, repeats itself exactly, chooses fairly, and no job is ever done twice."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, matthews_corrcoef

from harness.data import glue_price
from harness.data.glue_price import GluePlan
from harness.data.tokenizer import load_tokenizer, special_ids
from harness.errors import CheckpointError, DataError, Preempted
from harness.evaluate import finetune, size
from harness.evaluate import glue as module
from harness.evaluate.encoders import Encoder, Untrained
from harness.evaluate.glue import Glue, best, common_tasks, row_of, spent
from harness.evaluate.glue_jobs import Job, Student, assign
from harness.models.student import student_config
from harness.progress import Silent
from harness.ranks import Ranks
from harness.study import ModelSpec, glue_spec
from tests.support.glue_worlds import write_glue
from tests.support.tiny import write_teacher

CPU = torch.device("cpu")
GRID = {"lrs": [1e-4, 2e-3], "batches": [16], "epochs": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    os.environ["ISOBUDGET_CACHE"] = str(folder / "cache")
    return write_glue(folder / "glue", train=240)


def config(layers: int = 1, family: str = "bert") -> Any:
    tokenizer, _ = load_tokenizer("builtin")
    special = special_ids(tokenizer)
    ids = {"pad": special.pad, "cls": special.cls, "sep": special.sep, "mask": special.mask}
    spec = ModelSpec.model_validate({"family": family, "layers": layers, "hidden": 32, "heads": 4})
    return student_config(spec, vocab=len(tokenizer), special=ids, block_length=32)


def plan_of(world: Path, **keys: Any) -> GluePlan:
    tokenizer, fingerprint = load_tokenizer("builtin")
    spec = glue_spec({"path": str(world), "tasks": ["sst2"], "grid": GRID, "dropout": 0.0, **keys}, where="")
    return glue_price.prepare(
        spec, tokenizer, tokenizer_fingerprint=fingerprint, shapes=[Untrained(config(), 1).shape], others=[]
    )


def untrained(folder: Path, *, seed: int = 1, name: str = "a") -> Student:
    return Student(name, folder / name, Untrained(config(), seed))


def glue(plan: GluePlan, *students: Student, stop: Any = lambda: False, tell: Any = None) -> Glue:
    tokenizer, _ = load_tokenizer("builtin")
    pad = special_ids(tokenizer).pad
    return Glue(plan, list(students), pad=pad, ranks=Ranks(), device=CPU, tell=tell or Silent(), stop=stop)


@pytest.fixture(scope="module")
def learnt(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("learnt")
    return folder, glue(plan_of(world), untrained(folder)).run()["a"]


# -- what is learnt --------------------------------------------------------------------------------------
def test_fine_tuning_learns_a_task_that_one_word_decides(learnt: tuple[Path, dict[str, Any]]) -> None:
    _, summary = learnt
    assert summary["tasks"]["sst2"]["score"] >= 0.95
    assert summary["tasks"]["sst2"]["lr"] == 2e-3, "the rate that learns was chosen on held-out examples"


def test_the_similarity_task_is_learnt_as_a_regression(world: Path, tmp_path: Path) -> None:
    plan = plan_of(world, tasks=["stsb"], grid={"lrs": [3e-3], "batches": [16], "epochs": 6})
    task = glue(plan, untrained(tmp_path)).run()["a"]["tasks"]["stsb"]
    assert task["metrics"]["validation"]["pearson"] > 0.6


def test_kept_predictions_give_the_kept_metrics(learnt: tuple[Path, dict[str, Any]], world: Path) -> None:
    folder, summary = learnt
    labels = plan_of(world).data["sst2"].judged["validation"].labels_E
    for name in summary["tasks"]["sst2"]["results"]:
        row = json.loads((folder / "a" / "glue" / name).read_text())
        predictions = np.array(row["predictions"]["validation"].split(), dtype=float)
        assert row["metrics"]["validation"]["accuracy"] == accuracy_score(labels, predictions)
        assert row["score"] == accuracy_score(labels, predictions)


def test_every_task_is_fine_tuned_and_scored_by_its_own_metrics(world: Path, tmp_path: Path) -> None:
    from harness.study.glue import NAMES

    plan = plan_of(world, tasks=list(NAMES), grid={"lrs": [2e-3], "batches": [32], "epochs": 1})
    tasks = glue(plan, untrained(tmp_path)).run()["a"]["tasks"]
    assert tuple(tasks) == NAMES
    assert set(tasks["mnli"]["metrics"]) == {"validation_matched", "validation_mismatched"}
    assert set(tasks["qqp"]["metrics"]["validation"]) == {"accuracy", "f1"}
    row = json.loads((tmp_path / "a" / "glue" / tasks["cola"]["results"][0]).read_text())
    labels = plan.data["cola"].judged["validation"].labels_E
    predictions = np.array(row["predictions"]["validation"].split(), dtype=float)
    assert tasks["cola"]["score"] == matthews_corrcoef(labels, predictions)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra", "modernbert", "roberta-prelayernorm"])
def test_pads_do_not_change_what_a_sentence_scores(world: Path, family: str) -> None:
    part = plan_of(world).data["sst2"].train
    tokenizer, _ = load_tokenizer("builtin")
    pad = special_ids(tokenizer).pad
    subject = Untrained(config(2, family), 1).load(device=CPU)
    torch.manual_seed(0)
    model = finetune.SentenceClassifier(subject, outputs=2, dropout=0.0, pad=pad, segments=False).eval()
    order = np.argsort(part.lengths_E)
    short, long = int(order[0]), int(order[-1])
    assert part.lengths_E[short] < part.lengths_E[long]
    alone, beside = (finetune.gather(part, np.array(rows), pad=pad, device=CPU) for rows in ([short], [short, long]))
    with torch.no_grad():
        torch.testing.assert_close(model(*alone[:3])[0], model(*beside[:3])[0], atol=1e-5, rtol=1e-4)


def test_the_second_text_is_marked_only_where_a_model_knows_marks(world: Path, tmp_path: Path) -> None:
    ours = write_teacher(tmp_path / "ours")
    theirs = write_teacher(tmp_path / "theirs")
    (theirs / "isobudget.json").unlink()
    assert (Encoder(ours).segments, Encoder(theirs).segments) == (False, True)
    part = plan_of(world, tasks=["rte"]).data["rte"].train
    batch = finetune.gather(part, np.arange(4), pad=0, device=CPU)[:3]
    answers = []
    for marked in (False, True):
        torch.manual_seed(0)
        model = finetune.SentenceClassifier(
            Encoder(theirs).load(device=CPU), outputs=2, dropout=0.0, pad=0, segments=marked
        )
        with torch.no_grad():
            answers.append(model.eval()(*batch))
    assert (answers[0] - answers[1]).abs().max() > 1e-4


# -- once and only once ----------------------------------------------------------------------------------
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, float, int]]:
    runs: Counter[tuple[str, float, int]] = Counter()
    real = module.finetune

    def fake(subject: Any, data: Any, recipe: Any, **keys: Any) -> Any:
        runs[data.task.name, recipe.lr, recipe.seed] += 1
        return real(subject, data, recipe, **keys)

    monkeypatch.setattr(module, "finetune", fake)
    return runs


def test_finished_jobs_are_never_run_again_after_a_stop(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counted(monkeypatch)
    plan = plan_of(world, seeds=[1, 2], grid={**GRID, "epochs": 1})
    with pytest.raises(Preempted):
        glue(plan, untrained(tmp_path), stop=lambda: runs.total() >= 3).run()
    done = sorted(p.name for p in (tmp_path / "a" / "glue").glob("*.json"))
    assert len(done) == 2, "the third was begun and left"
    before = {name: (tmp_path / "a" / "glue" / name).read_bytes() for name in done}
    glue(plan, untrained(tmp_path)).run()
    assert runs.total() == 5, "two, one that was cut, and the two that were missing"
    assert all((tmp_path / "a" / "glue" / name).read_bytes() == text for name, text in before.items())
    glue(plan, untrained(tmp_path)).run()
    assert runs.total() == 5
    assert spent(tmp_path / "a")[0] == 4 * glue_price.job_flop(
        Untrained(config(), 1).shape, plan.data["sst2"], batch=16, epochs=1, steps=14
    )


def test_an_interrupted_search_ends_as_the_uninterrupted_one(world: Path, tmp_path: Path) -> None:
    plan = plan_of(world, grid={**GRID, "epochs": 1})
    whole = glue(plan, untrained(tmp_path / "whole")).run()
    calls = iter(range(10_000))
    with pytest.raises(Preempted):
        glue(plan, untrained(tmp_path / "cut"), stop=lambda: next(calls) > 20).run()
    assert glue(plan, untrained(tmp_path / "cut")).run() == whole


def test_a_torn_result_is_done_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = counted(monkeypatch)
    plan = plan_of(world, grid={"lrs": [2e-3], "batches": [32], "epochs": 1})
    first = glue(plan, untrained(tmp_path)).run()
    file = next((tmp_path / "a" / "glue").glob("*.json"))
    file.write_text(file.read_text()[:40])
    assert glue(plan, untrained(tmp_path)).run() == first
    assert runs.total() == 2


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    plan = plan_of(world, grid={"lrs": [2e-3], "batches": [32], "epochs": 1})
    monkeypatch.setattr("harness.rundir.os.replace", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        glue(plan, untrained(tmp_path)).run()
    assert list((tmp_path / "a" / "glue").iterdir()) == []


@pytest.mark.parametrize("steps", [0, 3])
def test_whoever_is_stopped_is_told_what_this_command_takes(world: Path, tmp_path: Path, steps: int) -> None:
    calls = iter(range(1000))
    told = Glue(
        plan_of(world), [untrained(tmp_path)], pad=0, ranks=Ranks(), device=CPU, tell=Silent(),
        stop=lambda: next(calls) >= steps, again="say it once more",
    )  # fmt: skip
    with pytest.raises(Preempted, match="say it once more") as stopped:
        told.run()
    assert "--resume" not in str(stopped.value)


def test_another_model_recipe_or_data_is_another_job(world: Path, tmp_path: Path) -> None:
    grid = {"lrs": [2e-3], "batches": [32], "epochs": 1}
    keys = set()
    for student, changes in (
        (untrained(tmp_path), {}),
        (untrained(tmp_path, seed=2), {}),
        (untrained(tmp_path), {"dropout": 0.1}),
        (untrained(tmp_path), {"seeds": [7]}),
        (untrained(tmp_path), {"select_on": "validation"}),
        (untrained(tmp_path), {"train_examples": 100}),
        (untrained(tmp_path), {"length": 16}),
    ):
        plan = plan_of(world, **{"grid": grid, **changes})
        stage = glue_price.stages(plan.spec, 100)[0]
        keys.add(module.job(plan, student, "sst2", (2e-3, 32), plan.spec.seeds[0], stage, "fp32").key)
    assert len(keys) == 7


def test_a_repetition_is_bit_for_bit_the_same(world: Path, tmp_path: Path) -> None:
    plan = plan_of(world, dropout=0.1, grid={"lrs": [2e-3], "batches": [16], "epochs": 1})
    rows = []
    for place in "ab":
        torch.manual_seed(int.from_bytes(place.encode(), "big"))  # whatever happened before
        glue(plan, untrained(tmp_path / place)).run()
        row = json.loads(next((tmp_path / place / "a" / "glue").glob("*.json")).read_text())
        rows.append({k: v for k, v in row.items() if k != "seconds"})
    assert rows[0] == rows[1]


# -- choosing --------------------------------------------------------------------------------------------
def test_the_papers_protocol_is_chosen_on_the_reported_split_and_says_so(world: Path, tmp_path: Path) -> None:
    plan = plan_of(world, select_on="validation", grid={**GRID, "epochs": 1})
    summary = glue(plan, untrained(tmp_path)).run()["a"]
    assert summary["recipe"]["chosen_on"] == "the reported split"
    assert any("optimistic" in note for note in summary["notes"])
    assert summary["tasks"]["sst2"]["chosen_by"] == summary["tasks"]["sst2"]["score"]


def test_successive_halving_trains_fewer_and_fewer_points_further(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glue_price, "FEWEST_STEPS", 2)
    steps: Counter[int] = Counter()
    real = module.finetune

    def fake(subject: Any, data: Any, recipe: Any, **keys: Any) -> Any:
        steps[recipe.steps] += 1
        return real(subject, data, recipe, **keys)

    monkeypatch.setattr(module, "finetune", fake)
    plan = plan_of(world, grid="staged", train_examples=130)
    glue(plan, untrained(tmp_path)).run()
    # 117 examples: 8 steps an epoch of 16 and 4 of 32, so 40 and 20 in all
    assert steps[40] + steps[20] == 2
    assert steps[4] + steps[2] + steps[8] == 8 + 4
    assert steps.total() == 8 + 4 + 2


def test_a_diverged_point_is_never_chosen(world: Path, tmp_path: Path) -> None:
    plan = plan_of(world, tasks=["cola"], grid={"lrs": [1e30, 1e-6], "batches": [16], "epochs": 1})
    student = untrained(tmp_path)
    summary = glue(plan, student).run()["a"]
    assert summary["tasks"]["cola"]["lr"] == 1e-6
    rows = [json.loads(p.read_text()) for p in (tmp_path / "a" / "glue").glob("*.json")]
    assert sorted(row["diverged"] for row in rows) == [False, True]
    assert all(row["score"] == 0 for row in rows if row["diverged"])


def test_the_mean_is_over_the_tasks_that_all_students_have() -> None:
    def summary(**tasks: float) -> dict[str, Any]:
        return {"tasks": {name: {"score": value} for name, value in tasks.items()}}

    a, b = summary(cola=0.2, rte=0.6), summary(rte=0.5)
    assert common_tasks([a, b]) == ["rte"]
    assert row_of(a, ["rte"]) == {"glue.cola": 0.2, "glue.rte": 0.6, "glue.mean": 0.6}
    assert row_of(b, ["rte"]) == {"glue.rte": 0.5, "glue.mean": 0.5}
    assert row_of(b, common_tasks([a])) == {"glue.rte": 0.5}, "who lacks one of the tasks has no mean"
    assert row_of(a, common_tasks([])) == {"glue.cola": 0.2, "glue.rte": 0.6}


# -- sharing the work ------------------------------------------------------------------------------------
@given(st.lists(st.integers(1, 10**6), max_size=40), st.integers(1, 9))
def test_every_job_has_one_rank_and_no_rank_is_overloaded(prices: list[int], world: int) -> None:
    student = Student("s", Path("s"), None)  # type: ignore[arg-type]
    jobs = [Job(student, _Data, None, True, price, f"{i:04}") for i, price in enumerate(prices)]  # type: ignore[arg-type]
    shares = assign(jobs, world)
    assert sorted(j.key for share in shares for j in share) == sorted(j.key for j in jobs)
    load = [sum(j.price for j in share) for share in shares]
    # Graham (1969): longest first is within 4/3 − 1/(3m) of the best; here against two lower bounds of the best.
    bound = max(sum(prices) / world, max(prices, default=0))
    assert max(load) <= bound + max(prices, default=0)
    assert all(share == sorted(share, key=lambda j: -j.price) for share in shares)
    assert assign(list(reversed(jobs)), world) == shares, "the order of the list does not matter"


class _Data:
    class task:
        name = "sst2"


def test_every_example_is_seen_once_an_epoch_with_its_like(world: Path) -> None:
    part = plan_of(world).data["sst2"].train
    batches = finetune.order(part, batch=16, epoch=0, seed=1, task="sst2")
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(part)))
    padded = sum(len(b) * int(part.lengths_E[b].max()) for b in batches)
    assert padded <= 1.1 * part.lengths_E.sum(), "little is padded"
    other = finetune.order(part, batch=16, epoch=1, seed=1, task="sst2")
    assert [b.tolist() for b in other] != [b.tolist() for b in batches]


def test_the_price_of_whole_epochs_is_what_the_job_then_counts(world: Path, tmp_path: Path) -> None:
    plan = plan_of(world, tasks=["rte"], grid={"lrs": [1e-4], "batches": [32], "epochs": 2})
    glue(plan, untrained(tmp_path)).run()
    assert spent(tmp_path / "a")[0] == plan.flop["rte"]


@pytest.mark.parametrize("fewest", [2, 15, 100])
def test_the_price_of_a_search_by_halves_is_what_it_then_counts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewest: int
) -> None:
    """Wherever the fewest steps bind: in no round, in some (15 of 20 steps), in all."""
    monkeypatch.setattr(glue_price, "FEWEST_STEPS", fewest)
    plan = plan_of(world, grid="staged", train_examples=130)
    glue(plan, untrained(tmp_path)).run()
    assert spent(tmp_path / "a")[0] == pytest.approx(plan.flop["sst2"], rel=0.03)


# -- models ----------------------------------------------------------------------------------------------
def test_a_folder_with_holes_in_its_body_without_safetensors_or_with_code_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    holed = write_teacher(tmp_path / "holed")
    weights = load_file(holed / "model.safetensors")
    name = next(k for k in weights if k.endswith("layer.1.output.dense.weight"))
    save_file({k: v for k, v in weights.items() if k != name}, holed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="lacks 1 weights"):
        Encoder(holed).load(device=CPU)

    pickled = write_teacher(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match="no safetensors"):
        Encoder(pickled).load(device=CPU)

    coded = write_teacher(tmp_path / "coded")
    tree = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps({**tree, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(DataError, match="run code of its own"):
        Encoder(coded).load(device=CPU)


def test_a_body_without_a_head_is_good_enough(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = write_teacher(tmp_path / "whole")
    whole = Encoder(folder).load(device=CPU)
    AutoModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path / "body")
    body = Encoder(tmp_path / "body").load(device=CPU)
    for mine, theirs in zip(whole.model.bert.parameters(), body.model.bert.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_size_and_latency_are_the_models_own(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "t", layers=2, hidden=32)
    found = size.measure(folder, device=CPU)
    model = Encoder(folder).load(device=CPU).model
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["parameters"] - found["parameters_without_embeddings"] == model.config.vocab_size * 32
    assert found["bytes"] == (folder / "model.safetensors").stat().st_size
    for batch in ("batch_1", "batch_32"):
        row = found["latency"][batch]
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
    assert found["latency"]["batch_32"]["p50_ms"] > found["latency"]["batch_1"]["p50_ms"]


def test_the_best_point_is_the_one_with_the_best_mean_over_seeds(tmp_path: Path) -> None:
    plan_like = [((1e-4, 16), [0.9, 0.1]), ((1e-3, 16), [0.6, 0.6]), ((1e-2, 16), [0.7, 0.7])]
    jobs, results = [], {}
    for (lr, batch), values in plan_like:
        for seed, value in enumerate(values):
            recipe = finetune.Recipe(lr, batch, 1, 1, seed, 0.0, 0.0, 0.0, "fp32")
            each = Job(untrained(tmp_path), _Data, recipe, True, 1, f"{lr}-{seed}")  # type: ignore[arg-type]
            jobs.append(each)
            results[str(each.file)] = {"chosen_by": value, "diverged": lr == 1e-2 and seed == 1}
    order = best(jobs, [point for point, _ in plan_like], results)
    assert order == [(1e-3, 16), (1e-4, 16), (1e-2, 16)]
