"""The ledger's closed forms are what torch counts, product by product, on the eager attention path."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from harness.budget import Account
from harness.data.batch import Batch
from harness.meters.flops import BACKWARD_AND_FORWARD, FlopMeter
from harness.models.signals import Needs, run
from harness.objectives.base import StepSize
from harness.objectives.composition import Plan
from harness.trainee import Trainee

from . import model_zoo as zoo
from .objective_cases import use_plain_definitions

TOLERANCE = 0.005
FAMILIES = [name for name in zoo.ZOO if name != "modernbert-local"]  # its windows save pairs that a counter still sees

# (student sizes, teacher sizes, sequences, tokens): odd lengths, unequal widths, heads and depths.
SHAPES: list[tuple[dict[str, int], dict[str, int], int, int]] = [
    ({"layers": 2, "hidden": 24, "heads": 3, "intermediate": 40}, {"layers": 4, "hidden": 24, "heads": 3}, 2, 16),
    ({"layers": 2, "hidden": 32, "heads": 4, "intermediate": 96}, {"layers": 4, "hidden": 48, "heads": 4}, 3, 31),
    ({"layers": 3, "hidden": 48, "heads": 2, "intermediate": 64}, {"layers": 6, "hidden": 32, "heads": 2}, 1, 9),
    ({"layers": 1, "hidden": 16, "heads": 1, "intermediate": 16}, {"layers": 3, "hidden": 64, "heads": 1}, 4, 24),
    ({"layers": 4, "hidden": 64, "heads": 8, "intermediate": 256}, {"layers": 4, "hidden": 96, "heads": 8}, 2, 20),
    ({"layers": 2, "hidden": 40, "heads": 5, "intermediate": 80}, {"layers": 2, "hidden": 40, "heads": 5}, 5, 13),
]
OBJECTIVES: dict[str, Any] = {
    "mlm": "mlm",
    "vanilla at masked positions": "soft_targets",
    "vanilla at all tokens": {"name": "soft_targets", "positions": "tokens"},
    "minilm, both cut": "minilm",
    "minilmv2, both cut": {"name": "minilmv2", "relation_heads": 1},
    "minilmv2, keys only": {"name": "minilmv2", "relation_heads": 1, "query": 0.0, "value": 0.0},
    "minilmv2, inner layers": {"name": "minilmv2", "relation_heads": 1, "student_layer": 1, "teacher_layer": 2},
    "tinybert": "tinybert",
    "tinybert, per-layer projections": {"name": "tinybert", "projection": "per_layer", "embedding": "none"},
    "tinybert, as published": {"name": "tinybert", "embedding": "layer0_scores", "score_layers": "last"},
    "hidden": "hidden",
    "mlm and minilmv2": {"terms": ["mlm", {"name": "minilmv2", "relation_heads": 1}]},
}


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: Any = None, dropout_p: float = 0.0, scale: Any = None, is_causal: bool = False) -> torch.Tensor:  # fmt: skip
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return (scores if attn_mask is None else scores.masked_fill(~attn_mask, -math.inf)).softmax(-1) @ v


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and losses as plain products: a counter sees nothing of SDPA on a CPU, nor of in-place products."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", plain_attention)
    use_plain_definitions(monkeypatch)


def make_batch(sequences: int, length: int) -> Batch:
    ids = torch.randint(4, zoo.VOCAB, (sequences, length), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(0, sequences * length, 6)
    return Batch(ids, positions, ids.flatten()[positions], float(len(positions)), float(ids.numel()), float(sequences))


def counted(action: Any) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = action()
    return counter.get_total_flops(), result


def check_step(student: PretrainedConfig, teacher: PretrainedConfig, spec: Any, batch: Batch) -> None:
    """Student step and teacher forward of one objective, each within the tolerance of its closed form."""
    plan = Plan(spec, student=zoo.shape(student), teacher=zoo.shape(teacher)).double()
    trainee = Trainee(zoo.build(student), zoo.shape(student), plan)
    size = StepSize(*batch.input_ids_BT.shape, len(batch.labels_N))
    charges = FlopMeter(plan, student=zoo.shape(student), teacher=zoo.shape(teacher), size=size).next_step(0)
    charged = {charge.account: charge.amount for charge in charges}
    needs, head = plan.teacher_needs(0), 0
    walker = zoo.walker(teacher, seed=1)
    with torch.no_grad():
        forward, signals = counted(
            lambda: (
                run(walker, needs, input_ids_BT=batch.input_ids_BT, positions_N=batch.positions_N) if needs else None
            )
        )
    if signals is not None and signals.head is not None:
        # A lazy head: the loss multiplies it out, the teacher pays for it.
        head = 2 * signals.head.hidden_NE.shape[0] * signals.head.weight_VE.numel()
    assert forward + head == pytest.approx(charged.get(Account.TEACHER_FORWARD, 0), rel=TOLERANCE)
    step, _ = counted(lambda: trainee(batch, signals, 0)["total"].backward())
    expected = charged[Account.STUDENT_STEP] + charged.get(Account.OBJECTIVE, 0)
    assert step - head == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_a_step_costs_its_closed_form_at_every_shape(number: int, objective: str) -> None:
    mine, theirs, sequences, length = SHAPES[number]
    check_step(
        zoo.config("bert", **mine), zoo.config("bert", **theirs), OBJECTIVES[objective], make_batch(sequences, length)
    )


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "objective",
    [
        "from scratch",
        "vanilla at masked positions",
        "minilm, both cut",
        "minilmv2, both cut",
        "minilmv2, keys only",
        "tinybert",
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_costs_its_closed_form_in_every_family(name: str, objective: str) -> None:
    mine, theirs, sequences, length = SHAPES[1]
    student, teacher = zoo.config(name, **mine), zoo.config(name, **theirs)
    own = "clm" if zoo.shape(student).causal else "mlm"
    check_step(student, teacher, OBJECTIVES.get(objective, own), make_batch(sequences, length))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_dense_step_costs_what_transformers_own_eager_path_runs(name: str) -> None:
    made = zoo.config(name)
    # Transformers' eager attention makes every product of a (length, length) square, a causal model's too.
    model = zoo.build(made, implementation="eager")
    ids = torch.randint(4, zoo.VOCAB, (3, 17))
    step, _ = counted(lambda: model(input_ids=ids, labels=ids).loss.backward())
    closed = Needs(logits="tokens").forward_flops(zoo.shape(made), sequences=3, length=17, masked=0)
    assert step == pytest.approx(BACKWARD_AND_FORWARD * closed, rel=TOLERANCE)


@pytest.mark.parametrize("length", [1, 2, 5, 13, 40])
def test_local_layers_pay_for_the_pairs_their_window_allows(length: int) -> None:
    made = zoo.config("modernbert-local", layers=4)
    of = zoo.shape(made)
    ours = zoo.walker(made)
    context = ours.context(ours.embed(torch.zeros(1, length, dtype=torch.long)), None)
    for number in range(1, 5):
        local = made.layer_types[number - 1] == "sliding_attention"
        mask = context.local_mask_BQK if local else context.mask_BQK
        pairs = length * length if mask is None else int(mask.sum())
        assert of.attention_flops(number, sequences=3, length=length) == 3 * 4 * of.hidden * pairs
    assert of.windows == (None, 3, None, 3)


def test_a_gradient_free_phase_charges_no_teacher() -> None:
    student, teacher = zoo.shape(zoo.config("bert")), zoo.shape(zoo.config("bert", layers=6))
    spec = {"phases": [{"until": 0.5, "name": "mlm"}, {"name": "minilmv2", "relation_heads": 4}]}
    plan = Plan(spec, student=student, teacher=teacher)
    meter = FlopMeter(plan, student=student, teacher=teacher, size=StepSize(2, 16, 4))
    first, second = ({c.account for c in meter.next_step(phase)} for phase in (0, 1))
    assert first == {Account.STUDENT_STEP}
    assert second == {Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE}
    assert meter.drain(1) == meter.next_step(1)
