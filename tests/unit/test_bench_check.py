"""Laws of what a benchmark may print: no figure of a step that is not the definition's, and nothing measured in vain."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import cli
from harness.bench import ablation, random_tokens, steps
from harness.bench.bare import Bare
from harness.bench.check import Distance, Step, allowed, distance
from harness.bench.stepper import Stepper
from harness.bench.steps import Contender
from harness.bench.variation import DEFINITION, SHIPPED, variations
from harness.conduct import Conductor
from harness.ds_config import DsConfig
from harness.kernels.relation_kl import eager
from harness.plan import outline
from harness.progress import Silent
from harness.ranks import Ranks
from harness.rundir import RunDirectory
from harness.setting import prepare
from harness.study import load
from tests.support.tiny import TinyStudy


def bench(tiny: TinyStudy, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert cli.main(["bench", "--study", str(tiny.file), "--steps", "1", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    right = eager.relation_kl
    monkeypatch.setattr(eager, "relation_kl", lambda *args, **options: 2 * right(*args, **options))


def turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right loss with a gradient of minus five times itself."""
    right = eager._RelationKL.backward

    def backward(context: Any, *gradients: Any) -> tuple[Any, ...]:
        student, *rest = right(context, *gradients)
        return (-5 * student, *rest)

    monkeypatch.setattr(eager._RelationKL, "backward", staticmethod(backward))


@pytest.mark.parametrize("breaks", [doubled, turned])
def test_an_arm_whose_loss_or_gradient_is_wrong_has_no_figure(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], breaks: Any
) -> None:
    breaks(monkeypatch)
    right, wrong = bench(tiny, capsys, "--arms", "no_kd,minilmv2")["arms"]
    assert right["step"]["p50_ms"] > 0
    assert set(wrong) == {"name", "check", "why"}
    assert ("gradient" if breaks is turned else "loss") in wrong["why"]


def test_a_wrong_arm_is_named_where_a_person_reads(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    doubled(monkeypatch)
    flags = ["--arms", "minilmv2", "--csv", str(tmp_path / "b.csv"), "--figure", str(tmp_path / "b.svg")]
    assert cli.main(["bench", "--study", str(tiny.file), "--steps", "1", *flags]) == 0
    assert "minilmv2: no figures" in capsys.readouterr().out
    assert (tmp_path / "b.csv").read_text(encoding="utf-8").split() == ["arm"]


@pytest.mark.parametrize("breaks", [doubled, turned])
def test_a_variation_whose_loss_or_gradient_is_wrong_has_no_time(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], breaks: Any
) -> None:
    breaks(monkeypatch)
    monkeypatch.setattr(
        ablation, "variations", lambda: [v for v in variations() if v.name in (SHIPPED.name, DEFINITION)]
    )
    rows = bench(tiny, capsys, "--ablation", "--arms", "minilmv2")["arms"]["minilmv2"]
    found = {row["variation"]: row for row in rows}
    assert "step" not in found[SHIPPED.name]
    assert "away from the definition" in found[SHIPPED.name]["why"]
    assert found[DEFINITION]["step"]["p50_ms"] > 0
    assert "over_shipped" not in found[DEFINITION]


