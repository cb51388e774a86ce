"""Teachers answer exactly what is asked, frozen; students may start from their layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import ConfigError, TeacherError
from harness.evaluate.subject import Subject
from harness.evaluate.vouch import vouch
from harness.models.initialise import adopt, chosen_layers, copy_layers
from harness.models.signals import Needs, run
from harness.models.teacher import Teacher, inspect
from harness.trainee import tiny_batch

from . import model_zoo as zoo

CPU = torch.device("cpu")
EVERY = pytest.mark.parametrize("name", zoo.ZOO)


def saved(folder: Path, name: str = "bert", **sizes: int) -> Path:
    zoo.build(zoo.config(name, **sizes)).float().save_pretrained(folder)
    return folder


def load(folder: Path, **kwargs: Any) -> Teacher:
    return Teacher(inspect(str(folder)), device=CPU, dtype=torch.float32, **kwargs)


@EVERY
def test_a_cut_teacher_answers_as_before_with_less_memory(name: str, tmp_path: Path) -> None:
    teacher = load(saved(tmp_path, name))
    batch, needs = tiny_batch(zoo.VOCAB), Needs(qkv=frozenset({2}))
    before = teacher(batch, needs)
    size = sum(p.numel() for p in teacher.family.model.parameters())
    teacher.cut(needs)
    after = teacher(batch, needs)
    for a, b in zip(before.qkv[2], after.qkv[2], strict=True):
        assert torch.equal(a, b)
        assert not b.requires_grad
    kept = sum(p.numel() for p in teacher.family.model.parameters())
    assert kept < size * 0.8, "the layer above and the head are gone"


@EVERY
def test_cutting_keeps_a_head_that_is_needed(name: str, tmp_path: Path) -> None:
    teacher = load(saved(tmp_path, name))
    batch, needs = tiny_batch(zoo.VOCAB), Needs(logits="masked")
    before = teacher(batch, needs).head
    teacher.cut(needs)
    after = teacher(batch, needs).head
    assert before is not None
    assert after is not None
    assert torch.equal(before.logits(), after.logits())


def test_a_teacher_of_whom_nothing_is_asked_computes_nothing(tmp_path: Path) -> None:
    teacher = load(saved(tmp_path))
    teacher.family.model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    for layer in teacher.family.layers:
        layer.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    signals = teacher(tiny_batch(zoo.VOCAB), Needs())
    assert (signals.states, signals.qkv, signals.head) == ({}, {}, None)


@EVERY
def test_a_teacher_repeats_itself_unless_its_dropout_is_on(name: str, tmp_path: Path) -> None:
    """Defect 3 of the published code, as the option `teacher.dropout`."""
    folder, batch, needs = (
        saved(tmp_path, name),
        tiny_batch(zoo.VOCAB),
        Needs(states=frozenset({3}), qkv=frozenset({2})),
    )
    quiet, noisy = load(folder), load(folder, dropout=0.2)
    assert torch.equal(quiet(batch, needs).states[3], quiet(batch, needs).states[3])
    first, second = noisy(batch, needs), noisy(batch, needs)
    assert not torch.equal(first.states[3], second.states[3])
    assert not torch.equal(first.qkv[2][0], second.qkv[2][0])
    assert noisy.family.model.training
    mean = torch.stack([noisy(batch, needs).states[3] for _ in range(50)]).mean(0)
    assert (mean - quiet(batch, needs).states[3]).abs().mean() < (
        first.states[3] - quiet(batch, needs).states[3]
    ).abs().mean()


# -- initialisation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in zoo.ZOO if not n.startswith("modernbert")])
def test_a_student_of_all_the_teachers_layers_is_the_teacher(name: str) -> None:
    made = zoo.config(name)
    teacher, student = zoo.build(made, seed=1), zoo.build(made, seed=2)
    layers = chosen_layers([1, 2, 3], zoo.shape(made), zoo.shape(made))
    copy_layers(student, zoo.shape(made), teacher, zoo.shape(made), layers)
    ids, mask = zoo.tokens((9, 5))
    with torch.no_grad():
        a, b = (m(input_ids=ids, attention_mask=mask).logits[mask.bool()] for m in (student, teacher))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "unlike"),
    [
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
        ("distilbert", {"activation": "relu"}),
        ("modernbert", {"hidden_activation": "silu", "norm_eps": 0.1, "norm_bias": True}),
        ("gpt2", {"activation_function": "relu", "layer_norm_epsilon": 0.1}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "attention_bias": True}),
    ],
)
def test_layers_are_copied_with_the_function_they_were_trained_for(name: str, unlike: dict[str, Any]) -> None:
    """Another activation, epsilon or rotary base would make other layers of the same weights, without a word."""
    mine = zoo.config(name)
    theirs = type(mine)(**{**mine.to_dict(), **unlike})
    teacher = zoo.build(theirs, seed=1)
    ids, mask = zoo.tokens((9, 9))
    for adopted in (False, True):
        made = copy.deepcopy(mine)
        if adopted:
            adopt(made, theirs.to_dict())
        student = zoo.build(made, seed=2)
        same = set(student.state_dict()) == set(teacher.state_dict())
        if same:
            copy_layers(student, zoo.shape(made), teacher, zoo.shape(theirs), [1, 2, 3])
            with torch.no_grad():
                a, b = (m(input_ids=ids, attention_mask=mask).logits for m in (student, teacher))
            same = torch.allclose(a, b)
        assert same is adopted


@EVERY
def test_chosen_layers_arrive_where_they_were_sent(name: str) -> None:
    local = name.startswith("modernbert")  # first to first, and kinds must agree
    small, large = zoo.config(name, layers=2), zoo.config(name, layers=6)
    wanted = [1, 4 if name == "modernbert-local" else 3] if local else [2, 5]
    if name == "modernbert":
        wanted = [1, 2]
    teacher, student = zoo.walker(large, seed=1), zoo.walker(small, seed=2)
    layers = chosen_layers(wanted, student.shape, teacher.shape)
    copy_layers(student.model, student.shape, teacher.model, teacher.shape, layers)
    for layer, source in zip(student.layers, wanted, strict=True):
        expected = teacher.layers[source - 1].state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in layer.state_dict().items())
    ids, _ = zoo.tokens((9, 9))
    with torch.no_grad():
        assert torch.equal(student.embed(ids), teacher.embed(ids))
    assert torch.equal(student.decoder.weight, teacher.decoder.weight)


def test_every_kth_layer_is_taken() -> None:
    assert chosen_layers(
        "every_kth", zoo.shape(zoo.config("bert", layers=2)), zoo.shape(zoo.config("bert", layers=6))
    ) == [3, 6]
    assert chosen_layers(None, zoo.shape(zoo.config("bert")), None) == []


@pytest.mark.parametrize(
    ("wanted", "student", "teacher", "message"),
    [
        ([1, 2, 3], {}, None, "no teacher"),
        ([1, 2], {}, {}, "for each of 3 student layers"),
        ([1, 2, 7], {}, {}, "one teacher layer of 1 to 3"),
        ("every_kth", {"layers": 2}, {"layers": 3}, "3 teacher layers over 2"),
        ("every_kth", {}, {"hidden": 48}, "hidden 24 of the student and 48 of the teacher"),
        ("every_kth", {}, {"heads": 4}, "heads 3 of the student and 4"),
        ("every_kth", {}, {"intermediate": 44}, "intermediate 40 of the student and 44"),
        ("every_kth", {}, {"name": "electra"}, "family bert of the student and electra"),
        ([2, 3, 3], {"name": "modernbert"}, {"name": "modernbert"}, "student layer 1 from teacher layer 2"),
        ([1, 3, 3], {"name": "modernbert-local"}, {"name": "modernbert-local"}, "student layer 2 from teacher layer 3"),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_are_refused_with_the_reason(
    wanted: Any, student: dict, teacher: dict | None, message: str
) -> None:
    def shape(sizes: dict[str, Any]) -> Any:
        sizes = dict(sizes)
        return zoo.shape(zoo.config(sizes.pop("name", "bert"), **sizes))

    with pytest.raises(ConfigError, match=message):
        chosen_layers(wanted, shape(student), None if teacher is None else shape(teacher))


# -- is it better than nothing? --------------------------------------------------------------------------


def subjects() -> tuple[Subject, Subject, list[Any]]:
    """A model that knows its batch, one that does not, and that batch."""
    from harness.data.batch import Batch

    batch = tiny_batch(zoo.VOCAB)
    fixed = Batch(batch.input_ids_BT, batch.positions_N, batch.labels_N, 16.0, 16.0, 2.0)
    models = [zoo.build(zoo.config("bert"), seed=s).float() for s in (1, 2)]
    optimizer = torch.optim.Adam(models[0].parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        models[0](input_ids=batch.input_ids_BT, labels=batch.input_ids_BT).loss.backward()
        optimizer.step()
    good, bad = (Subject(model, device=CPU) for model in models)
    return good, bad, [fixed]


def test_a_teacher_that_predicts_worse_than_the_untrained_student_is_refused_or_recorded() -> None:
    good, bad, batches = subjects()
    fine = vouch(good, bad, batches, frequency_loss=6.5, name="t", allow_worse=False)
    assert fine.teacher_loss < fine.student_loss
    assert not fine.worse
    assert fine.flop == 2 * Needs(logits="masked").forward_flops(good.shape, sequences=2, length=8, masked=16)
    with pytest.raises(TeacherError, match=r"MLM loss of .* where the untrained student has .*allow_worse") as error:
        vouch(bad, good, batches, frequency_loss=6.5, name="t", allow_worse=False)
    assert error.value.exit_code == 3
    assert vouch(bad, good, batches, frequency_loss=6.5, name="t", allow_worse=True).worse


def test_a_teacher_whose_loss_is_not_a_number_is_worse_than_anything() -> None:
    good, bad, batches = subjects()
    with torch.no_grad():
        next(iter(good.model.parameters())).fill_(torch.nan)
    with pytest.raises(TeacherError, match="nan"):
        vouch(good, bad, batches, frequency_loss=6.5, name="t", allow_worse=False)


def test_a_half_precision_teacher_gives_half_precision_signals(tmp_path: Path) -> None:
    teacher = Teacher(inspect(str(saved(tmp_path))), device=CPU, dtype=torch.bfloat16)
    signals = teacher(tiny_batch(zoo.VOCAB), Needs(states=frozenset({1})))
    assert signals.states[1].dtype == torch.bfloat16
    assert run(
        teacher.family, Needs(states=frozenset({0})), input_ids_BT=torch.zeros(1, 3, dtype=torch.long), positions_N=None
    )
