"""The published code's departures from the papers: named, never the default, and different in the stated way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.objectives.base import discover
from harness.objectives.composition import Plan

from .objective_cases import STUDENT, TEACHER, Case, World, make, map_signals, shape, signal_tensors

DEPARTURES = [(n, key, value) for n, kind in sorted(discover().items()) for key, value in kind.paper_code.items()]


def fits(name: str) -> dict[str, Any]:
    return {"relation_heads": 4} if name == "minilmv2" else {}


@pytest.mark.parametrize(("name", "key", "value"), DEPARTURES)
def test_a_departure_is_never_the_default_and_always_named_in_the_record(name: str, key: str, value: Any) -> None:
    assert discover()[name].Options.model_fields[key].default != value
    plain = Plan({"name": name, **fits(name)}, student=STUDENT, teacher=TEACHER)
    assert plain.paper_code() == []
    changed = Plan({"name": name, **fits(name), key: value}, student=STUDENT, teacher=TEACHER)
    assert changed.paper_code() == [f"{name}.{key} = {value}"]


@pytest.mark.parametrize(("name", "key", "value"), DEPARTURES)
def test_a_departure_changes_what_is_learned(name: str, key: str, value: Any) -> None:
    # Unequal head counts, where a method allows them: with equal ones the reshape of defect 5 mixes nothing.
    teacher = shape(layers=4, hidden=48, heads=8) if name == "minilmv2" else TEACHER
    case = Case(name, fits(name) | {"relation_heads": 8} if name == "minilmv2" else {}, STUDENT, teacher).with_pads()
    plain, changed = make(case), make(replace(case, options={**case.options, key: value}))
    a, b = (w.gradients(w.loss()) for w in (plain, changed))
    assert set(a) != set(b) or any((a[n] - b[n]).abs().max() > 1e-6 for n in a)


# -- 1: the soft cross-entropy is a mean over the vocabulary -----------------------------------------


def test_the_vocabulary_mean_divides_the_soft_term_by_the_vocabulary_size() -> None:
    plain, mean = (
        make(Case("soft_targets", {"alpha": 1.0})),
        make(Case("soft_targets", {"alpha": 1.0, "vocabulary": "mean"})),
    )
    assert mean.loss().item() == pytest.approx(plain.loss().item() / STUDENT.vocab, rel=1e-12)
    a, b = (w.gradients(w.loss())["head hidden"] for w in (plain, mean))
    torch.testing.assert_close(b * STUDENT.vocab, a)


def test_with_the_published_weights_vanilla_kd_is_mlm_with_a_soft_term_of_one_vocabularyth() -> None:
    """Total gradient against MLM's alone: as published it points the same way, as defined it does not."""
    spec = {"temperature": 1.0, "alpha": 0.5}
    mlm = make(Case("mlm"))
    alone = mlm.gradients(mlm.loss())["head hidden"].flatten()

    def likeness(options: dict[str, Any]) -> float:
        world = make(Case("soft_targets", options))
        gradient = world.gradients(2 * world.loss())["head hidden"].flatten()
        return torch.nn.functional.cosine_similarity(gradient, alone, dim=0).item()

    published, defined = likeness({**spec, "vocabulary": "mean"}), likeness(spec)
    assert published > 0.999
    assert defined < 0.95


# -- 4: TinyBERT -------------------------------------------------------------------------------------


def test_layer_0_scores_take_the_place_of_the_embeddings() -> None:
    plain, changed = make(Case("tinybert")).objective, make(Case("tinybert", {"embedding": "layer0_scores"})).objective
    assert 0 in plain.student_needs.states
    assert 0 in plain.teacher_needs.states
    assert 0 not in changed.student_needs.states | changed.teacher_needs.states
    assert 1 not in plain.teacher_needs.qkv
    assert 1 in changed.teacher_needs.qkv


def test_layer_0_scores_include_the_pads_that_the_definition_leaves_out() -> None:
    case = Case("tinybert", {"embedding": "layer0_scores"}).with_pads()
    for options, depends in ((case.options, True), ({}, False)):
        world = make(replace(case, options=options))
        before = world.loss().item()
        with torch.no_grad():
            for number, (q, _, _) in world.teacher.qkv.items():
                assert number >= 1
                q[0, :, case.lengths[0] :] += 1.0
        assert (world.loss().item() != before) is depends


def test_the_last_state_alone_is_compared_without_a_projection() -> None:
    objective: Any = make(Case("tinybert", {"states": "last_unprojected"})).objective
    assert objective.state_map == {2: 4}
    assert list(objective.parameters()) == []
    every: Any = make(Case("tinybert")).objective
    assert every.state_map == {0: 0, 1: 2, 2: 4}
    assert len(list(every.parameters())) == 2


def test_one_below_reads_teacher_states_with_the_indices_of_attention_layers() -> None:
    objective: Any = make(Case("tinybert", {"state_index": "one_below"})).objective
    assert objective.state_map == {0: 0, 1: 1, 2: 3}
    assert objective.layer_map == {1: 2, 2: 4}


def test_the_published_scripts_select_the_last_layers_scores_alone() -> None:
    objective: Any = make(Case("tinybert", {"score_layers": "last"})).objective
    assert objective.layer_map == {2: 4}


# -- 5: MiniLMv2 -------------------------------------------------------------------------------------


def shuffled(world: World, order: torch.Tensor) -> World:
    """The same tokens in another order, for student and teacher alike."""
    return World(
        world.objective, *(map_signals(s, lambda t: t[:, :, order].detach().requires_grad_()) for s in (world.student, world.teacher)),
        world.batch,
    )  # fmt: skip


@pytest.mark.parametrize("relation_heads", [2, 4, 8])
def test_reshaping_heads_first_mixes_positions_and_concatenating_does_not(relation_heads: int) -> None:
    """A relation loss knows no order of tokens; once rows of different tokens are mixed, it does."""
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    for split, invariant in (("concatenated", True), ("heads_first", relation_heads == STUDENT.heads)):
        world = make(Case("minilmv2", {"relation_heads": relation_heads, "split": split}))
        same = shuffled(world, order).loss().item() == pytest.approx(world.loss().item(), rel=1e-9)
        assert same is invariant


def test_heads_first_is_the_definition_where_relation_heads_are_the_models_own() -> None:
    plain, mixed = (make(Case("minilmv2", {"relation_heads": 4, "split": s})) for s in ("concatenated", "heads_first"))
    assert mixed.loss().item() == pytest.approx(plain.loss().item(), rel=1e-12)


def test_including_pads_makes_the_loss_depend_on_what_they_hold() -> None:
    case = Case("minilmv2", {"relation_heads": 4}).with_pads()
    for pads, depends in (("excluded", False), ("included", True)):
        world = make(replace(case, options={**case.options, "pads": pads}))
        before = world.loss().item()
        with torch.no_grad():
            for tensor in signal_tensors(world.teacher).values():
                tensor[0, :, case.lengths[0] :] += 1.0
        assert (world.loss().item() != before) is depends
