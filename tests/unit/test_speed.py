"""What changes the time of a step changes neither its losses beyond rounding nor what it is charged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness import cli, conduct
from harness.models.signals import Needs
from harness.models.teacher import Teacher, inspect
from tests.support.tiny import TinyStudy


class Asked:
    """The part of a batch a teacher reads."""

    def __init__(self, vocab: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.input_ids_BT = torch.randint(5, vocab, (4, 32), generator=generator)
        self.positions_N = torch.arange(0, 128, 7)
        self.attention_mask_BT = None


def test_a_compiled_teacher_gives_the_same_signals(tiny: TinyStudy) -> None:
    info = inspect(str(tiny.teacher))
    plain, compiled = (Teacher(info, device=torch.device("cpu"), dtype=torch.float32) for _ in range(2))
    compiled.use("compiled")
    batch = Asked(info.shape.vocab)
    for needs in (Needs(logits="masked"), Needs(states=frozenset({0, 2}), qkv=frozenset({2}))):
        expected, found = plain(batch, needs), compiled(batch, needs)  # type: ignore[arg-type]
        for layer, state in expected.states.items():
            torch.testing.assert_close(found.states[layer], state, rtol=1e-4, atol=1e-4)
        for layer in needs.qkv:
            for part in "qkv":
                torch.testing.assert_close(found.part(layer, part), expected.part(layer, part), rtol=1e-4, atol=1e-4)
        if expected.head is not None:
            assert found.head is not None
            torch.testing.assert_close(found.head.logits(), expected.head.logits(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernels", ["eager", "reference"])
def test_kernels_change_no_charge_and_no_score_beyond_rounding(
    tiny: TinyStudy, tmp_path: Path, kernels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = {}
    for name in ("auto", kernels):
        out = tmp_path / name
        flags = ["--arms", "minilmv2", "--seeds", "1", "--set", f"speed.kernels={name}", "--out", str(out)]
        assert cli.main(["run", "--study", str(tiny.file), *flags]) == 0
        records[name] = json.loads((out / "arms/minilmv2/seed-1/record.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    assert records["auto"]["charged"] == records[kernels]["charged"]
    assert records["auto"]["kernels"]["relation_kl"].startswith("eager (")
    assert records[kernels]["kernels"]["relation_kl"] == f"{kernels} (asked for)"
    assert records[kernels]["scores"]["mlm.loss"] == pytest.approx(records["auto"]["scores"]["mlm.loss"], rel=1e-3)


def test_triton_is_refused_where_it_cannot_run(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    flags = ["--set", "speed.kernels=triton", "--out", str(tmp_path / "out")]
    assert cli.main(["run", "--study", str(tiny.file), *flags]) == 2
    assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_student_learns_the_same_and_pays_for_compiling_before_its_first_step(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is interrupted by a validation, which is not compiled, and where the objective changes on the way."""
    arms = [
        {
            "name": "late",
            "objective": {"phases": [{"until": 0.5, "name": "minilmv2", "relation_heads": 8}, {"name": "mlm"}]},
        }
    ]
    file = tiny.write(tmp_path / "late.yaml", arms=arms)
    compiled_at: list[int] = []
    ahead = conduct.compile_ahead
    monkeypatch.setattr(conduct, "compile_ahead", lambda trial: (compiled_at.append(trial.progress.step), ahead(trial)))
    found = {}
    for compiled in ("false", "true"):
        out = tmp_path / compiled
        assert (
            cli.main(["run", "--study", str(file), "--set", f"speed.compile_student={compiled}", "--out", str(out)])
            == 0
        )
        trial = out / "arms/late/seed-1"
        rows = [json.loads(row) for row in (trial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        record = json.loads((trial / "record.json").read_text(encoding="utf-8"))
        found[compiled] = record, [row["loss"] for row in rows if "loss" in row]
    capsys.readouterr()
    (plain, losses), (compiled, theirs) = found["false"], found["true"]
    assert compiled["charged"] == plain["charged"]
    assert compiled["steps"] == plain["steps"]
    assert theirs == pytest.approx(losses, rel=1e-4)
    assert compiled_at == [0], "once, before the first step, and only where it was asked for"


@pytest.mark.parametrize(
    "engine", [{"zero_optimization": {"stage": 3}}, {"activation_checkpointing": {"enabled": True}}]
)
def test_engines_that_a_compiled_student_cannot_have_are_refused(
    engine: dict, tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "engine.json").write_text(json.dumps(engine), encoding="utf-8")
    flags = ["--set", "speed.compile_student=true", "--ds_config", str(tmp_path / "engine.json"), "--arms", "no_kd"]
    assert cli.main(["run", "--study", str(tiny.file), "--out", str(tmp_path / "out"), *flags]) == 2
    assert "speed.compile_student" in capsys.readouterr().err
