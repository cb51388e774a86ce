"""score_sse as objectives call it: one signature, the implementation chosen by where the tensors are."""

from __future__ import annotations

from torch import Tensor

from ..attention_kl.reference import check_heads
from ..backend import Backend, Choice, head_choice, kernel_dtype, one_tile, ran, register_pairs
from . import eager, reference
from .reference import score_count

__all__ = ["chosen", "score_count", "score_sse"]


def score_sse(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    lengths_B: Tensor | None = None,
    head_average: bool = False,
    causal: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """reference.score_sse's loss by the backend that `chosen` names: same definition, guarantees and errors."""
    choice = ran("score_sse", chosen(q_s, k_s, q_t, k_t, head_average=head_average, backend=backend))
    if choice.backend == "triton":
        from . import triton_kernel

        dtype = kernel_dtype(q_s, k_s)
        q_s, k_s, q_t, k_t = (x.to(dtype) for x in (q_s, k_s, q_t, k_t))
        student, teacher = ((q.shape[0], q.shape[2], q.shape[1] * q.shape[3]) for q in (q_s, q_t))
        register_pairs("score_sse", student, teacher, with_gradient=(3, 1) if one_tile(q_s, q_t) else (4, 2))
        return triton_kernel.score_sse(q_s, k_s, q_t, k_t, lengths_B=lengths_B, causal=causal)
    module = eager if choice.backend == "eager" else reference
    return module.score_sse(q_s, k_s, q_t, k_t, lengths_B=lengths_B, head_average=head_average, causal=causal)


def chosen(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, *, head_average: bool = False, backend: Backend = "auto"
) -> Choice:
    """What `score_sse` runs for tensors of these shapes, types and device, and why; see `backend.head_choice`."""
    check_heads(q_s, k_s, q_t, k_t, equal_heads=not head_average)
    averaged = "averaged scores are one (T, T) matrix per sequence, which one large product makes"
    return head_choice(backend, (q_s, k_s), (q_t, k_t), refusal=averaged if head_average else None)
