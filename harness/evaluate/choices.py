"""Multiple-choice probes by likelihood: a causal student picks the continuation it finds the likeliest.

Shapes: N rows (items × choices), L tokens, P scored positions of a batch, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from harness.data.choices import CHOICES, ChoiceData, picked
from harness.evaluate.subject import Subject
from harness.models.signals import Needs
from harness.stopping import poll
from harness.study import ChoiceSpec

BATCH = 64
# (ids (B, L), positions (P,) into B·L) → logits (P, V)
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def own_head(subject: Subject) -> Logits:
    """The student's own logits."""

    def logits(ids_BL: torch.Tensor, positions_P: torch.Tensor) -> torch.Tensor:
        head = subject.signals(Needs(logits="masked"), input_ids_BT=ids_BL, positions_N=positions_P).head
        assert head is not None
        return head.logits().float()

    return logits


def readout_head(subject: Subject, layer: int, head: torch.nn.Module) -> Logits:
    """The logits of a head trained on one layer's states."""

    def logits(ids_BL: torch.Tensor, positions_P: torch.Tensor) -> torch.Tensor:
        states = subject.signals(Needs(states=frozenset({layer})), input_ids_BT=ids_BL).states[layer]
        return head(states.flatten(0, 1).index_select(0, positions_P)).float()

    return logits


@torch.no_grad()
def evaluate(subject: Subject, data: ChoiceData, logits: Logits, *, normalise: str) -> float:
    """Share of items whose true continuation is the likeliest, its log-likelihood normalised as told.

    Rows are padded behind their text, where a causal model does not look.
    """
    scores = np.zeros(len(data.lengths_N))
    for begin in range(0, len(scores), BATCH):
        poll("multiple choice")
        rows = slice(begin, begin + BATCH)
        lengths, prompts = (torch.from_numpy(x[rows]) for x in (data.lengths_N, data.prompts_N))
        width = int(lengths.max())
        ids = torch.from_numpy(data.ids_NL[rows, :width])
        place = torch.arange(width)
        # The token at t is predicted at t − 1.
        row_P, at_P = ((place >= prompts[:, None] - 1) & (place < lengths[:, None] - 1)).nonzero(as_tuple=True)
        flat = (row_P * width + at_P).to(subject.device)
        losses = functional.cross_entropy(
            logits(ids.to(subject.device), flat), ids[row_P, at_P + 1].to(subject.device), reduction="none"
        )
        scores[rows] = -torch.zeros(len(ids), dtype=torch.float64).index_add_(0, row_P, losses.double().cpu()).numpy()
    return picked(data, scores, normalise=normalise)


def flops(subject: Subject, data: ChoiceData) -> int:
    """Closed-form FLOPs at real tokens; the head runs where a continuation is predicted."""
    scored = int((data.lengths_N - data.prompts_N).sum())
    lengths, counts = np.unique(data.lengths_N, return_counts=True)
    body = Needs(states=frozenset({subject.shape.layers}))
    return subject.shape.head_flops(scored) + sum(
        int(count) * body.forward_flops(subject.shape, sequences=1, length=int(length), masked=0)
        for length, count in zip(lengths, counts, strict=True)
    )


def describe(data: ChoiceData, spec: ChoiceSpec) -> dict[str, Any]:
    """What a report must say of a probe: the question, chance, how likelihoods were normalised, and whose head spoke."""
    per = {"tokens": "per token", "bytes": "per byte", "none": "of the whole continuation"}[spec.normalise]
    head = "the read-out's head" if spec.head == "readout" else "the student's own head"
    return {
        "description": f"{data.description} Log-likelihood {per}, by {head}.",
        "classes": [str(place + 1) for place in range(CHOICES)],
        "majority": 1 / CHOICES,
        "test_examples": len(data.labels_E),
        "head": spec.head,
    }
