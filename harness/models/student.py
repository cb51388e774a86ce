"""Students: built from a study's ModelSpec with random weights, exported in Hugging Face layout."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.models.shapes import Shape, shape_of
from harness.study import ModelSpec

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# Below this width BERT's 0.02 leaves a student on the unigram plateau for thousands of steps
# (docs/decisions/0002-initialisation.md); 1/sqrt(H) does not.
SMALL_HIDDEN = 512
BERT_INIT_STD = 0.02
# Fine-tuning tasks are longer than short pretraining blocks; positions beyond a block cost nothing.
MIN_POSITIONS = 128


def student_config(spec: ModelSpec, *, vocab: int, special: Mapping[str, int], block_length: int) -> PretrainedConfig:
    """The transformers config of a student with `vocab` entries and the special ids pad, cls, sep, mask."""
    from harness.models.configs import config_of

    std = spec.init_std
    if std == "auto":
        std = BERT_INIT_STD if spec.hidden >= SMALL_HIDDEN else 1 / math.sqrt(spec.hidden)
    return config_of(
        spec.family,
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        intermediate=spec.intermediate or 4 * spec.hidden,
        vocab=vocab,
        length=max(block_length, MIN_POSITIONS),
        init_std=float(std),
        dropout=spec.dropout,
        special=dict(special),
        kv_heads=spec.kv_heads,
    )


def student_shape(spec: ModelSpec, *, vocab: int, special: Mapping[str, int], block_length: int) -> Shape:
    """The shape without building the model."""
    return shape_of(student_config(spec, vocab=vocab, special=special, block_length=block_length).to_dict())


def build_student(config: PretrainedConfig, *, seed: int) -> PreTrainedModel:
    """A student with random weights that depend on the seed and the config alone, in fp32 on the CPU."""
    import torch

    from harness.models import attention
    from harness.models.configs import auto_model

    attention.register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A model keeps its config and writes its attention implementation into it: every model gets its own.
        try:
            model = auto_model(str(config.model_type)).from_config(
                copy.deepcopy(config), attn_implementation=attention.NAME
            )
        except ValueError as error:
            raise ConfigError("student", rule=str(error), remedy="change the study's student block") from None
    return model.float()


def export(
    config: PretrainedConfig,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    tokenizer: Any,
    card: Mapping[str, Any],
    layers: int | None = None,
) -> None:
    """Write a student as a Hugging Face folder: safetensors, config, tokenizer and what made it.

    With `layers`, the layers above are dropped.
    """
    import json

    from harness.models.configs import auto_model

    model = auto_model(str(config.model_type)).from_config(copy.deepcopy(config))
    model.load_state_dict(dict(weights), strict=True)
    if layers is not None:
        drop_top(model, shape_of(config.to_dict()), layers)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "isobudget.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for its owner alone, and students are for others


def drop_top(model: PreTrainedModel, shape: Shape, layers: int) -> None:
    """Keep the first `layers` layers of a model, in its weights and in its config."""
    from harness.models.families import family_of

    del family_of(model, shape).layers[layers:]
    model.config.num_hidden_layers = layers
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        model.config.layer_types = kinds[:layers]
