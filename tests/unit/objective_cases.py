"""Small worlds an objective can be computed in: shapes, random signals as leaves, a batch with or without pads."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.data.batch import Batch
from harness.kernels.backend import Choice
from harness.models.shapes import Shape
from harness.models.signals import Head, Needs, Signals
from harness.objectives.base import Objective, Options, discover

VOCAB = 37


def shape(*, layers: int, hidden: int, heads: int, kv_heads: int = 0) -> Shape:
    return Shape(
        family="bert", layers=layers, hidden=hidden, heads=heads, intermediate=4 * hidden, vocab=VOCAB,
        embedding=hidden, max_length=64, kv_heads=kv_heads,
    )  # fmt: skip


# Every objective's default options fit these two: equal widths that 48 relation heads divide, depths that divide.
STUDENT, TEACHER = shape(layers=2, hidden=48, heads=4), shape(layers=4, hidden=48, heads=4)


@dataclass(frozen=True)
class Case:
    """One objective with its options between two shapes, on sequences of these real lengths."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    student: Shape = STUDENT
    teacher: Shape = TEACHER
    lengths: tuple[int, ...] = (7, 7)
    length: int = 7
    causal: bool = False

    def __str__(self) -> str:
        changes = ["causal"] if self.causal else []
        changes += [f"{k}={v}" for k, v in self.options.items()]
        if self.student != STUDENT or self.teacher != TEACHER:
            changes += [f"{s.layers}x{s.hidden}h{s.heads}k{s.kv_heads}" for s in (self.student, self.teacher)]
        return "-".join([self.name, *changes, "pads" if self.padded else "packed"])

    @property
    def padded(self) -> bool:
        return any(n != self.length for n in self.lengths)

    def objective(self) -> Objective:
        kind = discover()[self.name]
        options: Options = kind.Options.model_validate(self.options)
        return kind(options, *self.shapes)

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Student and teacher, seeing both sides or their past only."""
        return replace(self.student, causal=self.causal), replace(self.teacher, causal=self.causal)

    def with_pads(self) -> Case:
        # The short one first: behind it, a token's row and its place in the padded batch are two numbers.
        return replace(self, lengths=(max(2, self.length - 4), self.length), length=self.length)


def directions(name: str) -> list[bool]:
    """Whether causal, for every kind of model that this objective is defined for."""
    return {"either": [False, True], "masked": [False], "causal": [True]}[discover()[name].reads]


def every_case(**changes: Any) -> list[Case]:
    """Each discovered objective with its default options, once for every kind of model it is defined for."""
    return [Case(name, causal=causal, **changes) for name in sorted(discover()) for causal in directions(name)]


@dataclass
class World:
    """An objective and everything it reads; `leaves` are the student's tensors and the learned weights."""

    objective: Objective
    student: Signals
    teacher: Signals
    batch: Batch

    @property
    def leaves(self) -> dict[str, Tensor]:
        found = signal_tensors(self.student)
        found.update({f"weight {name}": p for name, p in self.objective.named_parameters()})
        return found

    def loss(self) -> Tensor:
        return torch.stack([t.double() for t in self.objective(self.student, self.teacher, self.batch).values()]).sum()

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """By leaf; zeros where a leaf has no influence."""
        leaves = self.leaves
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }

    def in_float64(self) -> World:
        """The same numbers, widened: what a reference computes from."""
        objective = copy.deepcopy(self.objective).double()
        return World(
            objective, map_signals(self.student, _leaf64), map_signals(self.teacher, Tensor.double), self.batch
        )


