"""Soft targets and masked cross-entropy in PyTorch with the gradient formed in the forward; shapes as in head.py."""

from __future__ import annotations

import torch
from torch import Tensor

from .head import Mixture, Problem, Teacher, declared_mixtures
from .reference import IGNORED, Top, check_head, check_teacher, check_temperature


def soft_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None = None,
    *,
    teacher_logits_NV: Tensor | None = None,
    teacher_hidden_NG: Tensor | None = None,
    teacher_weight_VG: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    teacher_top: Top | None = None,
    labels_N: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    weights: Mixture | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference's `soft_cross_entropy`, same guarantees and errors; differentiable once.

    `weights` (a, b) promises that only multiples of a·kl_sum + b·ce_sum will be differentiated, which halves the
    products of the gradient; a broken promise gives NaN gradients, never wrong ones. Products run in
    `product_dtype`; softmaxes, sums and accumulated gradients are in float32 or better.
    """
    check_head(hidden_NH, weight_VH, bias_V, labels_N, who="student")
    check_teacher(
        hidden_NH, weight_VH, teacher_logits_NV, teacher_hidden_NG, teacher_weight_VG, teacher_bias_V, teacher_top
    )
    check_temperature(temperature)
    teacher = Teacher(teacher_logits_NV, teacher_hidden_NG, teacher_weight_VG, teacher_bias_V, teacher_top)
    mixtures = declared_mixtures(weights, hard=labels_N is not None)
    problem = Problem(labels_N, teacher, temperature, chunk, mixtures, chunk_losses)
    return problem.solve(hidden_NH, weight_VH, bias_V)


def masked_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, labels_N: Tensor, *, chunk: int | None = None
) -> Tensor:
    """The reference's `masked_cross_entropy`, same guarantees and errors; differentiable once."""
    check_head(hidden_NH, weight_VH, bias_V, labels_N, who="student")
    problem = Problem(labels_N, None, 1.0, chunk, [(0.0, 1.0)], chunk_losses)
    return problem.solve(hidden_NH, weight_VH, bias_V)[1]


def chunk_losses(
    logits: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, mixtures: list[Mixture]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(kl_sum, ce_sum, one (c, V) derivative with respect to the logits per mixture); may overwrite `logits`.

    Passes over a chunk cost as much as its products: what can be made in place is.
    """
    kl_sum = ce_sum = lse = counted = norm = logits.new_zeros(())
    hard = soft = p = index = room = (
        logits  # softmaxes: the student's without and with temperature, the teacher's with it
    )
    # At temperature 2 the softmax without it is the square of the one with it, normalised: no exponential of its own.
    squared = teacher is not None and labels is not None and temperature == 2
    if labels is not None:
        index = labels.masked_fill(labels == IGNORED, 0)[:, None]  # another negative one is refused by `gather`
        counted = (labels != IGNORED).to(logits.dtype)[:, None]
        if not squared:
            hard, lse = _softmax(logits)
            ce_sum = ((lse[:, None] - logits.gather(1, index)) * counted).sum()
    if teacher is not None:
        if labels is not None and temperature == 1:
            soft = hard
        else:
            logits = logits.div_(temperature)
            teacher = teacher / temperature
            soft, lse = _softmax(logits)
        if squared:
            norm = torch.linalg.vector_norm(soft, dim=-1, keepdim=True).square_()
            ce_sum = ((2 * (lse[:, None] - logits.gather(1, index)) + norm.log()) * counted).sum()
        p, teacher_lse = _softmax(teacher)
        room = torch.sub(teacher, logits, out=logits).mul_(p)
        kl_sum = temperature**2 * (room.sum(-1) - teacher_lse + lse).sum()
    slopes = []
    for kl_weight, ce_weight in mixtures:
        # d(T²·KL)/dz = T·(q − p): the temperature's own chain rule takes one of the two factors.
        kl_weight = kl_weight * temperature
        if teacher is None:
            slope = hard * (counted * ce_weight)
        elif squared:
            # The only mixture's slope takes the room that the divergence has left.
            slope = torch.mul(soft, counted * ce_weight / norm, out=room if len(mixtures) == 1 else None)
            slope = slope.add_(kl_weight).mul_(soft).add_(p, alpha=-kl_weight)
        elif labels is not None and temperature == 1:
            slope = torch.mul(soft, kl_weight + ce_weight * counted).add_(p, alpha=-kl_weight)
        else:
            slope = torch.sub(soft, p).mul_(kl_weight)
            if labels is not None:
                slope.addcmul_(hard, counted, value=ce_weight)
        if labels is not None:
            slope.scatter_add_(1, index, counted * -ce_weight)
        slopes.append(slope)
    return kl_sum, ce_sum, slopes


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    # The largest probability is exp(max − log-sum-exp) ≥ 1/V: the normaliser without a second exponential.
    q = logits.softmax(-1)
    return q, logits.amax(-1) - q.amax(-1).log()
