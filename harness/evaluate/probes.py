"""Built-in probes: the whole student fine-tuned on a small classification task, one recipe for all arms.

The classifier reads the mean of the last states. The epoch is selected on validation examples; the
score is accuracy on test examples.
Shapes: B examples, T tokens, H hidden, C classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from harness.data.probes import Examples, ProbeData
from harness.evaluate.subject import Subject
from harness.models.signals import Needs
from harness.stopping import poll
from harness.study import ProbeSpec

PROBE_SEED = 1_910_103
EVALUATION_BATCH = 128


class Classifier(nn.Module):
    """A linear layer on the mean of the last states over real tokens."""

    def __init__(self, subject: Subject, classes: int) -> None:
        super().__init__()
        self.body = subject.model
        self.output = nn.Linear(subject.shape.hidden, classes)
        self._subject = [subject]  # in a list: its model is registered once, as `body`

    def forward(self, input_ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        last = self._subject[0].shape.layers
        states = self._subject[0].signals(
            Needs(states=frozenset({last})), input_ids_BT=input_ids_BT, attention_mask_BT=mask_BT
        ).states[last]  # fmt: skip
        weights = mask_BT.to(states.dtype).unsqueeze(-1)
        return self.output((states * weights).sum(1) / weights.sum(1))


def evaluate(subject: Subject, data: ProbeData, *, spec: ProbeSpec) -> float:
    """Test accuracy of the epoch that was best on validation. Changes the subject's weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PROBE_SEED)
        model = Classifier(subject, len(data.classes)).to(subject.device)
        orders = [torch.randperm(len(data.train)) for _ in range(spec.epochs)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    steps = spec.epochs * -(-len(data.train) // spec.batch)
    best, kept, step = -1.0, 0.0, 0
    for order in orders:
        model.train()
        for chosen in order.split(spec.batch):
            poll("a probe")
            for group in optimizer.param_groups:
                group["lr"] = spec.lr * min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
            ids, mask, labels = examples(data.train, chosen, subject.device)
            loss = functional.cross_entropy(model(ids, mask), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
        selected = accuracy(model, data.validation, subject.device)
        if selected > best:
            best, kept = selected, accuracy(model, data.test, subject.device)
    return kept


def examples(
    data: Examples, chosen: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, mask, labels) of the chosen examples, no longer than the longest of them."""
    index = chosen.numpy()
    lengths = torch.from_numpy(data.lengths[index]).long()
    width = int(lengths.max())
    ids = torch.from_numpy(data.ids[index][:, :width]).long()
    mask = torch.arange(width)[None, :] < lengths[:, None]
    return ids.to(device), mask.to(device), torch.from_numpy(data.labels[index]).long().to(device)


@torch.no_grad()
def accuracy(model: Classifier, data: Examples, device: torch.device) -> float:
    model.eval()
    hits = 0
    for chosen in torch.arange(len(data)).split(EVALUATION_BATCH):
        poll("a probe")
        ids, mask, labels = examples(data, chosen, device)
        hits += int((model(ids, mask).argmax(-1) == labels).sum())
    return hits / len(data)


def flops(subject: Subject, data: ProbeData, *, spec: ProbeSpec) -> int:
    """Closed-form FLOPs at real tokens: training, and the selection and test after every epoch; or one forward of each
    where the body is frozen (the linear classifiers are ignored)."""

    def forward(part: Examples) -> int:
        body = Needs(states=frozenset({subject.shape.layers}))
        lengths, counts = _histogram(part)
        return sum(
            count * body.forward_flops(subject.shape, sequences=1, length=length, masked=0)
            for length, count in zip(lengths, counts, strict=True)
        )

    if spec.mode == "frozen":
        return forward(data.train) + forward(data.validation) + forward(data.test)
    return spec.epochs * (3 * forward(data.train) + forward(data.validation) + forward(data.test))


def _histogram(part: Examples) -> tuple[list[int], list[int]]:
    lengths, counts = torch.from_numpy(part.lengths).unique(return_counts=True)
    return lengths.tolist(), counts.tolist()
