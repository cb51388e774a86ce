"""The laws of a study, on real runs of a tiny one: what every arm is promised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from harness import cli
from harness.budget import parse_postings
from tests.support.tiny import TinyStudy

ARMS = ("no_kd", "soft_targets", "minilmv2", "tinybert")


def run(tiny: TinyStudy, out: Path, *flags: str, code: int = 0, file: Path | None = None) -> Path:
    assert cli.main(["run", "--study", str(file or tiny.file), "--out", str(out), *flags]) == code
    return out


def record(out: Path, arm: str, seed: int = 1) -> dict:
    return json.loads((out / "arms" / arm / f"seed-{seed}" / "record.json").read_text())


def weights(out: Path, arm: str, seed: int = 1) -> dict:
    return load_file(out / "arms" / arm / f"seed-{seed}" / "student" / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def ledger(out: Path, arm: str, seed: int = 1) -> list:
    """The deterministic part of the ledger: measured charges depend on the machine."""
    lines = (out / "arms" / arm / f"seed-{seed}" / "ledger.jsonl").read_text().splitlines()
    rows = []
    for row in map(json.loads, lines):
        charges = [c for c in row["charges"] if c[3] == "analytic"]
        if charges:
            rows.append([row["step"], charges, row["spent"]])
    return rows


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One complete run of the tiny study; tests that change a directory copy it first."""
    return run(tiny, tmp_path_factory.mktemp("finished") / "run")


def test_law_1_every_arm_stops_less_than_one_step_below_the_limit(finished: Path) -> None:
    for arm in ARMS:
        row = record(finished, arm)
        assert row["charged"] <= 2_000_000_000
        assert 0 <= row["unspent"] < row["step_price"]
        assert row["charged"] == row["steps"] * row["step_price"], "one phase: every step costs the same"


def test_law_1_two_arms_differ_by_less_than_the_dearer_step(finished: Path) -> None:
    rows = [record(finished, arm) for arm in ARMS]
    charged = [row["charged"] for row in rows]
    assert max(charged) - min(charged) < max(row["step_price"] for row in rows)


def test_only_arms_with_a_teacher_pay_for_one(finished: Path) -> None:
    assert "TEACHER_FORWARD" not in record(finished, "no_kd")["accounts"]
    for arm in ARMS[1:]:
        accounts = record(finished, arm)["accounts"]
        assert accounts["TEACHER_FORWARD"]["flop"] > 0
        assert accounts["TEACHER_TRAINING"] == {"flop": 1_000_000_000}, "reported even when it is not charged"


