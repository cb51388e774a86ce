"""A frozen model beside the student: whole on every rank, or divided among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.ds_config import DsConfig
from harness.engine.library import deepspeed_library
from harness.hardware import free_bytes
from harness.ranks import Ranks

# A teacher that takes more of what is free beside the student's states leaves too little for activations.
_TEACHER_SHARE = 0.5


def must_divide(weight_bytes: int, config: DsConfig, ranks: Ranks) -> bool:
    """Whether a frozen model of this size is shared out among ranks: as the ds_config says, or when it does not fit.

    Ranks ask together and get one answer: one rank without room is enough.
    """
    if ranks.world == 1 or config.teacher_divided is not None:
        return ranks.world > 1 and bool(config.teacher_divided)
    return any(ranks.gather(weight_bytes > _TEACHER_SHARE * free_bytes(local_world=ranks.local_world)))


def divided(module: nn.Module) -> nn.Module:
    """A frozen module whose weights ranks share out, gathered layer by layer while its forward needs them."""
    deepspeed = deepspeed_library()
    tree: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    if next(module.parameters()).dtype == torch.bfloat16:
        tree["bf16"] = {"enabled": True}
    engine, *_ = deepspeed.initialize(model=module, config=tree, dist_init_required=False)
    return engine
