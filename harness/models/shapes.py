"""What a model costs: its shape, and closed-form FLOPs of the parts of a forward pass.

Counted: every matrix product of linear layers and attention, a multiply-add as two FLOPs, at real
tokens. Ignored: embedding look-ups, norms, softmax, activations, residual sums and the optimizer,
together 1–3 % of the executed FLOPs at H = 768 and below 10 % at H = 128. Attention masks, the causal
one included, do not lower the count except for local layers, whose window bounds the keys of a query
(docs/accounting.md says why and by how much). Pure Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import ConfigError
from harness.study.models import CAUSAL_FAMILIES


@dataclass(frozen=True)
class Shape:
    """Sizes that decide cost and compatibility. Layers are numbered 1…layers, states 0…layers."""

    family: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    embedding: int
    max_length: int
    gated: bool = False
    causal: bool = False
    kv_heads: int = 0
    windows: tuple[int | None, ...] = ()
    head_transform: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        """Width of K and of V: less than hidden under grouped-query attention."""
        return self.head_dim * (self.kv_heads or self.heads)

    def window(self, layer: int) -> int | None:
        """Keys a query of this layer can reach to either side, None for all."""
        return self.windows[layer - 1] if self.windows else None

    @property
    def widths(self) -> dict[str, int]:
        """Width of a layer's queries, keys and values, all heads together."""
        return {"q": self.hidden, "k": self.kv_width, "v": self.kv_width}

    @property
    def packed_qkv(self) -> bool:
        """True where one matrix makes Q, K and V, so that none of them is to be had alone."""
        return self.family in ("modernbert", "gpt2")

    # -- closed forms, FLOPs of one forward over `sequences` blocks of `length` tokens -----------------
    def qkv_flops(self, *, sequences: int, length: int, parts: str = "qkv") -> int:
        made = "qkv" if self.packed_qkv else parts
        return 2 * sequences * length * self.hidden * sum(self.widths[part] for part in made)

    def attention_flops(self, layer: int, *, sequences: int, length: int) -> int:
        """QKᵀ and the weighted sum of V."""
        return 4 * sequences * self.hidden * _pairs(length, self.window(layer))

    def layer_flops(self, layer: int, *, sequences: int, length: int) -> int:
        projection = 2 * sequences * length * self.hidden * self.hidden
        matrices = 3 if self.gated else 2
        mlp = 2 * sequences * length * matrices * self.hidden * self.intermediate
        return (
            self.qkv_flops(sequences=sequences, length=length)
            + self.attention_flops(layer, sequences=sequences, length=length)
            + projection
            + mlp
        )

    def embedding_flops(self, *, sequences: int, length: int) -> int:
        """The projection of factorised embeddings; look-ups are free."""
        if self.embedding == self.hidden:
            return 0
        return 2 * sequences * length * self.embedding * self.hidden

    def head_flops(self, positions: int) -> int:
        transform = self.hidden * self.embedding if self.head_transform else 0
        return 2 * positions * (transform + self.embedding * self.vocab)


def _pairs(length: int, window: int | None) -> int:
    """(query, key) pairs of one sequence."""
    if window is None or window >= length - 1:
        return length * length
    return length * (2 * window + 1) - window * (window + 1)


# transformers' names for the same sizes, by model type
_NAMES: dict[str, dict[str, str]] = {
    "distilbert": {"layers": "n_layers", "hidden": "dim", "heads": "n_heads", "intermediate": "hidden_dim"},
    "gpt2": {
        "layers": "n_layer",
        "hidden": "n_embd",
        "heads": "n_head",
        "intermediate": "n_inner",
        "max_length": "n_positions",
    },
}
_COMMON = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "vocab": "vocab_size",
    "max_length": "max_position_embeddings",
}
MASKED_FAMILIES = ("bert", "roberta", "roberta-prelayernorm", "distilbert", "electra", "modernbert")
FAMILIES = (*MASKED_FAMILIES, *CAUSAL_FAMILIES)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape of a model given its `config.json` as a mapping; needs no weights and no torch.

    Raises:
        ConfigError: the model type is not one of the supported families.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise ConfigError(
            f"model type {family!r}",
            rule=f"supported are {', '.join(FAMILIES)}",
            remedy="choose a model of those families",
        )
    names = {size: _NAMES.get(family, {}).get(size, common) for size, common in _COMMON.items()}
    if family == "gpt2" and config.get("n_inner") is None:
        config = {**config, "n_inner": 4 * int(config["n_embd"])}
    sizes: dict[str, Any] = {size: int(config[name]) for size, name in names.items()}
    for size, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{size} = {value}", rule="a model's sizes are positive", remedy="correct its config")
    if sizes["hidden"] % sizes["heads"]:
        raise ConfigError(
            f"hidden size {sizes['hidden']} with {sizes['heads']} heads",
            rule="heads divide it",
            remedy="correct its config",
        )
    windows: tuple[int | None, ...] = ()
    if family == "modernbert":
        half = int(config["local_attention"]) // 2
        windows = tuple(half if kind == "sliding_attention" else None for kind in config["layer_types"])
    if family in ("roberta", "roberta-prelayernorm"):
        # Their positions start after the padding index.
        sizes["max_length"] -= int(config["pad_token_id"]) + 1
    if family == "gpt2" and (
        not config.get("scale_attn_weights", True) or config.get("scale_attn_by_inverse_layer_idx")
    ):
        raise ConfigError(
            "a GPT-2 whose attention is not scaled by 1/√d", rule="scores are compared as q·k/√d",
            remedy="choose a model with scale_attn_weights and without scale_attn_by_inverse_layer_idx",
        )  # fmt: skip
    causal = family in CAUSAL_FAMILIES
    return Shape(
        family=family,
        embedding=int(config.get("embedding_size") or sizes["hidden"]) if family == "electra" else sizes["hidden"],
        gated=family in ("modernbert", "llama"),
        causal=causal,
        kv_heads=_kv_heads(config, sizes["heads"], sizes["hidden"]) if family == "llama" else 0,
        windows=windows,
        head_transform=not causal,
        **sizes,
    )


def _kv_heads(config: Mapping[str, Any], heads: int, hidden: int) -> int:
    """Llama's key and value heads; ConfigError where its heads are not `hidden / heads` wide."""
    wide = int(config.get("head_dim") or hidden // heads)
    if wide != hidden // heads:
        raise ConfigError(
            f"head_dim {wide} with hidden size {hidden} and {heads} heads", rule="heads are hidden / heads wide",
            remedy="choose a model whose heads fill its width",
        )  # fmt: skip
    shared = int(config.get("num_key_value_heads") or heads)
    if shared < 1 or heads % shared:
        raise ConfigError(
            f"{shared} key and value heads for {heads} heads", rule="they divide them", remedy="correct its config"
        )
    return shared
