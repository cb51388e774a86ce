"""A model under evaluation: a student's exported folder, a teacher, or an untrained student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from harness.models import attention
from harness.models.configs import auto_model
from harness.models.families import family_of
from harness.models.shapes import Shape, shape_of
from harness.models.signals import Needs, Signals, run


class Subject:
    """A language model in fp32 on one device, walked by the same forward as in training."""

    def __init__(self, model: PreTrainedModel, *, device: torch.device) -> None:
        moved: Any = model  # its `to` is decorated out of its type
        self.model: PreTrainedModel = moved.to(device=device, dtype=torch.float32).eval()
        self.device = device
        self.shape: Shape = shape_of(model.config.to_dict())

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> Subject:
        attention.register()
        family = str(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type)
        model = auto_model(family).from_pretrained(
            folder, attn_implementation=attention.NAME, use_safetensors=True, local_files_only=True, dtype=torch.float32
        )
        return cls(model, device=device)

    def signals(
        self, needs: Needs, *, input_ids_BT: torch.Tensor, positions_N: torch.Tensor | None = None,
        attention_mask_BT: torch.Tensor | None = None,
    ) -> Signals:  # fmt: skip
        return run(
            family_of(self.model, self.shape), needs,
            input_ids_BT=input_ids_BT, positions_N=positions_N, attention_mask_BT=attention_mask_BT,
        )  # fmt: skip
