"""Probes on a frozen body: a linear classifier on every layer's mean state, the layer chosen on held-out examples.

The last layer of a MiniLM-type student is partly untrained, and what a probe asks for often lies lower anyway; so all
layers compete, each with three strengths of regularisation, on the selection examples. The winner is scored on test.
Shapes: E examples, T tokens, H hidden.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from harness.data.probes import Examples, ProbeData
from harness.evaluate.probes import EVALUATION_BATCH, examples
from harness.evaluate.subject import Subject
from harness.models.signals import Needs
from harness.stopping import poll

STRENGTHS = (0.01, 0.1, 1.0)


@torch.no_grad()
def features(subject: Subject, part: Examples) -> dict[int, npt.NDArray[np.float32]]:
    """The mean state over real tokens of every layer, (E, H) each."""
    layers = range(1, subject.shape.layers + 1)
    needs = Needs(states=frozenset(layers))
    rows: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for chosen in torch.arange(len(part)).split(EVALUATION_BATCH):
        poll("a frozen probe")
        ids, mask, _ = examples(part, chosen, subject.device)
        states = subject.signals(needs, input_ids_BT=ids, attention_mask_BT=mask).states
        weights = mask.float().unsqueeze(-1)
        for layer in layers:
            rows[layer].append(((states[layer] * weights).sum(1) / weights.sum(1)).cpu())
    return {layer: torch.cat(parts).numpy() for layer, parts in rows.items()}


def evaluate(subject: Subject, data: ProbeData) -> tuple[float, int]:
    """(test accuracy, the layer that won on the selection examples); the lowest of equal layers. Changes no weight."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learn, select, judge = (features(subject, part) for part in (data.train, data.validation, data.test))
    best: tuple[float, int, object] | None = None
    for layer in learn:
        for strength in STRENGTHS:
            poll("a frozen probe")
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
            model.fit(learn[layer], data.train.labels)
            found = float(model.score(select[layer], data.validation.labels))
            if best is None or found > best[0]:
                best = found, layer, model
    assert best is not None
    _, layer, winner = best
    return float(winner.score(judge[layer], data.test.labels)), layer  # type: ignore[attr-defined]
