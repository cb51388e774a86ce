"""Small models of every supported family, built as students are, with unequal sizes where a family allows it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from harness.models import attention
from harness.models.configs import auto_model, config_of
from harness.models.families import family_of
from harness.models.shapes import FAMILIES, Shape, shape_of

VOCAB = 53
SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}
LENGTH = 32

# The families as they are, Electra with factorised embeddings, ModernBERT with windows shorter than a sequence,
# and Llama with one key and value head for all query heads.
ZOO: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in FAMILIES}
ZOO["electra-factorised"] = ("electra", {"embedding_size": 8})
ZOO["llama-grouped"] = ("llama", {"num_key_value_heads": 1})
ZOO["modernbert-local"] = ("modernbert", {"local_attention": 6, "global_attn_every_n_layers": 2})


def config(name: str, *, layers: int = 3, hidden: int = 24, heads: int = 3, intermediate: int = 40) -> PretrainedConfig:
    family, changes = ZOO[name]
    made = config_of(
        family, layers=layers, hidden=hidden, heads=heads, intermediate=intermediate, vocab=VOCAB, length=LENGTH,
        init_std=0.3, dropout=0.0, special=SPECIAL,
    )  # fmt: skip
    if not changes:
        return made
    kept = {k: v for k, v in made.to_dict().items() if k != "layer_types"}
    return type(made)(**{**kept, **changes})


def build(made: PretrainedConfig, *, implementation: str = attention.NAME, seed: int = 0) -> PreTrainedModel:
    """In float64, with every bias and norm away from its initial 0 and 1."""
    attention.register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A model keeps the config it was given: another implementation on the same object would change both.
        model = auto_model(str(made.model_type)).from_config(copy.deepcopy(made), attn_implementation=implementation)
        for parameter in model.parameters():
            nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return model.double().eval()


def shape(made: PretrainedConfig) -> Shape:
    return shape_of(made.to_dict())


def walker(made: PretrainedConfig, **kwargs: Any) -> Any:
    return family_of(build(made, **kwargs), shape(made))


def tokens(lengths: tuple[int, ...], *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(input ids, attention mask), pads carrying the padding id as a tokenizer would write them."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(4, VOCAB, (len(lengths), width), generator=generator)
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    return torch.where(mask.bool(), ids, SPECIAL["pad"]), mask
