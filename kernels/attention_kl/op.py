"""attention_kl as objectives call it: one signature, the implementation chosen by where the tensors are."""

from __future__ import annotations

from torch import Tensor

from ..backend import Backend, Choice, head_choice, kernel_dtype, one_tile, ran, register_pairs
from . import eager, reference


def attention_kl(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    lengths_B: Tensor | None = None,
    causal: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """reference.attention_kl's loss by the backend that `chosen` names: same definition, guarantees and errors."""
    choice = ran("attention_kl", chosen(q_s, k_s, q_t, k_t, backend=backend))
    if choice.backend == "triton":
        from . import triton_kernel

        dtype = kernel_dtype(q_s, k_s)
        q_s, k_s, q_t, k_t = (x.to(dtype) for x in (q_s, k_s, q_t, k_t))
        student, teacher = ((q.shape[0], q.shape[2], q.shape[1] * q.shape[3]) for q in (q_s, q_t))
        register_pairs("attention_kl", student, teacher, with_gradient=(3, 1) if one_tile(q_s, q_t) else (5, 3))
        return triton_kernel.attention_kl(q_s, k_s, q_t, k_t, lengths_B=lengths_B, causal=causal)
    module = eager if choice.backend == "eager" else reference
    return module.attention_kl(q_s, k_s, q_t, k_t, lengths_B=lengths_B, causal=causal)


def chosen(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, *, backend: Backend = "auto") -> Choice:
    """What `attention_kl` runs for tensors of these shapes, types and device, and why; see `backend.head_choice`."""
    reference.check_heads(q_s, k_s, q_t, k_t)
    return head_choice(backend, (q_s, k_s), (q_t, k_t))
