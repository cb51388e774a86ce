"""Soft targets and masked cross-entropy through a language-model head, written as their definition.

Shapes: N positions, V vocabulary, H and G the student's and the teacher's hidden sizes. The head is
`hidden_NH @ weight_VHᵀ + bias_V`: it belongs to the loss, so that logits need never exist for all N at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a label that takes a position out of the cross-entropy, PyTorch's and Hugging Face's convention


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
) -> tuple[Tensor, Tensor]:
    """(kl_sum, ce_sum): Σ_n T²·KL(p_T ‖ p_S) at `temperature`, summed over the vocabulary, and Σ_n −log p_S(label).

    The teacher is its logits, or its hidden states with its head's weight (and bias), or its largest logits (`Top`):
    then the KL is between distributions in which all other entries are one, see `top_divergence`. The cross-entropy
    has no temperature; it is 0 without labels, and a label of −100 takes its position out of it (not out of
    the KL). Both are sums over positions: callers divide. The teacher is a constant: it gets no gradient.
    Half inputs are computed and summed in float32, float64 stays float64. `chunk` is how many positions have
    logits at a time (None: all of them).

    Source: Hinton et al. 2015, section 2: the gradient scales as 1/T², hence the factor T².

    Raises:
        ValueError: no teacher or two, shapes that do not fit together, a temperature that is not positive.
    """
    check_head(hidden_NH, weight_VH, bias_V, labels_N, who="student")
    check_teacher(
        hidden_NH, weight_VH, teacher_logits_NV, teacher_hidden_NG, teacher_weight_VG, teacher_bias_V, teacher_top
    )
    check_temperature(temperature)
    kl_sum = ce_sum = _zero(hidden_NH, weight_VH, bias_V)
    # An outer autocast would round the logits to half precision; this function is the definition others are held to.
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for rows in row_chunks(len(hidden_NH), chunk):
            logits = _logits(hidden_NH[rows], weight_VH, bias_V)
            if teacher_top is not None:
                kl_sum = kl_sum + top_divergence(logits, teacher_top.rows(rows), temperature)
            else:
                if teacher_logits_NV is not None:
                    teacher = teacher_logits_NV[rows].detach().to(logits.dtype)
                else:
                    assert teacher_hidden_NG is not None
                    assert teacher_weight_VG is not None
                    with torch.no_grad():
                        teacher = _logits(teacher_hidden_NG[rows], teacher_weight_VG, teacher_bias_V).to(logits.dtype)
                log_p, log_q = (teacher / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
                kl_sum = kl_sum + temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
            if labels_N is not None:
                ce_sum = ce_sum + F.cross_entropy(logits, labels_N[rows], reduction="sum", ignore_index=IGNORED)
    return kl_sum, ce_sum


class Top(NamedTuple):
    """A teacher's K largest logits at N positions, and what all others weigh together.

    `rest_N` is the log of Σ exp(logit / temperature) over the other entries, −∞ where there are none: made for one
    temperature, useless at another. Any constant may be taken off a position's logits if its rest loses
    constant / temperature too.
    """

    ids_NK: Tensor  # int64
    logits_NK: Tensor
    rest_N: Tensor

    def rows(self, rows: slice) -> Top:
        """Those of some positions."""
        return Top(*(x[rows] for x in self))


def top_divergence(logits_NV: Tensor, top: Top, temperature: float) -> Tensor:
    """Σ_n T²·KL between the two models' distributions over K + 1 outcomes: each of the teacher's top entries, and the rest.

    By the chain rule of KL it is the whole divergence less Σ_n T²·r·KL(teacher ‖ student, both within the rest), where r is
    the teacher's mass outside its top entries: never more than the whole, and equal to it where K is the vocabulary.
    """
    top = Top(top.ids_NK, *(x.detach().to(logits_NV.dtype) for x in top[1:]))
    log_q = (logits_NV / temperature).log_softmax(-1)
    in_rest = torch.ones_like(log_q, dtype=torch.bool).scatter_(1, top.ids_NK, False)
    log_q_rest = log_q.masked_fill(~in_rest, -torch.inf).logsumexp(-1, keepdim=True)
    outcomes = torch.cat([top.logits_NK / temperature, top.rest_N[:, None]], 1)
    log_p = outcomes.log_softmax(-1)
    gap = log_p - torch.cat([log_q.gather(1, top.ids_NK), log_q_rest], 1)
    # An outcome that the teacher rules out counts nothing, whatever the student thinks of it.
    return temperature**2 * torch.where(log_p == -torch.inf, 0.0, log_p.exp() * gap).sum()


def masked_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, labels_N: Tensor, *, chunk: int | None = None
) -> Tensor:
    """Σ_n −log softmax(hidden·weightᵀ + bias)[label_n], a scalar; a label of −100 counts nothing.

    A sum: callers divide by the number of labels. Precision and `chunk` as in `soft_cross_entropy`.
    """
    check_head(hidden_NH, weight_VH, bias_V, labels_N, who="student")
    ce_sum = _zero(hidden_NH, weight_VH, bias_V)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for rows in row_chunks(len(hidden_NH), chunk):
            logits = _logits(hidden_NH[rows], weight_VH, bias_V)
            ce_sum = ce_sum + F.cross_entropy(logits, labels_N[rows], reduction="sum", ignore_index=IGNORED)
    return ce_sum


def row_chunks(rows: int, chunk: int | None) -> list[slice]:
    """Slices of at most `chunk` rows that cover 0 … rows − 1 in order."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk {chunk}: at least one position at a time; None takes them all at once")
    size = chunk or max(rows, 1)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor | None, *, who: str) -> None:
    """Refuse a head whose shapes do not fit its hidden states, and labels that are not one integer per position."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{who} hidden {tuple(hidden.shape)} and head weight {tuple(weight.shape)}: "
            "(positions, size) and (vocabulary, size) of one size are needed"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{who} head bias {tuple(bias.shape)}: one number per vocabulary entry, {weight.shape[0]}")
    if labels is not None and (labels.shape != hidden.shape[:1] or labels.dtype != torch.int64):
        raise ValueError(
            f"labels {tuple(labels.shape)} {labels.dtype}: one int64 per position is needed, shape ({hidden.shape[0]},)"
        )


def check_teacher(
    hidden: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    top: Top | None = None,
) -> None:
    """Refuse no teacher, two teachers, or a teacher of other positions or another vocabulary."""
    by_head = teacher_hidden is not None and teacher_weight is not None
    halves = (teacher_hidden is None) != (teacher_weight is None) or (teacher_bias is not None and not by_head)
    if (logits is not None) + by_head + (top is not None) != 1 or halves:
        raise ValueError(
            "the teacher must be given once: teacher_logits_NV, or teacher_hidden_NG with teacher_weight_VG (and bias), "
            "or teacher_top"
        )
    if top is not None:
        positions, kept = len(hidden), top.ids_NK.shape[-1]
        if not top.ids_NK.shape == top.logits_NK.shape == (positions, kept) or top.rest_N.shape != (positions,):
            raise ValueError(
                f"teacher's top logits {tuple(top.ids_NK.shape)}, {tuple(top.logits_NK.shape)}, {tuple(top.rest_N.shape)}: "
                f"ids and logits ({positions}, K) and rest ({positions},) are needed"
            )
        if not 0 < kept <= len(weight):
            raise ValueError(f"{kept} top logits of a vocabulary of {len(weight)}: 1 to all of them are needed")
        return
    if teacher_hidden is not None and teacher_weight is not None:
        check_head(teacher_hidden, teacher_weight, teacher_bias, None, who="teacher")
        shape = (teacher_hidden.shape[0], teacher_weight.shape[0])
    else:
        assert logits is not None
        shape = tuple(logits.shape)
    if shape != (hidden.shape[0], weight.shape[0]):
        raise ValueError(
            f"teacher logits {shape}: the student has {(hidden.shape[0], weight.shape[0])} (positions, vocabulary); "
            "compare the same positions over one vocabulary"
        )


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature {temperature}: a softmax temperature is positive; 1 leaves the logits alone")


def _zero(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Tied to the inputs, so that an empty batch still has a (zero) gradient.
    nothing = sum((x[:0].sum() for x in (hidden, weight, bias) if x is not None), start=hidden.new_zeros(()))
    return nothing.to(torch.promote_types(nothing.dtype, torch.float32))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    return F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
