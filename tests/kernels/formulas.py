"""The losses written a second time, from the papers' formulas, as loops over real tokens: slow and hard to get wrong.

Everything is sliced to the true length first, so a pad cannot enter; float64 tensors in, autograd gives gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_kl(teacher_scores: Tensor, student_scores: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of two score vectors."""
    p = teacher_scores.exp() / teacher_scores.exp().sum()
    q = student_scores.exp() / student_scores.exp().sum()
    return (p * (p / q).log()).sum()


def attention_kl(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, lengths: list[int], causal: bool) -> Tensor:
    """MiniLM equation 2 over (B, A, T, d) queries and keys, divided by A and each sequence's length."""
    total = q_s.new_zeros(())
    heads = q_s.shape[1]
    for b, length in enumerate(lengths):
        for a in range(heads):
            for t in range(length):
                keys = slice(0, t + 1 if causal else length)
                student = torch.einsum("d,sd->s", q_s[b, a, t], k_s[b, a, keys]) / q_s.shape[-1] ** 0.5
                teacher = torch.einsum("d,sd->s", q_t[b, a, t], k_t[b, a, keys]) / q_t.shape[-1] ** 0.5
                total = total + softmax_kl(teacher, student) / (heads * length)
    return total


def relation_kl(student: Tensor, teacher: Tensor, heads: int, lengths: list[int], causal: bool) -> Tensor:
    """MiniLMv2 section 3: (B, T, H) cut into `heads` pieces of consecutive numbers, each related to itself."""
    total = student.new_zeros(())
    for r in range(heads):
        piece, other = (
            x[..., r * (x.shape[-1] // heads) : (r + 1) * (x.shape[-1] // heads)] for x in (student, teacher)
        )
        one_head = attention_kl(piece[:, None], piece[:, None], other[:, None], other[:, None], lengths, causal)
        total = total + one_head / heads
    return total


def score_sse(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, lengths: list[int], causal: bool, average: bool
) -> tuple[Tensor, int]:
    """TinyBERT equation 7 before its mean: the sum over real pairs, and how many there are."""
    total, count = q_s.new_zeros(()), 0
    for b, length in enumerate(lengths):
        for t in range(length):
            for s in range(t + 1 if causal else length):
                student = torch.stack([q[t] @ k[s] for q, k in zip(q_s[b], k_s[b], strict=True)]) / q_s.shape[-1] ** 0.5
                teacher = torch.stack([q[t] @ k[s] for q, k in zip(q_t[b], k_t[b], strict=True)]) / q_t.shape[-1] ** 0.5
                if average:
                    student, teacher = student.mean(0, keepdim=True), teacher.mean(0, keepdim=True)
                total = total + (student - teacher).square().sum()
                count += len(student)
    return total, count


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, labels: list[int] | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Hinton et al. section 2, position by position: T²·KL at the temperature, and −log p(label) without one."""
    kl, ce = student_logits.new_zeros(()), student_logits.new_zeros(())
    for n, (student, teacher) in enumerate(zip(student_logits, teacher_logits, strict=True)):
        kl = kl + temperature**2 * softmax_kl(teacher / temperature, student / temperature)
        if labels is not None and labels[n] != -100:
            ce = ce - (student[labels[n]].exp() / student.exp().sum()).log()
    return kl, ce
