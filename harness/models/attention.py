"""One attention function for every model: SDPA, handing out Q, K and V of the layers that are watched.

Registered with transformers under the name `isobudget`, with its mask function, so any model built
or loaded with `attn_implementation="isobudget"` runs it. Shapes: B sequences, A heads, T tokens,
d head size; Q, K, V are (B, A, T, d), after rotary embedding where a model has one. Under grouped-query
attention K and V have fewer heads than Q, and are handed out so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "isobudget"

# Attention written out, its T × T weights kept: only to measure what fusing them buys.
_written_out = False

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_watch: list[QKV] | None = None


@contextmanager
def watched() -> Iterator[list[QKV]]:
    """Collect (q, k, v) of every attention that runs inside, with their gradient history."""
    global _watch
    seen: list[QKV] = []
    outer, _watch = _watch, seen
    try:
        yield seen
    finally:
        _watch = outer


@contextmanager
def written_out(on: bool = True) -> Iterator[None]:
    """While this lasts every model multiplies, masks and sums its attention weights one operation after the other."""
    global _written_out
    before, _written_out = _written_out, on
    try:
        yield
    finally:
        _written_out = before


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention; returns (B, T, A, d) as transformers' modules expect."""
    if _watch is not None:
        _watch.append((query, key, value))
    if key.shape[1] != query.shape[1]:
        key, value = (share_heads(x, query.shape[1]) for x in (key, value))
    # A mask that is given says itself what is past and what is future.
    is_causal = attention_mask is None and query.shape[2] > 1 and bool(getattr(module, "is_causal", False))
    if _written_out:
        context = _explicit(query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=is_causal)
        return context.transpose(1, 2), None
    context = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, is_causal=is_causal
    )
    return context.transpose(1, 2), None


def _explicit(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, *, scaling: float | None,
    dropout: float, is_causal: bool,
) -> torch.Tensor:  # fmt: skip
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return functional.dropout(scores.softmax(-1), dropout) @ value


def share_heads(tensor_BAkTd: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values as each of `heads` query heads sees them, (B, heads, T, d): consecutive heads share one."""
    return tensor_BAkTd.repeat_interleave(heads // tensor_BAkTd.shape[1], dim=1)


def register() -> None:
    """Make `attn_implementation="isobudget"` known; without its mask function masks would be dropped."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
