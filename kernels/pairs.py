"""Which (query, key) pairs of a padded batch are real, said once for every attention-like loss.

Shapes: B sequences, T padded length. A sequence of length n owns positions 0 … n−1; the rest are pads,
which are neither queries nor keys: whatever they hold — NaN included — has no influence and gets no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Far below any score yet finite, so that 0 · (masked − masked) is 0 and not NaN; exp of it is exactly 0.
MASKED = -1e30


def check_lengths(lengths_B: Tensor | None, batch: int, tokens: int, device: torch.device) -> None:
    """Refuse lengths of another batch, type or device, and — where that needs no device sync — of impossible values.

    Raises:
        ValueError: `lengths_B` is not an integer tensor of shape (batch,) on `device` within 0 … tokens.
    """
    if lengths_B is None:
        return
    if lengths_B.shape != (batch,) or lengths_B.dtype.is_floating_point or lengths_B.dtype == torch.bool:
        raise ValueError(
            f"lengths_B {tuple(lengths_B.shape)} {lengths_B.dtype}: one integer per sequence is needed, "
            f"shape ({batch},); pass the number of real tokens of each sequence"
        )
    if lengths_B.device != device:
        raise ValueError(f"lengths_B is on {lengths_B.device}, the tensors on {device}; move the lengths there")
    # Values are checked on the CPU only: reading them from a GPU would stall the host in every step.
    if device.type == "cpu" and batch and (int(lengths_B.min()) < 0 or int(lengths_B.max()) > tokens):
        raise ValueError(f"lengths_B {lengths_B.tolist()}: each must lie within 0 … {tokens}, the padded length")


def real_tokens(lengths_B: Tensor | None, tokens: int) -> Tensor | None:
    """(B, T) booleans, true at real positions; None when every position is real."""
    if lengths_B is None:
        return None
    return torch.arange(tokens, device=lengths_B.device) < lengths_B[:, None]


def real_pairs(lengths_B: Tensor | None, tokens: int, *, causal: bool, device: torch.device) -> Tensor | None:
    """(B or 1, T, T) booleans, true where query t may see key s; None when every pair is real.

    A pad query's row holds the real keys all the same: callers drop that row.
    """
    keys = real_tokens(lengths_B, tokens)
    past = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril() if causal else None
    if keys is None:
        return None if past is None else past[None]
    return keys[:, None, :].expand(-1, tokens, -1) if past is None else keys[:, None, :] & past


def row_weights(lengths_B: Tensor | None, batch: int, tokens: int, heads: int, *, like: Tensor) -> Tensor:
    """(B, T): 1 / (heads · length) at real positions and 0 at pads — what one query row counts for."""
    if lengths_B is None:
        return like.new_full((batch, tokens), 1 / (heads * tokens))
    per_sequence = 1 / (heads * lengths_B.clamp(min=1).to(like.dtype))
    real = torch.arange(tokens, device=lengths_B.device) < lengths_B[:, None]
    return real.to(like.dtype) * per_sequence[:, None]
