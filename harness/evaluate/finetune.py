"""Fine-tuning one encoder on one sentence task, by one recipe for all: a linear layer on the state of one token.

The token is the first, [CLS], of a model that sees everything, and the last real one of a causal model. Its last
state goes through dropout into the classifier; there is no pooler, which no pretraining here ever trains. The whole
body as it was exported is trained, its MLM head is not part of it.

Everything random depends on the fine-tuning seed and the task, never on the model or the grid point: two students,
and two learning rates, see the same batches in the same order from the same classifier. Batches are padded to their
longest example, and examples of like length are put together.
Shapes: B examples, T tokens, H hidden, C outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from harness.data.glue import Part, TaskData
from harness.data.glue_price import sequence_flop
from harness.data.hashing import permutation, text_word
from harness.errors import Preempted
from harness.evaluate.subject import Subject
from harness.models.families import family_of
from harness.watchdog import beat

# Examples shuffled together before they are sorted by length: long enough to fill batches evenly, short enough to mix.
POOL_BATCHES = 50
PREDICTION_BATCH = 128
CLIP = 1.0
BETAS = (0.9, 0.999)
EPS = 1e-6
INIT_STD = 0.02
CONTINUE = "run again with --resume to continue"
# A diverged run is noticed within this many steps, without waiting for the device at every one.
CHECK_EVERY = 25


@dataclass(frozen=True)
class Recipe:
    """All that decides a fine-tuning besides model and data."""

    lr: float
    batch: int
    epochs: int
    steps: int
    seed: int
    dropout: float
    warmup: float
    weight_decay: float
    precision: str


@dataclass(frozen=True)
class Outcome:
    """Predictions by split (class numbers, or similarities), what they cost, and whether the loss stayed finite."""

    predictions: dict[str, npt.NDArray[np.float64]]
    loss: float | None
    diverged: bool
    steps: int
    flop: int
    seconds: float


class SentenceClassifier(nn.Module):
    """The body of a subject, dropout, and one linear layer on the state of one token."""

    def __init__(self, subject: Subject, *, outputs: int, dropout: float, pad: int, segments: bool) -> None:
        super().__init__()
        self.family = family_of(subject.model, subject.shape)
        self.body = self.family.body
        self.shape = subject.shape
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.shape.hidden, outputs)
        nn.init.normal_(self.output.weight, std=INIT_STD)
        nn.init.zeros_(self.output.bias)
        self.pad = pad
        self.segments = segments

    def forward(self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, seconds_B: torch.Tensor) -> torch.Tensor:
        """(B, C) scores."""
        places = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        mask_BT = places < lengths_B[:, None]
        hidden = self._embed(ids_BT, (places >= seconds_B[:, None]) & mask_BT)
        context = self.family.context(hidden, mask_BT)
        for number in range(1, self.shape.layers + 1):
            hidden = self.family.layer(number, hidden, context)
        hidden = self.family.final(hidden)
        token = lengths_B - 1 if self.shape.causal else torch.zeros_like(lengths_B)
        state = hidden[torch.arange(len(token), device=token.device), token]
        return self.output(self.dropout(state))

    def _embed(self, ids_BT: torch.Tensor, second_BT: torch.Tensor) -> torch.Tensor:
        if not self.segments:
            return self.family.embed(ids_BT)
        embedded = self.body.embeddings(input_ids=ids_BT, token_type_ids=second_BT.long())
        return self.body.embeddings_project(embedded) if hasattr(self.body, "embeddings_project") else embedded


def pooling(causal: bool) -> str:
    """How a sentence becomes one vector, in words for a record."""
    token = "the last token" if causal else "[CLS]"
    return f"last state of {token}, dropout, one linear layer; no pooler"


# -- batches ---------------------------------------------------------------------------------------------
def order(part: Part, *, batch: int, epoch: int, seed: int, task: str) -> list[npt.NDArray[np.int64]]:
    """The batches of one epoch: every example once, of like lengths together, in an order named by its arguments."""
    name = (seed, text_word(task), epoch)
    shuffled = permutation(len(part), key=name)
    batches: list[npt.NDArray[np.int64]] = []
    for begin in range(0, len(shuffled), POOL_BATCHES * batch):
        pool = shuffled[begin : begin + POOL_BATCHES * batch]
        pool = pool[np.argsort(part.lengths_E[pool], kind="stable")]
        batches += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    return [batches[i] for i in permutation(len(batches), key=(*name, 1))]


def gather(part: Part, chosen: npt.NDArray[Any], *, pad: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """(ids, lengths, where second texts begin, labels) of the chosen examples, no wider than the longest."""
    lengths = part.lengths_E[chosen]
    ids = np.full((len(chosen), int(lengths.max())), pad, dtype=np.int64)
    for row, (start, length) in enumerate(zip(part.starts_E[chosen], lengths, strict=True)):
        ids[row, :length] = part.tokens[start : start + length]
    arrays = (ids, lengths, part.seconds_E[chosen], part.labels_E[chosen])
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def _stream(part: Part, recipe: Recipe, task: str) -> Iterator[npt.NDArray[np.int64]]:
    for epoch in range(recipe.epochs):
        yield from order(part, batch=recipe.batch, epoch=epoch, seed=recipe.seed, task=task)


# -- one run ---------------------------------------------------------------------------------------------
def finetune(
    subject: Subject, data: TaskData, recipe: Recipe, *, pad: int, segments: bool, splits: dict[str, Part],
    stop: Callable[[], bool] = lambda: False, again: str = CONTINUE,
) -> Outcome:  # fmt: skip
    """Train for `recipe.steps` steps and predict every split. Changes the subject's weights.

    A run whose loss stops being finite ends there; its predictions are NaN, which every metric scores 0.

    Raises:
        Preempted: `stop` became true; nothing is kept. Its remedy is `again`.
    """
    begun, device, outputs = time.monotonic(), subject.device, data.task.outputs
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed((recipe.seed * 1_000_003 + text_word(data.task.name)) % 2**63)
        model = SentenceClassifier(subject, outputs=outputs, dropout=recipe.dropout, pad=pad, segments=segments)
        model.to(device).train()
        flop, loss, diverged, steps = _train(model, data, recipe, subject, stop, again)
    predictions = {}
    for split, part in splits.items():
        if diverged:
            predictions[split] = np.full(len(part), np.nan)
            continue
        predictions[split] = predict(
            model, part, classes=len(data.task.classes), precision=recipe.precision, device=device
        )
        flop += sum(sequence_flop(subject.shape, int(n), outputs) for n in part.lengths_E)
    return Outcome(predictions, loss, diverged, steps, flop, time.monotonic() - begun)


def _train(
    model: SentenceClassifier, data: TaskData, recipe: Recipe, subject: Subject, stop: Callable[[], bool], again: str
) -> tuple[int, float | None, bool, int]:
    """(FLOPs, mean loss of the last steps, whether it diverged, steps taken)."""
    device, outputs = subject.device, data.task.outputs
    trained = [*model.body.parameters(), *model.output.parameters()]
    trained = list({id(p): p for p in trained if p.requires_grad}.values())
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, eps=EPS, fused=True)
    warmup = max(1, math.ceil(recipe.warmup * recipe.steps)) if recipe.warmup else 0
    flop, mean, recent = 0, 0.0, []
    for step, chosen in enumerate(_stream(data.train, recipe, data.task.name)):
        if step == recipe.steps:
            break
        beat(f"fine-tuning on {data.task.name}")
        if stop():
            raise Preempted("stopped while fine-tuning", remedy=again)
        rising = (step + 1) / warmup if step < warmup else 1.0
        falling = (recipe.steps - step) / max(1, recipe.steps - warmup)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(rising, falling, 1.0)
        ids, lengths, seconds, labels = gather(data.train, chosen, pad=model.pad, device=device)
        with _precision(recipe.precision, device):
            scores_BC = model(ids, lengths, seconds).float()
        if data.task.classes:
            loss = functional.cross_entropy(scores_BC, labels.long())
        else:
            loss = functional.mse_loss(scores_BC[:, 0], labels.float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        flop += 3 * sum(sequence_flop(subject.shape, int(n), outputs) for n in data.train.lengths_E[chosen])
        recent.append(loss.detach())
        last = step + 1 == recipe.steps
        if (len(recent) == CHECK_EVERY or last) and not math.isfinite(mean := float(torch.stack(recent).mean())):
            return flop, None, True, step + 1
        if len(recent) == CHECK_EVERY and not last:
            recent = []
    return flop, mean, False, recipe.steps


@torch.no_grad()
def predict(
    model: SentenceClassifier, part: Part, *, classes: int, precision: str, device: torch.device
) -> npt.NDArray[np.float64]:
    """Class numbers, or similarities, in the order of the examples."""
    model.eval()
    found = np.empty(len(part), dtype=np.float64)
    by_length = np.argsort(part.lengths_E, kind="stable")
    for begin in range(0, len(part), PREDICTION_BATCH):
        beat("predictions")
        chosen = by_length[begin : begin + PREDICTION_BATCH]
        ids, lengths, seconds, _ = gather(part, chosen, pad=model.pad, device=device)
        with _precision(precision, device):
            scores_BC = model(ids, lengths, seconds).float()
        answers = (scores_BC.argmax(-1) if classes else scores_BC[:, 0]).double()
        # The largest of scores that are no numbers is the first class: say NaN instead.
        answers = answers.masked_fill(~scores_BC.isfinite().all(-1), math.nan)
        found[chosen] = answers.cpu().numpy()
    return found


def _precision(name: str, device: torch.device) -> Any:
    return torch.autocast(device.type, dtype=torch.bfloat16) if name == "bf16" else nullcontext()
