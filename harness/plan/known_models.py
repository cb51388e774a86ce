"""Sizes of well-known public models, so that a study that names one can be planned where the Hub is out of reach.

Taken from the models' published config.json. A plan says when it used this table; a run never does.
"""

from __future__ import annotations

from typing import Any

_BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}
_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "pad_token_id": 1}
_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
_MODERN = {"model_type": "modernbert", "vocab_size": 50368, "max_position_embeddings": 8192}

_CONFIGS: dict[str, dict[str, Any]] = {
    "bert-base-uncased": {**_BERT, **_BASE},
    "bert-large-uncased": {**_BERT, **_LARGE},
    "bert-large-uncased-whole-word-masking": {**_BERT, **_LARGE},
    "bert-base-cased": {**_BERT, **_BASE, "vocab_size": 28996},
    "bert-large-cased": {**_BERT, **_LARGE, "vocab_size": 28996},
    "roberta-base": {**_ROBERTA, **_BASE},
    "roberta-large": {**_ROBERTA, **_LARGE},
    "distilroberta-base": {**_ROBERTA, **_BASE, "num_hidden_layers": 6},
    "distilbert-base-uncased": {
        "model_type": "distilbert", "vocab_size": 30522, "max_position_embeddings": 512, "n_layers": 6, "dim": 768,
        "n_heads": 12, "hidden_dim": 3072,
    },
    "ModernBERT-base": {
        **_MODERN, "num_hidden_layers": 22, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 1152,
    },
    "ModernBERT-large": {
        **_MODERN, "num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2624,
    },
}  # fmt: skip
_OWNERS = ("google-bert/", "FacebookAI/", "distilbert/", "answerdotai/")
# Ids of [PAD], [CLS], [SEP], [MASK] in BERT's and RoBERTa's vocabularies; they place no cost.
_SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}


def config_of_known(name: str) -> dict[str, Any] | None:
    """A known model's config, completed with its family's defaults; None for a name that is not in the table."""
    for owner in _OWNERS:
        name = name.removeprefix(owner)
    found = _CONFIGS.get(name)
    if found is None:
        return None
    from transformers import AutoConfig

    return AutoConfig.for_model(**found).to_dict()


def vocabulary_of_known(name: str) -> tuple[int, dict[str, int]] | None:
    """(entries, special ids) of a known model's tokenizer, or None."""
    config = config_of_known(name)
    return None if config is None else (int(config["vocab_size"]), dict(_SPECIAL))
