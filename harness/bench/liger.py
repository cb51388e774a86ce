"""Liger's fused linear losses as one more implementation of the soft cross-entropy, where they can run.

Liger (LinkedIn, `pip install liger-kernel`) has the op in two parts that each go through the student's head: a
generalised Jensen–Shannon divergence, at β = 0 the forward KL, between two heads without bias, and a cross-entropy.
It has no relation loss, no attention loss and no score loss.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

NAME = "liger"


def obstacle(device: torch.device) -> str | None:
    """Why it is not measured here; None where it is."""
    if device.type != "cuda":
        return "its kernels need a GPU"
    if importlib.util.find_spec("liger_kernel") is None:
        return "not installed (pip install liger-kernel)"
    try:
        _modules()
    except Exception as error:  # whatever its import meets is not ours to mend
        return f"it cannot be imported: {type(error).__name__}: {error}"
    return None


def soft_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, *, teacher_hidden_NG: Tensor, teacher_weight_VG: Tensor, labels_N: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(kl_sum, ce_sum) as harness/kernels/soft_cross_entropy/reference.py defines them, of heads without bias."""
    divergence, cross_entropy = _modules()
    mean = divergence.LigerFusedLinearJSD(jsd_beta=0.0, temperature=temperature)(
        hidden_NH, weight_VH, teacher_hidden_NG, teacher_weight_VG, None
    )
    ce_sum = cross_entropy.LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_VH, hidden_NH, labels_N)
    return len(hidden_NH) * temperature**2 * mean, ce_sum


def _modules() -> tuple[Any, Any]:
    folder = "liger_kernel.transformers"
    return (
        importlib.import_module(f"{folder}.fused_linear_jsd"),
        importlib.import_module(f"{folder}.fused_linear_cross_entropy"),
    )
