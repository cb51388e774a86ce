"""Transformers configs of models that are trained from random weights, in each family's own words."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig

from harness.study.models import CAUSAL_FAMILIES

# The config keys that set a family's dropout probabilities.
_DROPOUTS: dict[str, tuple[str, ...]] = {
    "distilbert": ("dropout", "attention_dropout"),
    "modernbert": ("attention_dropout", "embedding_dropout", "mlp_dropout"),
    "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    "llama": ("attention_dropout",),
}


def auto_model(family: str) -> Any:
    """The transformers class that builds and loads this family with its language-model head."""
    return AutoModelForCausalLM if family in CAUSAL_FAMILIES else AutoModelForMaskedLM


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
    kv_heads: int | None = None,
) -> PretrainedConfig:
    """A language model that reads `length` tokens; `special` gives the pad, cls, sep and mask ids.

    A causal model begins a text with cls and ends it with sep.
    """
    keys: dict[str, Any] = {
        "vocab_size": vocab, "initializer_range": init_std, "pad_token_id": special["pad"],
        "bos_token_id": special["cls"], "eos_token_id": special["sep"], "tie_word_embeddings": True,
        "max_position_embeddings": length, **dropout_settings(family, dropout),
    }  # fmt: skip
    if family in CAUSAL_FAMILIES and special["pad"] in (special["cls"], special["sep"]):
        keys["pad_token_id"] = None  # the padding row of an embedding learns nothing, and this one begins every text
    if family == "distilbert":
        return AutoConfig.for_model(
            family, dim=hidden, n_layers=layers, n_heads=heads, hidden_dim=intermediate, **keys
        )  # fmt: skip
    if family == "gpt2":
        del keys["max_position_embeddings"]
        return AutoConfig.for_model(
            family, n_embd=hidden, n_layer=layers, n_head=heads, n_inner=intermediate, n_positions=length, **keys
        )  # fmt: skip
    keys |= {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": intermediate,
    }  # fmt: skip
    if family == "llama":
        return AutoConfig.for_model(family, num_key_value_heads=kv_heads or heads, **keys)
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
