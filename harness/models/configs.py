"""Transformers configs of models that are trained from random weights, in each family's own words."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

# The config keys that set a family's dropout probabilities.
_DROPOUTS: dict[str, tuple[str, ...]] = {
    "distilbert": ("dropout", "attention_dropout"),
    "modernbert": ("attention_dropout", "embedding_dropout", "mlp_dropout"),
}


def dropout_settings(family: str, probability: float) -> dict[str, float]:
    """Config keys that give every dropout of a family this probability."""
    keys = _DROPOUTS.get(family, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
    return dict.fromkeys(keys, probability)


def config_of(
    family: str,
    *,
    layers: int,
    hidden: int,
    heads: int,
    intermediate: int,
    vocab: int,
    length: int,
    init_std: float,
    dropout: float,
    special: dict[str, int],
) -> PretrainedConfig:
    """A masked language model that reads `length` tokens; `special` gives the pad, cls, sep and mask ids."""
    keys: dict[str, Any] = {
        "vocab_size": vocab, "initializer_range": init_std, "pad_token_id": special["pad"],
        "bos_token_id": special["cls"], "eos_token_id": special["sep"], "tie_word_embeddings": True,
        "max_position_embeddings": length, **dropout_settings(family, dropout),
    }  # fmt: skip
    if family == "distilbert":
        return AutoConfig.for_model(
            family, dim=hidden, n_layers=layers, n_heads=heads, hidden_dim=intermediate, **keys
        )  # fmt: skip
    keys |= {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": intermediate,
    }  # fmt: skip
    if family == "modernbert":
        keys |= {"cls_token_id": special["cls"], "sep_token_id": special["sep"]}
    else:
        keys["type_vocab_size"] = 2 if family in ("bert", "electra") else 1
    if family in ("roberta", "roberta-prelayernorm"):
        # Their positions are counted from behind the padding id.
        keys["max_position_embeddings"] = length + special["pad"] + 1
    if family == "electra":
        keys["embedding_size"] = hidden
    return AutoConfig.for_model(family, **keys)
