"""Random problems for the kernels' tests: tensors of odd shapes, lengths, poisoned pads, and how errors are measured."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.bench.kernels import relative_error

Loss = Callable[..., Tensor]


@contextmanager
def poisoned_buffers(*, warn_only: bool = False) -> Iterator[None]:
    """While this lasts memory that nobody wrote holds NaN, however small: what a kernel leaves out of a buffer shows.

    PyTorch fills it where it must be deterministic, and then refuses products by cuBLAS; `warn_only` lets them pass.
    """
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Shape:
    """A batch: sequences, padded length, heads, student and teacher head sizes, real lengths (None: no pads)."""

    batch: int
    tokens: int
    heads: int
    size: int
    teacher_size: int
    lengths: tuple[int, ...] | None = None
    causal: bool = False

    @property
    def true_lengths(self) -> list[int]:
        """One length per sequence, whether or not the batch has pads."""
        return list(self.lengths) if self.lengths is not None else [self.tokens] * self.batch

    @property
    def lengths_B(self) -> Tensor | None:
        """What the kernels are given."""
        return None if self.lengths is None else torch.tensor(self.lengths)

    @property
    def options(self) -> dict[str, Tensor | bool | None]:
        """The keyword arguments all attention-like losses share."""
        return {"lengths_B": self.lengths_B, "causal": self.causal}


def states(shape: Shape, *, dtype: torch.dtype = torch.float64, poison: float = 0.0, seed: int = 0) -> list[Tensor]:
    """Student (B, T, heads·size) and teacher (B, T, heads·teacher_size) with `poison` where the pads are."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [shape.heads * shape.size, shape.heads * shape.teacher_size]
    tensors = [torch.randn(shape.batch, shape.tokens, size, generator=generator).to(dtype) for size in sizes]
    for x in tensors:
        for b, length in enumerate(shape.true_lengths):
            x[b, length:] = poison
    return tensors


def heads(shape: Shape, *, dtype: torch.dtype = torch.float64, poison: float = 0.0, seed: int = 0) -> list[Tensor]:
    """Student queries and keys (B, heads, T, size), teacher queries and keys (B, heads, T, teacher_size)."""
    pairs = [states(shape, dtype=dtype, poison=poison, seed=seed + offset) for offset in (0, 1000)]
    split = [[x.unflatten(-1, (shape.heads, -1)).transpose(1, 2) for x in pair] for pair in pairs]
    return [split[0][0], split[1][0], split[0][1], split[1][1]]


def value_and_gradients(loss: Loss, inputs: Sequence[Tensor], trained: int) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients with respect to the first `trained` inputs, which become leaves."""
    leaves = [x.detach().requires_grad_() for x in inputs[:trained]]
    value = loss(*leaves, *inputs[trained:])
    # An incoming gradient that is not 1: a backward that forgets it must fail.
    return value.detach(), list(torch.autograd.grad(3 * value, leaves))


def worst_error(actual: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> tuple[float, float]:
    """(relative error of the loss, largest relative error of a gradient)."""
    gradients = [relative_error(a, e) for a, e in zip(actual[1], expected[1], strict=True)]
    return relative_error(actual[0], expected[0]), max(gradients)


class Watch(TorchDispatchMode):
    """Sees every operation: the largest tensor any returns, and how many are matrix products."""

    largest = 0
    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += "mm" in func.__name__
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return out


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors made inside that lived at one time; `given` ones and their views do not count."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self._given = {x.untyped_storage()._cdata for x in given}
        self._live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(x, Tensor):
                continue
            storage = x.untyped_storage()
            if storage._cdata not in self._live and storage._cdata not in self._given:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata, None)
                self.peak = max(self.peak, sum(self._live.values()))
        return out
