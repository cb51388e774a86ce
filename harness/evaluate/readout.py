"""The read-out: a fresh head trained for a fixed number of steps on a frozen body.

It makes students comparable that were never given a head to train. The body does not change, so its
states at the predicted positions, masked ones or those before a next token, are computed once and the head
learns from them. Layers compete on validation positions, because the layer above the last Q, K, V of a
MiniLM-type student is untrained; the score is that of the winning layer on test positions. Points of a learning
curve are read from the layer that won at its end.
Shapes: N predicted positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from harness.data.stream import Batch
from harness.evaluate.subject import Subject
from harness.models.signals import Needs
from harness.stopping import poll
from harness.study import ReadoutSpec

LAYERS_TRIED = 2
HEAD_SEED = 20_240_419


@dataclass(frozen=True)
class Features:
    """States at predicted positions by layer, each (N, H), and the tokens to predict there."""

    states: dict[int, torch.Tensor]
    labels_N: torch.Tensor


def layers_tried(layers: int) -> list[int]:
    return list(range(max(1, layers - LAYERS_TRIED + 1), layers + 1))


@torch.no_grad()
def features(subject: Subject, batches: list[Batch], tried: Sequence[int]) -> Features:
    """The frozen body's states of these layers at every predicted position."""
    needs = Needs(states=frozenset(tried))
    rows: dict[int, list[torch.Tensor]] = {layer: [] for layer in tried}
    for batch in batches:
        poll("a read-out")
        batch = batch.to(subject.device)
        states = subject.signals(needs, input_ids_BT=batch.input_ids_BT).states
        for layer in tried:
            rows[layer].append(states[layer].flatten(0, 1).index_select(0, batch.positions_N))
    labels = torch.cat([batch.labels_N for batch in batches]).to(subject.device)
    return Features({layer: torch.cat(parts) for layer, parts in rows.items()}, labels)


class ReadoutHead(nn.Sequential):
    """Standardised input, then BERT's head: dense, GELU, norm, decoder of its own."""

    def __init__(self, hidden: int, vocab: int) -> None:
        dense, decoder = nn.Linear(hidden, hidden), nn.Linear(hidden, vocab)
        nn.init.normal_(decoder.weight, std=hidden**-0.5)
        nn.init.zeros_(decoder.bias)
        super().__init__(nn.LayerNorm(hidden), dense, nn.GELU(), nn.LayerNorm(hidden), decoder)


def train_head(states_NH: torch.Tensor, labels_N: torch.Tensor, *, vocab: int, spec: ReadoutSpec) -> ReadoutHead:
    """Train one head with a fixed recipe and a fixed seed: the same for every arm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(HEAD_SEED)
        head = ReadoutHead(states_NH.shape[1], vocab).to(states_NH.device)
        order = torch.cat(
            [torch.randperm(len(labels_N)) for _ in range(-(-spec.steps * spec.positions // len(labels_N)))]
        )
    optimizer = torch.optim.AdamW(head.parameters(), lr=spec.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in range(spec.steps):
        poll("a read-out")
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * min(1.0, 10 * (step + 1) / spec.steps) * (1 - step / spec.steps)
        chosen = order[step * spec.positions : (step + 1) * spec.positions].to(states_NH.device)
        loss = functional.cross_entropy(head(states_NH[chosen]), labels_N[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return head


@torch.no_grad()
def score(
    head: ReadoutHead, states_NH: torch.Tensor, labels_N: torch.Tensor, *, answers: list[torch.Tensor] | None = None
) -> tuple[float, float]:
    """(cross-entropy in nats, accuracy) over all positions; `answers` collects the most likely tokens."""
    loss, hits = 0.0, 0
    for states, labels in zip(states_NH.split(4096), labels_N.split(4096), strict=True):
        logits = head(states)
        best = logits.argmax(-1)
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        hits += int((best == labels).sum())
        if answers is not None:
            answers.append(best.cpu())
    return loss / len(labels_N), hits / len(labels_N)


def learn(
    subject: Subject, *, train: list[Batch], validation: list[Batch], spec: ReadoutSpec, layer: int | None = None
) -> tuple[int, ReadoutHead]:
    """The layer that won on validation, and its head; with `layer`, that one's head, and nothing is chosen."""
    tried = layers_tried(subject.shape.layers) if layer is None else [layer]
    seen = features(subject, train, tried)
    heads = {each: train_head(seen.states[each], seen.labels_N, vocab=subject.shape.vocab, spec=spec) for each in tried}
    if layer is not None:
        return layer, heads[layer]
    select = features(subject, validation, tried)
    best = min(tried, key=lambda each: score(heads[each], select.states[each], select.labels_N)[0])
    return best, heads[best]


def evaluate(
    subject: Subject,
    layer: int,
    head: ReadoutHead,
    *,
    test: list[Batch],
    answers: list[torch.Tensor] | None = None,
) -> dict[str, float]:
    """`readout.loss`, `readout.accuracy` on test, and `readout.layer`: where `head` reads.

    `answers` collects the most likely token at every test position.
    """
    judge = features(subject, test, [layer])
    loss, accuracy = score(head, judge.states[layer], judge.labels_N, answers=answers)
    return {"readout.loss": loss, "readout.accuracy": accuracy, "readout.layer": float(layer)}


def flops(
    subject: Subject, *, learnt: int, judged: int, positions: int, length: int, spec: ReadoutSpec, tried: int
) -> int:  # fmt: skip
    """Closed-form FLOPs: the body's forwards over `learnt` blocks to learn from and `judged` to choose and judge by,
    the training of `tried` layers' heads, and those heads' forwards at the `positions` predicted in the judged blocks."""
    body = Needs(states=frozenset({subject.shape.layers}))
    forwards = body.forward_flops(subject.shape, sequences=learnt + judged, length=length, masked=0)
    heads = 3 * subject.shape.head_flops(spec.steps * spec.positions) + subject.shape.head_flops(positions)
    return forwards + tried * heads
