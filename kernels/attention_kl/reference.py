"""Attention-distribution transfer (MiniLM), written as its definition: plain PyTorch, any float type.

Shapes: B sequences, A heads, T padded length, d and e the student's and the teacher's head sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..pairs import MASKED, check_lengths, real_pairs, real_tokens, row_weights


def attention_kl(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Σ_b Σ_heads Σ_{real t} KL(softmax(q_T k_Tᵀ/√d_T) ‖ softmax(q_S k_Sᵀ/√d_S))_t / (A · length_b), a scalar.

    `q_s`, `k_s` are (B, A, T, d), `q_t`, `k_t` (B, A, T, e): equal head counts, free head sizes. Summed over
    sequences; callers divide by their number. Pads are excluded as queries and as keys. The teacher is a
    constant: it gets no gradient. Half inputs are computed and summed in float32, float64 stays float64.

    Source: Wang et al. 2020, MiniLM, section 3.1.

    Raises:
        ValueError: shapes that do not fit together, or impossible lengths.
    """
    check_heads(q_s, k_s, q_t, k_t)
    batch, heads, tokens, _ = q_s.shape
    check_lengths(lengths_B, batch, tokens, q_s.device)
    # An outer autocast would round the scores to half precision; a loss of differences does not survive that.
    with torch.autocast(q_s.device.type, enabled=False):
        log_q = log_attention(q_s, k_s, lengths_B, causal=causal)
        log_p = log_attention(q_t.detach(), k_t.detach(), lengths_B, causal=causal).to(log_q.dtype)
        kl_BAT = (log_p.exp() * (log_p - log_q)).sum(-1)
        return (kl_BAT.sum(1) * row_weights(lengths_B, batch, tokens, heads, like=kl_BAT)).sum()


def log_attention(q: Tensor, k: Tensor, lengths_B: Tensor | None, *, causal: bool) -> Tensor:
    """(B, A, T, T) log softmax(q kᵀ/√d) over real keys, in float32 or better; MASKED-sized where a key is not real."""
    scores = masked_scores(q, k, lengths_B)
    pairs = real_pairs(lengths_B, q.shape[2], causal=causal, device=q.device)
    if pairs is not None:
        scores = scores.masked_fill(~pairs[:, None], MASKED)
    return scores.log_softmax(-1)


def masked_scores(q: Tensor, k: Tensor, lengths_B: Tensor | None) -> Tensor:
    """(B, A, T, T) scaled scores q kᵀ/√d in float32 or better, computed with the pads' rows set to zero."""
    q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
    real = real_tokens(lengths_B, q.shape[2])
    if real is not None:
        # Before the product, not after it: NaN · 0 is NaN, in the forward and in the gradient.
        q, k = (x.masked_fill(~real[:, None, :, None], 0) for x in (q, k))
    return q @ k.mT / q.shape[-1] ** 0.5


def check_heads(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, *, equal_heads: bool = True) -> None:
    """Refuse queries and keys that differ in shape, or a teacher of another batch, length or head count."""
    for name, q, k in (("student", q_s, k_s), ("teacher", q_t, k_t)):
        if q.dim() != 4 or q.shape != k.shape:
            raise ValueError(
                f"{name} queries {tuple(q.shape)} and keys {tuple(k.shape)}: both must be one (batch, heads, tokens, d)"
            )
    if (q_s.shape[0], q_s.shape[2]) != (q_t.shape[0], q_t.shape[2]):
        raise ValueError(
            f"student {tuple(q_s.shape)} and teacher {tuple(q_t.shape)}: batch and tokens must be equal; "
            "give both models the same batch"
        )
    if equal_heads and q_s.shape[1] != q_t.shape[1]:
        raise ValueError(
            f"{q_s.shape[1]} student heads and {q_t.shape[1]} teacher heads: distributions are compared head by head; "
            "choose a student with the teacher's head count, or relation_kl, which re-splits the heads"
        )