def test_law_5_every_schedule_ends_at_its_own_end(finished: Path) -> None:
    for arm in ARMS:
        rows = [json.loads(x) for x in (finished / "arms" / arm / "seed-1" / "metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if "lr" in row][-1]
        step = record(finished, arm)["step_price"] / 2_000_000_000
        assert last["lr"] <= 1e-3 * 2.5 * step / (1 - 0.06), "the last step's rate is that of the schedule's end"


def test_law_7_reordering_or_adding_arms_changes_no_other_result(
    finished: Path, tiny: TinyStudy, tmp_path: Path
) -> None:
    out = run(tiny, tmp_path / "few", "--arms", "tinybert,no_kd")
    for arm in ("no_kd", "tinybert"):
        assert same(weights(out, arm), weights(finished, arm))
        assert ledger(out, arm) == ledger(finished, arm)
        mine, theirs = record(out, arm), record(finished, arm)
        assert mine["scores"] == theirs["scores"]


def test_arms_of_one_seed_start_alike_and_seeds_differ(tiny: TinyStudy, tmp_path: Path) -> None:
    """Pairing: the first batch's loss of arms that start from the same weights on the same masks is the same."""
    file = tiny.write(
        tmp_path / "s.yaml",
        arms=[{"name": "a", "objective": "mlm"}, {"name": "b", "objective": {"name": "soft_targets", "alpha": 0.0}}],
        seeds=[1, 2],
    )
    out = run(tiny, tmp_path / "run", file=file)

    def first_loss(arm: str, seed: int) -> float:
        line = (out / "arms" / arm / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()[0]
        return json.loads(line)["loss"]

    assert first_loss("a", 1) == pytest.approx(first_loss("b", 1), rel=1e-6)
    assert first_loss("a", 1) != pytest.approx(first_loss("a", 2), rel=1e-6)


def test_a_finished_run_trains_only_what_is_missing(finished: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = {arm: (out / "arms" / arm / "seed-1" / "ledger.jsonl").stat().st_mtime_ns for arm in ARMS}
    run(tiny, out, "--seeds", "1,2", "--arms", "no_kd")
    assert record(out, "no_kd", 2)["state"] == "done"
    assert {arm: (out / "arms" / arm / "seed-1" / "ledger.jsonl").stat().st_mtime_ns for arm in ARMS} == before
    report = json.loads((out / "report.json").read_text())
    assert len(report["arms"]) == 8, "the union of arms and seeds is complete"


def test_a_new_evaluation_is_made_without_training_again(finished: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    stamp = (out / "arms" / "no_kd" / "seed-1" / "student" / "model.safetensors").stat().st_mtime_ns
    old = json.loads((out / "arms" / "no_kd" / "seed-1" / "evaluations.json").read_text())
    run(tiny, out, "--set", "evaluation.readout.steps=8")
    new = json.loads((out / "arms" / "no_kd" / "seed-1" / "evaluations.json").read_text())
    assert new["mlm"] == old["mlm"]
    assert new["readout"]["key"] != old["readout"]["key"]
    assert (out / "arms" / "no_kd" / "seed-1" / "student" / "model.safetensors").stat().st_mtime_ns == stamp


def test_another_study_an_unfinished_run_and_foreign_files_are_refused(
    finished: Path, tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    run(tiny, out, "--budget", "3 Gflop", code=2)
    assert "budget differs" in capsys.readouterr().err
    status = json.loads((out / "status.json").read_text())
    (out / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    run(tiny, out, code=2)
    assert "--resume" in capsys.readouterr().err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    run(tiny, foreign, code=2)
    assert "thesis.tex" in capsys.readouterr().err
    assert [p.name for p in foreign.iterdir() if p.name != ".lock"] == ["thesis.tex"]


def test_an_interrupted_run_resumes_to_the_same_weights_and_ledger(
    finished: Path, tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 6 at world size 1, with the interruption right after a step that no checkpoint holds."""
    from harness.train import Trial

    out, step = tmp_path / "run", Trial._step
    calls = 0

    def fail_late(self: Trial, *given: Any) -> dict:
        nonlocal calls
        calls += 1
        if calls == 17:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(Trial, "_step", fail_late)
    run(tiny, out, "--arms", "no_kd", code=130)
    monkeypatch.setattr(Trial, "_step", step)
    run(tiny, out, "--arms", "no_kd", "--resume")
    assert same(weights(out, "no_kd"), weights(finished, "no_kd"))
    mine, theirs = record(out, "no_kd"), record(finished, "no_kd")
    assert mine["accounts"].pop("LOST")["flop"] > 0
    assert mine["charged"] == theirs["charged"]
    assert mine["accounts"]["STUDENT_STEP"]["flop"] == theirs["accounts"]["STUDENT_STEP"]["flop"]


def test_half_a_first_line_of_a_ledger_is_dropped_and_nothing_written_behind_it(
    finished: Path, tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of its first posting: there is nothing to call lost, and the file is still to be a ledger."""
    from harness.train import Trial

    def interrupt(self: Trial) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Trial, "run", interrupt)
        run(tiny, out, "--arms", "no_kd", code=130)
    file = out / "arms" / "no_kd" / "seed-1" / "ledger.jsonl"
    file.write_text('{"step":0,"char', encoding="utf-8")
    (file.parent / "open-time.json").unlink(missing_ok=True)  # killed before its first note of the time, too
    run(tiny, out, "--arms", "no_kd", "--resume")
    lines = file.read_text().splitlines()
    assert len(parse_postings(file.read_text())) == len(lines) > 10
    assert same(weights(out, "no_kd"), weights(finished, "no_kd"))
    assert ledger(out, "no_kd") == ledger(finished, "no_kd")


def test_a_run_that_cannot_remove_old_checkpoints_says_so_once_and_goes_on(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import checkpoint

    def busy(root: Path, keep: int) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(checkpoint, "clean", busy)
    out = run(tiny, tmp_path / "run", "--arms", "no_kd", "--set", "checkpoints=4")
    told = [text for text in record(out, "no_kd")["warnings"] if "could not be removed" in text]
    assert len(told) == 1
    assert "Device or resource busy" in told[0]


def test_an_exported_student_loads_with_transformers_and_scores_the_same(finished: Path, tiny: TinyStudy) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = finished / "arms" / "no_kd" / "seed-1" / "student"
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["the model returns a tensor", "otherwise it raises"], padding=True, return_tensors="pt")
    from harness.evaluate.subject import Subject
    from harness.models.signals import Needs

    head = Subject.load(folder, device=torch.device("cpu")).signals(
        Needs(logits="tokens"), input_ids_BT=batch["input_ids"], attention_mask_BT=batch["attention_mask"]
    ).head  # fmt: skip
    assert head is not None
    with torch.no_grad():
        theirs = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    torch.testing.assert_close(head.logits(), theirs[batch["attention_mask"].bool()], rtol=1e-5, atol=1e-5)


def test_the_report_is_rebuilt_from_the_directory(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "report.html").unlink()
    assert cli.main(["report", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"study", "budget", "arms", "comparisons"} <= set(report)
    assert report["budget"] == {**report["budget"], "unit": "flop", "limit": 2_000_000_000}
    for arm in report["arms"]:
        assert {"name", "seed", "steps", "tokens", "unique_tokens", "charged", "seconds", "accounts", "scores"} <= set(
            arm
        )
    assert (out / "report.html").stat().st_size < 2_000_000


@pytest.mark.parametrize(("arm", "flags"), [
    ("no_kd", []), ("soft_targets", []), ("soft_targets", ["--set", "speed.teacher_cache.logits=all"]),
])  # fmt: skip
def test_a_run_killed_before_its_first_checkpoint_starts_again_and_says_what_was_lost(
    finished: Path, tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, flags: list[str]
) -> None:
    """Steps and the comparison of the teacher are done again; its training and its cache, posted again, are not."""
    from harness.train import Trial

    flags = ["--arms", arm, *flags]

    out, step = tmp_path / "run", Trial._step
    calls = iter(range(100))

    def fail_early(self: Trial, *given: Any) -> dict:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(Trial, "_step", fail_early)
    run(tiny, out, *flags, code=130)
    monkeypatch.setattr(Trial, "_step", step)
    run(tiny, out, *flags, "--resume")
    straight = finished if len(flags) == 2 else run(tiny, tmp_path / "straight", *flags)
    mine, theirs = record(out, arm), record(straight, arm)
    kept = ("TEACHER_TRAINING", "TEACHER_CACHE")
    begun = [
        c for step, row, _ in ledger(straight, arm) for c in row if step < 3 and c[2] == "flop" and c[0] not in kept
    ]
    assert mine["accounts"].pop("LOST")["flop"] == sum(amount for _, amount, *_ in begun) > 0
    assert same(weights(out, arm), weights(straight, arm))
    assert mine["charged"] == theirs["charged"]
    assert [mine["accounts"].get(name, {}).get("flop") for name in kept] == [
        theirs["accounts"].get(name, {}).get("flop") for name in kept
    ]


def test_a_refused_run_leaves_a_finished_one_as_it_was(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another tracker's name, or other software: refused, and nothing of the finished run has changed."""
    out = tmp_path / "run"
    run(tiny, out, "--arms", "no_kd")
    kept = {name: (out / name).read_bytes() for name in ("study.yaml", "status.json")}
    run(tiny, out, "--arms", "no_kd", "--track", "nope", code=2)
    assert {name: (out / name).read_bytes() for name in kept} == kept
    made_by = json.loads((out / "identity.json").read_text(encoding="utf-8"))
    made_by["identity"]["code"]["torch"] = "0.1"
    (out / "identity.json").write_text(json.dumps(made_by), encoding="utf-8")
    run(tiny, out, "--arms", "no_kd", "--seeds", "1,2", code=4)
    capsys.readouterr()
    assert {name: (out / name).read_bytes() for name in kept} == kept
