"""Laws of the ablation: it stands against the step that is shipped, and times nothing that a study may not ask for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import cli
from harness.bench import ablation, stepper, variation
from harness.bench.stepper import Stepper
from harness.bench.variation import DEFINITION, SHIPPED, Shipped, Variation, variations
from harness.data.cache import cache_root
from harness.kernels.relation_kl import eager
from harness.models import fp8
from harness.models.signals import Head, Needs, Signals
from harness.models.teacher import Teacher
from harness.teaching import teacher_dtype
from tests.support.tiny import TinyStudy

STATES, LOGITS = Needs(states=frozenset({1})), Needs(logits="masked")


def ablated(
    tiny: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, names: set[str], *flags: str
) -> dict[str, dict[str, Any]]:
    """The rows of an arm that learns from its teacher, by name; of these variations, the shipped step and the definition."""
    names |= {SHIPPED.name, DEFINITION}
    monkeypatch.setattr(ablation, "variations", lambda: [v for v in variations() if v.name in names])
    command = ["bench", "--study", str(tiny.file), "--steps", "1", "--json", "--ablation", "--arms", "minilmv2"]
    assert cli.main([*command, *flags]) == 0
    rows = json.loads(capsys.readouterr().out)["arms"]["minilmv2"]
    return {row["variation"]: row for row in rows}


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variation is listed, as on a GPU that multiplies eight bits."""
    monkeypatch.setattr(variation, "has_cuda", lambda: True)
    monkeypatch.setattr(fp8, "obstacle", lambda device: "")


def test_the_shipped_step_hears_the_teacher_that_the_trial_settled_on(
    tiny: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda walk, **_: walk)
    heard: dict[str, set[str]] = {}
    step, answer = Stepper._one, Teacher.__call__
    now = [""]

    def noted(self: Stepper, *batches: Any) -> torch.Tensor:
        now[0] = self._variation.name
        assert torch._dynamo.config.fail_on_recompile_limit_hit, "nothing that is to be compiled runs uncompiled"
        return step(self, *batches)

    def answered(self: Teacher, *asked: Any) -> Signals:
        heard.setdefault(now[0], set()).add(self.backend)
        return answer(self, *asked)

    monkeypatch.setattr(Stepper, "_one", noted)
    monkeypatch.setattr(Teacher, "__call__", answered)
    cut, plain, compiled = "teacher's cut taken away", "plain teacher put in", "compiled teacher put in"
    found = ablated(
        tiny, capsys, monkeypatch, {cut, plain, compiled}, "--set", "speed.teacher_backend=compiled"
    )  # fmt: skip
    del heard[""]  # while the trial settled
    assert heard == {SHIPPED.name: {"compiled"}, DEFINITION: {"compiled"}, cut: {"compiled"}, plain: {"plain"}}
    assert set(found) == set(heard), "what is shipped is not put in"
    assert found[SHIPPED.name]["teacher_backend"] == "compiled"
    assert all(row["step"]["p50_ms"] > 0 for row in found.values())


@pytest.mark.usefixtures("_gpu")
def test_every_backend_but_the_shipped_one_is_put_in() -> None:
    for shipped in ("plain", "compiled", "graphs", "fp8"):
        against = Shipped(shipped, dropout=False, student=STATES, teacher=STATES)
        put_in = {v.backend for v in variations() if v.backend is not None and v.changes(against)}
        assert put_in == {"plain", "compiled", "graphs", "fp8"} - {shipped}
    untaught = Shipped(None, dropout=False, student=LOGITS, teacher=Needs())
    teaching = [v for v in variations() if v.backend or v.ahead or v.remembered or v.other_precision]
    assert len(teaching) == 7
    assert not any(v.changes(untaught) for v in teaching)


@pytest.mark.usefixtures("_gpu")
def test_no_line_is_of_a_step_that_studies_refuse() -> None:
    """A teacher with dropout is computed layer by layer, in order, and not remembered; fp8 is not remembered either."""
    dropping = Shipped("plain", dropout=True, student=STATES, teacher=STATES)
    left = [v for v in variations() if v.changes(dropping)]
    assert not [v.name for v in left if v.backend or v.ahead or v.remembered]
    assert [v for v in left if v.other_precision]
    steady = replace(dropping, dropout=False)
    assert {v.backend for v in variations() if v.changes(steady)} == {None, "compiled", "graphs", "fp8"}
    assert any(v.remembered for v in variations() if v.changes(steady))
    assert not any(v.remembered or v.other_precision for v in variations() if v.changes(replace(steady, backend="fp8")))


def test_a_teacher_that_rounds_otherwise_is_one_in_other_bits() -> None:
    plain = Shipped("plain", dropout=False, student=STATES, teacher=STATES)
    small = replace(plain, backend="fp8")
    assert not Variation("x", backend="compiled").teaches_otherwise(plain)
    assert Variation("x", backend="compiled").teaches_otherwise(small)
    assert Variation("x", backend="fp8").teaches_otherwise(plain)
    assert not SHIPPED.teaches_otherwise(small)


def test_the_other_precision_changes_the_teacher_and_no_loss(
    tiny: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher in more bytes than the student would take the losses from Triton to eager, and be timed as one thing."""
    seen, dropouts = set[torch.dtype](), list[float]()
    loss, make = eager.relation_kl, Teacher.__init__

    def noted(student: torch.Tensor, teacher: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.add(teacher.dtype)
        return loss(student, teacher, **options)

    def made(self: Teacher, *args: Any, dropout: float = 0.0, **options: Any) -> None:
        dropouts.append(dropout)
        make(self, *args, dropout=dropout, **options)

    monkeypatch.setattr(eager, "relation_kl", noted)
    monkeypatch.setattr(Teacher, "__init__", made)
    (half,) = (v.name for v in variations() if v.other_precision)
    found = ablated(tiny, capsys, monkeypatch, {half}, "--set", "teacher.dropout=0.1")
    assert found[half]["check"]["gradient"] > 0, "another teacher"
    assert seen == {teacher_dtype()}
    assert dropouts == [0.1, 0.1], "the trial's, and the one in another precision"


def test_signals_in_another_type_keep_their_head() -> None:
    head = Head(torch.ones(2, 3), torch.ones(5, 3), None)
    found = Signals(
        states={1: torch.ones(1, 2, 3)}, qkv={2: (torch.ones(1), torch.ones(1), torch.ones(1))},
        parts={(3, "k"): torch.ones(1)}, head=head,
    ).to(torch.bfloat16)  # fmt: skip
    assert {x.dtype for name, x in found.tensors().items() if name != "head"} == {torch.bfloat16}
    assert found.head is head


REMEMBERED = "teacher's cache put in, all logits"


def kept_files() -> set[Path]:
    return set((cache_root() / "teacher").rglob("*"))


def test_a_cache_that_is_written_to_be_timed_is_deleted_again(
    tiny: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept_files()
    found = ablated(tiny, capsys, monkeypatch, {REMEMBERED})
    assert found[REMEMBERED]["step"]["p50_ms"] > 0
    assert kept_files() == before


def test_a_cache_too_large_to_be_timed_is_not_written_and_the_line_says_why(
    tiny: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepper, "MOST_CACHE_BYTES", 1000)
    monkeypatch.setattr(stepper, "remembered_teacher", lambda *_, **__: pytest.fail("it was written"))
    found = ablated(tiny, capsys, monkeypatch, {REMEMBERED})
    assert "step" not in found[REMEMBERED]
    assert found[REMEMBERED]["why"].startswith("left out: the cache of 4 steps would take")
    assert found[SHIPPED.name]["step"]["p50_ms"] > 0