def _leaf64(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_()


def signal_tensors(signals: Signals) -> dict[str, Tensor]:
    found = {f"state {n}": s for n, s in signals.states.items()}
    for n, qkv in signals.qkv.items():
        found.update({f"{part} {n}": x for part, x in zip("qkv", qkv, strict=True)})
    found |= {f"{part} {n}": x for (n, part), x in signals.parts.items()}
    if signals.head is not None:
        found |= {"head hidden": signals.head.hidden_NE, "head weight": signals.head.weight_VE}
        if signals.head.bias_V is not None:
            found["head bias"] = signals.head.bias_V
    return found


def map_signals(signals: Signals, change: Any) -> Signals:
    head = signals.head
    if head is not None:
        bias = None if head.bias_V is None else change(head.bias_V)
        head = Head(change(head.hidden_NE), change(head.weight_VE), bias, head.positions)
    states = {n: change(s) for n, s in signals.states.items()}
    qkv = {n: tuple(change(x) for x in qkv) for n, qkv in signals.qkv.items()}
    return Signals(states, qkv, head, {place: change(x) for place, x in signals.parts.items()})


def make_batch(case: Case, generator: torch.Generator) -> Batch:
    """Random ids, every third real position masked, or every next token; the mask is None when nothing is padded."""
    count, length = len(case.lengths), case.length
    ids = torch.randint(0, VOCAB, (count, length), generator=generator)
    places = [b * length + t for b, n in enumerate(case.lengths) for t in range(n) if t % 3 == 1]
    if case.causal:
        places = [b * length + t for b, n in enumerate(case.lengths) for t in range(n - 1)]
    positions = torch.tensor(places)
    mask = None
    if case.padded:
        mask = (torch.arange(length)[None] < torch.tensor(case.lengths)[:, None]).long()
    return Batch(
        ids, positions, ids.flatten()[positions + case.causal],
        float(len(places)), float(sum(case.lengths)), float(count), mask,
    )  # fmt: skip


def make_signals(of: Shape, needs: Needs, batch: Batch, *, seed: int, scale: float = 1.0) -> Signals:
    """Noise of its own for every signal: a layer holds the same numbers whatever else is asked for."""
    count, length = batch.input_ids_BT.shape

    def noise(kind: int, number: int, *size: int) -> Tensor:
        generator = torch.Generator().manual_seed(10_000 * seed + 100 * kind + number)
        return torch.randn(*size, generator=generator, dtype=torch.float64) * scale

    signals = Signals({n: noise(1, n, count, length, of.hidden) for n in sorted(needs.states)})
    for n in sorted(needs.attended):
        made = enumerate(of.widths.items(), start=2)
        signals.keep(
            n, {p: noise(kind, n, count, w // of.head_dim, length, of.head_dim) for kind, (p, w) in made}, needs
        )
    if needs.logits != "none":
        rows = int(batch.masked_count if needs.logits == "masked" else batch.token_count)
        weight = noise(5, 0, of.vocab, of.embedding) / of.embedding**0.5
        signals.head = Head(noise(6, 0, rows, of.embedding), weight, noise(7, 0, of.vocab), needs.logits)
    return signals


def make(
    case: Case, *, dtype: torch.dtype = torch.float64, teacher_dtype: torch.dtype | None = None, seed: int = 0, scale: float = 1.0
) -> World:  # fmt: skip
    """A world of random signals, exactly those the objective asks for, in these types."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = case.objective().to(dtype)
    batch = make_batch(case, generator)
    student = make_signals(case.student, objective.student_needs, batch, seed=2 * seed, scale=scale)
    teacher = make_signals(case.teacher, objective.teacher_needs, batch, seed=2 * seed + 1, scale=scale)
    target = teacher_dtype or dtype
    return World(
        objective, map_signals(student, lambda t: t.to(dtype).requires_grad_()), map_signals(teacher, lambda t: t.to(target)), batch
    )  # fmt: skip


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest magnitude; 0 when both are zero."""
    worst = (found.double() - expected.double()).abs().max().item()
    return worst / max(expected.abs().max().item(), 1e-300) if worst else 0.0


def errors(world: World, reference: Any) -> tuple[float, float]:
    """(value, worst gradient) relative errors against a float64 reference of the same numbers."""
    truth = world.in_float64()
    loss, expected = world.loss(), reference(truth.objective, truth.student, truth.teacher, truth.batch)
    grads, wanted = world.gradients(loss), truth.gradients(expected)
    return relative_error(loss.detach(), expected.detach()), max(relative_error(grads[n], wanted[n]) for n in wanted)


def use_plain_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every loss as plain autograd products, which a FLOP counter sees one by one."""
    for op in ("attention_kl", "relation_kl", "score_mse", "soft_cross_entropy"):
        monkeypatch.setattr(f"harness.kernels.{op}.op.chosen", lambda *_, **__: Choice("reference", "to be counted"))
