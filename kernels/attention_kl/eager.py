"""Attention-distribution transfer with the gradient formed in the forward: no autograd graph, a small workspace.

The reference keeps four (B, A, T, T) tensors for its backward and walks over them a dozen times. Here a few
sequences at a time go through a workspace that stays in the cache, two exponentials per score are taken
instead of four, and only the gradients of q and k outlive the forward. Shapes as in reference.py; c is the
number of (sequence, head) pairs in one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import differentiated
from ..pairs import MASKED, check_lengths, real_pairs, real_tokens, row_weights
from .reference import check_heads

# Scores per chunk. On a CPU 1 MiB in float32, the best of 2^14 … 2^20 measured: smaller chunks pay for their calls,
# larger ones for page faults. On a GPU a launch costs more than a cache miss: 128 MiB.
CHUNK_SCORES = {"cpu": 1 << 18, "cuda": 1 << 25}


def attention_kl(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """The reference's `attention_kl`, same guarantees and errors; differentiable once."""
    check_heads(q_s, k_s, q_t, k_t)
    check_lengths(lengths_B, q_s.shape[0], q_s.shape[2], q_s.device)
    with torch.autocast(q_s.device.type, enabled=False):
        loss = _AttentionKL.apply(*differentiated(q_s, k_s), q_t.detach(), k_t.detach(), lengths_B, causal)
    assert isinstance(loss, Tensor)
    return loss


class _AttentionKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, lengths_B: Tensor | None, causal: bool
    ) -> Tensor:
        batch, heads, tokens, size = q_s.shape
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dtype = torch.promote_types(q_s.dtype, torch.float32)
        weights_BT = row_weights(lengths_B, batch, tokens, heads, like=q_s.new_empty((), dtype=dtype))
        dq, dk = (torch.empty(q_s.shape, dtype=dtype, device=q_s.device) if wanted else None for _ in range(2))
        workspace = ScoreWorkspace(batch, heads, tokens, dtype, q_s.device)
        loss = q_s.new_zeros((), dtype=dtype)
        for part in workspace.chunks:
            lengths = None if lengths_B is None else lengths_B[part]
            real = real_tokens(lengths, tokens)
            queries, keys, teacher_queries, teacher_keys = (
                fold_heads(x[part], real, dtype) for x in (q_s, k_s, q_t, k_t)
            )
            student, teacher = workspace.student(len(queries)), workspace.teacher(len(queries))
            torch.baddbmm(student, queries, keys.mT, beta=0, alpha=size**-0.5, out=student)
            torch.baddbmm(teacher, teacher_queries, teacher_keys.mT, beta=0, alpha=q_t.shape[-1] ** -0.5, out=teacher)
            workspace.mask(len(queries), heads, real_pairs(lengths, tokens, causal=causal, device=q_s.device))
            kl_cT = workspace.kl(len(queries))
            loss += (kl_cT.view(-1, heads, tokens).sum(1) * weights_BT[part]).sum()
            if dq is not None and dk is not None:
                slope = workspace.slope(len(queries))
                # A pad query's row reaches no key, for its query is zero; its own gradient is zeroed by its weight.
                torch.bmm(slope, keys, out=dq[part].flatten(0, 1))
                torch.bmm(slope.mT, queries, out=dk[part].flatten(0, 1))
                weight = (weights_BT[part] * size**-0.5)[:, None, :, None]
                dq[part].mul_(weight)
                dk[part].mul_(weight)
        if dq is not None and dk is not None:
            ctx.save_for_backward(dq, dk)
        ctx.dtypes = q_s.dtype, k_s.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        dq, dk = ((g * grad).to(t) for g, t in zip(saved, ctx.dtypes, strict=True))
        return dq, dk, None, None, None, None


class ScoreWorkspace:
    """Four score-sized buffers, reused by every chunk of sequences, and the arithmetic between the products.

    Use per chunk: fill `student` and `teacher`, then `mask`, `kl`, and, if a gradient is wanted, `slope`.
    """

    def __init__(self, batch: int, heads: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.chunks = sequence_chunks(batch, heads * tokens * tokens, device)
        shape = (4, (self.chunks[0].stop if self.chunks else 0) * heads, tokens, tokens)
        self._student, self._teacher, self._q, self._p = torch.empty(shape, dtype=dtype, device=device)

    def student(self, count: int) -> Tensor:
        """(c, T, T): write the student's scaled scores here."""
        return self._student[:count]

    def teacher(self, count: int) -> Tensor:
        """(c, T, T): write the teacher's scaled scores here."""
        return self._teacher[:count]

    def mask(self, count: int, heads: int, pairs: Tensor | None) -> None:
        """Take pairs that are not real out of both softmaxes."""
        if pairs is None:
            return
        # Added, not filled: a broadcast addition is vectorised, a broadcast fill is not. MASKED absorbs any score.
        bias = torch.zeros(pairs.shape, dtype=self._student.dtype, device=pairs.device).masked_fill_(~pairs, MASKED)
        for scores in (self._student, self._teacher):
            scores[:count].unflatten(0, (-1, heads)).add_(bias[:, None])

    def kl(self, count: int) -> Tensor:
        """(c, T): KL(softmax(teacher) ‖ softmax(student)) of every row, from one exponential per score."""
        student, teacher, q, p = (x[:count] for x in (self._student, self._teacher, self._q, self._p))
        torch.softmax(student, -1, out=q)
        torch.softmax(teacher, -1, out=p)
        # The largest probability is exp(max − log-sum-exp) ≥ 1/T: the normaliser without a second exponential.
        student_lse = student.amax(-1) - q.amax(-1).log()
        teacher_lse = teacher.amax(-1) - p.amax(-1).log()
        return torch.linalg.vecdot(p, teacher.sub_(student)) - teacher_lse + student_lse

    def slope(self, count: int) -> Tensor:
        """(c, T, T): the KL's derivative with respect to the student's scaled scores, q − p; after `kl`."""
        return self._q[:count].sub_(self._p[:count])


def sequence_chunks(batch: int, scores: int, device: torch.device) -> list[slice]:
    """Slices that cover `batch` sequences of `scores` scores each, as many at a time as a chunk holds."""
    limit = CHUNK_SCORES["cpu" if device.type == "cpu" else "cuda"]
    size = max(1, min(batch, limit // max(1, scores)))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def fold_heads(x: Tensor, real: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(b, heads, T, d) → contiguous (b·heads, T, d) in `dtype`, pads set to zero; a view where it can be."""
    x = x.to(dtype)
    return (x if real is None else x.masked_fill(~real[:, None, :, None], 0)).flatten(0, 1).contiguous()
