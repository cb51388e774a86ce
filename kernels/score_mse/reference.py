"""Attention-score transfer (TinyBERT), written as its definition: plain PyTorch, any float type.

Shapes: B sequences, A heads (C the teacher's), T padded length, d and e the student's and the teacher's head sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention_kl.reference import check_heads, masked_scores
from ..pairs import check_lengths, real_tokens


def score_sse(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    lengths_B: Tensor | None = None,
    head_average: bool = False,
    causal: bool = False,
) -> Tensor:
    """Σ over real (query, key) pairs and heads of (q_S k_Sᵀ/√d_S − q_T k_Tᵀ/√d_T)², a scalar: a sum, not a mean.

    `q_s`, `k_s` are (B, A, T, d), `q_t`, `k_t` (B, C, T, e). Scores are compared before the softmax, and a pair
    with a pad counts as zero on both sides. Head counts must be equal, unless `head_average` averages the
    scores over the heads first. Divide by `score_count` for the mean. The teacher is a constant: it gets no
    gradient. Half inputs are computed and summed in float32, float64 stays float64.

    Source: Jiao et al. 2020, TinyBERT, equation 7.

    Raises:
        ValueError: shapes that do not fit together, or impossible lengths.
    """
    check_heads(q_s, k_s, q_t, k_t, equal_heads=not head_average)
    batch, _, tokens, _ = q_s.shape
    check_lengths(lengths_B, batch, tokens, q_s.device)
    # An outer autocast would round the scores to half precision; a loss of differences does not survive that.
    with torch.autocast(q_s.device.type, enabled=False):
        # With the pads' rows set to zero every pair with a pad scores 0 on both sides: no other mask is needed.
        student, teacher = masked_scores(q_s, k_s, lengths_B), masked_scores(q_t.detach(), k_t.detach(), lengths_B)
        if head_average:
            student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
        difference = student - teacher.to(student.dtype)
        return (difference.tril() if causal else difference).square().sum()


def score_count(
    q_s: Tensor, *, lengths_B: Tensor | None = None, head_average: bool = False, causal: bool = False
) -> Tensor:
    """How many elements `score_sse` sums over for these queries (B, A, T, d): a 0-d int64 tensor on their device."""
    batch, heads, tokens, _ = q_s.shape
    real = real_tokens(lengths_B, tokens)
    lengths = torch.full((batch,), tokens, dtype=torch.int64, device=q_s.device) if real is None else real.sum(-1)
    pairs = lengths * (lengths + 1) // 2 if causal else lengths * lengths
    return pairs.sum() * (1 if head_average else heads)