def test_a_variation_that_fails_costs_no_other_its_line(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Stepper.first

    def failing(self: Stepper, batches: Any) -> Step:
        if self._variation.written_out:
            raise RuntimeError("no compiler\nhere")
        return first(self, batches)

    monkeypatch.setattr(Stepper, "first", failing)
    monkeypatch.setattr(ablation, "variations", lambda: [v for v in variations() if not v.compiled_student])
    rows = bench(tiny, capsys, "--ablation", "--arms", "no_kd")["arms"]["no_kd"]
    assert [row["variation"] for row in rows if "step" not in row] == ["fused attention taken away"]
    assert next(row["why"] for row in rows if "why" in row) == "failed: RuntimeError: no compiler"
    assert all(row["over_shipped"] > 0 for row in rows if "step" in row)


def test_distance_sees_sign_size_and_what_is_not_a_number() -> None:
    gradient = [torch.tensor([3.0]), torch.tensor([4.0])]
    expected = Step(2.0, gradient)
    assert distance(expected, expected) == Distance(0.0, 0.0)
    assert distance(Step(2.2, [-g for g in gradient]), expected).gradient == pytest.approx(2.0)
    assert distance(Step(2.2, gradient), expected).loss == pytest.approx(0.1)
    lost = distance(Step(float("nan"), [torch.tensor([float("nan")]), gradient[1]]), expected)
    assert lost == Distance(float("inf"), float("inf"))
    assert lost.why(allowed(half=True, layers=12)) is not None
    assert Distance(0.0, 0.0).why(allowed(half=False, layers=2)) is None


def test_the_bare_loop_is_compiled_and_recomputes_where_the_engine_does(tiny: TinyStudy, tmp_path: Path) -> None:
    """Else the engine's cost over it would be the compiler's gain."""
    study = load(str(tiny.file), arms=["no_kd"], assignments=["speed.compile_student=true"])
    setting = prepare(study, DsConfig({"zero_optimization": {"stage": 0}}, path=None), world=1)
    conductor = Conductor(setting, RunDirectory(tmp_path), Ranks(), Silent())
    folder = tmp_path / "trial"
    folder.mkdir()
    trial = conductor.trial(setting.arms["no_kd"], 0, folder, lambda: False)
    try:
        bare = Bare(conductor, setting.arms["no_kd"], trial)
        assert bare.trainee.compiled
        assert bare.trainee.compiled == trial.trainee.compiled
        assert bare.trainee.recompute == trial.trainee.recompute
    finally:
        trial.engine.close()


def test_stalls_and_posting_in_bursts_count_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step in eight waits ten steps' time, one in sixteen posts for five: medians would see neither."""
    now = [0.0]
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def passes(units: float) -> list[Any]:
        now[0] += units
        return []

    drawn, drained = iter(range(100)), iter(range(100))

    class Batches:
        def __next__(self) -> list[Any]:
            return passes(0 if next(drawn) % 8 else 10)

    meter = SimpleNamespace(next_step=lambda phase: [], drain=lambda phase: passes(0 if next(drained) % 16 else 5))
    trial = SimpleNamespace(
        meters=[meter], _step=lambda batches, phase: passes(1), engine=SimpleNamespace(device=torch.device("cpu")),
        ledger=SimpleNamespace(affords=lambda _: True, price=lambda _: 0, post=lambda charges, step: list(charges)),
    )  # fmt: skip
    contender = Contender.__new__(Contender)
    contender.trial, contender.batches = trial, Batches()  # pyright: ignore[reportAttributeAccessIssue]
    found = contender.steady()
    # After the three that were prefetched, 32 steps: four waits, two postings.
    assert found == {"input_stall": 40 / 82, "bookkeeping": 10 / 82}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--kernels", "nonsense"], "nonsense"),
        (["--kernels", "scores", "--csv", "k.csv"], "--csv with --kernels"),
        (["--ablation", "--figure", "a.svg"], "--figure with --ablation"),
        (["--scaling", "1,2", "--against", "one.json"], "--against with --scaling"),
        (["--figure", "/no such folder/x.svg"], "/no such folder"),
        (["--csv", "/no such folder/x.csv"], "/no such folder"),
        (["--figure", "x.txt"], ".svg"),
        (["--against", "/no such file.json"], "bench --json"),
        (["--steps", "0"], "--steps 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_anything_is_measured(
    tiny: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], named: str
) -> None:
    monkeypatch.setattr("harness.setting.prepare", lambda *args, **options: pytest.fail("the study was prepared"))
    assert cli.main(["bench", "--study", str(tiny.file), *flags]) == 2
    assert named in capsys.readouterr().err


def test_two_modes_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "--kernels", "relation", "--ablation"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_peers_need_the_global_batch_as_one_micro_batch(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "micro.json"
    config.write_text('{"train_micro_batch_size_per_gpu": 4}', encoding="utf-8")
    flags = ["--peers", "--steps", "1", "--ds_config", str(config)]
    assert cli.main(["bench", "--study", str(tiny.file), *flags]) == 2
    assert "--set batch.sequences=4" in capsys.readouterr().err


def test_peers_need_a_student_without_dropout(tiny: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--peers", "--steps", "1", "--set", "student.dropout=0.1"]
    assert cli.main(["bench", "--study", str(tiny.file), *flags]) == 2
    assert "--set student.dropout=0" in capsys.readouterr().err


RANDOM = ["--data", "random", "--steps", "1", "--json", "--study", "paper_6l_1epoch"]
SMALL = [
    "--set", "batch.sequences=2", "--set", "student.layers=1", "--set", "student.hidden=64", "--set", "student.heads=4",
]  # fmt: skip


def test_a_study_is_timed_without_its_text(capsys: pytest.CaptureFixture[str], tiny: TinyStudy) -> None:
    """No Wikipedia, no BERT tokenizer, no network: the arm without a teacher, in its own vocabulary and length."""
    assert cli.main(["bench", *RANDOM, *SMALL, "--arms", "no_kd"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["data"] == "random tokens: times only"
    (row,) = table["arms"]
    assert row["tokens_per_s"] == pytest.approx(2 * 128 / row["step"]["p50_ms"] * 1e3)
    assert row["parameters"] > 30522 * 64
    assert row["tokens_per_run"] is None


def test_an_absent_teacher_gets_random_weights_of_its_size(
    capsys: pytest.CaptureFixture[str], tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized = {
        "model_type": "bert",
        "vocab_size": 30522,
        "max_position_embeddings": 128,
        "num_hidden_layers": 2,
        "hidden_size": 64,
    }
    for module in (random_tokens, outline):
        monkeypatch.setattr(
            module, "config_of_known", lambda path: {**sized, "num_attention_heads": 4, "intermediate_size": 64}
        )
    flags = [*SMALL, "--set", "teacher.path=someone/elses-model", "--arms", "no_kd,soft_targets"]
    assert cli.main(["bench", *RANDOM, *flags]) == 0
    table = json.loads(capsys.readouterr().out)
    taught = table["arms"][1]
    assert table["data"] == "random tokens, untrained weights for someone/elses-model: times only"
    assert taught["breakdown_ms"]["teacher"] > 0
    assert taught["check"]["gradient"] < 1e-4
