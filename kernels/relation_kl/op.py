"""relation_kl as objectives call it: one signature, the implementation chosen by where the tensors are."""

from __future__ import annotations

from torch import Tensor

from ..backend import Backend, Choice, head_choice, kernel_dtype, one_tile, ran, register_pairs
from . import eager, reference


def relation_kl(
    student_BTH: Tensor,
    teacher_BTG: Tensor,
    *,
    heads: int,
    lengths_B: Tensor | None = None,
    causal: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """reference.relation_kl's loss by the backend that `chosen` names: same definition, guarantees and errors."""
    choice = ran("relation_kl", chosen(student_BTH, teacher_BTG, heads=heads, backend=backend))
    if choice.backend == "triton":
        from . import triton_kernel

        dtype = kernel_dtype(student_BTH)
        student_BTH, teacher_BTG = student_BTH.to(dtype), teacher_BTG.to(dtype)
        tile = one_tile(*(reference.split_heads(x, heads) for x in (student_BTH, teacher_BTG)))
        products = (3, 1) if tile else (3, 2)
        register_pairs("relation_kl", student_BTH.shape, teacher_BTG.shape, with_gradient=products)
        return triton_kernel.relation_kl(student_BTH, teacher_BTG, heads=heads, lengths_B=lengths_B, causal=causal)
    module = eager if choice.backend == "eager" else reference
    return module.relation_kl(student_BTH, teacher_BTG, heads=heads, lengths_B=lengths_B, causal=causal)


def chosen(student_BTH: Tensor, teacher_BTG: Tensor, *, heads: int, backend: Backend = "auto") -> Choice:
    """What `relation_kl` runs for tensors of these shapes, types and device, and why; see `backend.head_choice`."""
    reference.check_relations(student_BTH, teacher_BTG, heads)
    student, teacher = (reference.split_heads(x, heads) for x in (student_BTH, teacher_BTG))
    return head_choice(backend, (student,), (teacher,))
