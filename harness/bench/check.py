"""Whether a step computes what its definition says: loss and gradient of the first batches, before anything is timed.

The definition is the same trainee on the same batches and the same teacher's answers with `prefer("reference")` and
nothing compiled. Dropout is off while two steps are compared: masks drawn by a compiler's generator are other masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# A loss is a mean over positions: fp32 sums in another order, and values that bf16 rounded at 2⁻⁸ in different places.
LOSS = {"fp32": 1e-4, "half": 2e-2}
# Products that a layer's gradient goes through: eight forward (Q, K, V, scores, mixture, output, two of the MLP) and
# each one's two backward. Their rounding errors are independent, so they add in squares.
PRODUCTS_PER_LAYER = 24
BF16_ROUNDING = 2.0**-8
FP32_GRADIENT = 1e-4


@dataclass(frozen=True)
class Step:
    """A loss and the gradient of every trained weight, in the trainee's order."""

    loss: float
    gradients: list[Tensor]


@dataclass(frozen=True)
class Distance:
    """How far a step is from the definition: |Δ loss| / |loss|, and ‖Δ gradient‖ / ‖gradient‖ over all weights."""

    loss: float
    gradient: float

    def why(self, allowed: Distance) -> str | None:
        """What is wrong, in words; None where both are within what is allowed."""
        for name, found, most in (
            ("loss", self.loss, allowed.loss), ("gradient", self.gradient, allowed.gradient),
        ):  # fmt: skip
            if found > most:
                return f"its {name} is {found:.2g} of its size away from the definition's (allowed {most:.2g})"
        return None


def allowed(*, half: bool, layers: int) -> Distance:
    """The distance that rounding explains for a student of so many layers."""
    if not half:
        return Distance(LOSS["fp32"], FP32_GRADIENT)
    return Distance(LOSS["half"], BF16_ROUNDING * math.sqrt(PRODUCTS_PER_LAYER * layers))


def taken(trainee: nn.Module, loss: Tensor) -> Step:
    """The step that has just gone backward: copies of its gradients, which are cleared."""
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for p in trainee.parameters()
        if p.requires_grad
    ]
    trainee.zero_grad(set_to_none=True)
    return Step(float(loss), gradients)


def distance(found: Step, expected: Step) -> Distance:
    """How far `found` is from `expected`; infinite where anything is not finite."""
    pairs = zip(found.gradients, expected.gradients, strict=True)
    apart = _norm(a.double() - e.double() for a, e in pairs)
    loss = abs(found.loss - expected.loss) / max(abs(expected.loss), 1e-12)
    gradient = apart / max(_norm(expected.gradients), 1e-12)
    # Infinite rather than NaN: no comparison with NaN would find it too large.
    return Distance(*(x if math.isfinite(x) else math.inf for x in (loss, gradient)))


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors))


@contextmanager
def without_dropout(*modules: nn.Module) -> Iterator[None]:
    """These modules in evaluation mode while this lasts."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)
