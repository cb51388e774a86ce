"""How each transformers family is walked: embeddings, layers one by one, final norm, head.

A family knows the module names of one architecture and nothing else. With it a forward pass can stop
at any layer, or after the Q, K, V of a layer, and give out exactly what was asked for.
Shapes: B sequences, T tokens, H hidden, E embedding width, N positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from harness.models.shapes import Shape


@dataclass(frozen=True)
class Context:
    """What every layer of one forward pass shares."""

    mask_BQK: torch.Tensor | None = None
    local_mask_BQK: torch.Tensor | None = None
    rotary: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None


def padding_mask(attention_mask_BT: torch.Tensor | None) -> torch.Tensor | None:
    """A boolean (B, 1, 1, T) mask for SDPA, or None where nothing is padded."""
    return None if attention_mask_BT is None else attention_mask_BT[:, None, None, :].bool()


class Family:
    """BERT's own layout; the other families override what differs."""

    body_name = "bert"

    def __init__(self, model: PreTrainedModel, shape: Shape) -> None:
        self.model: Any = model  # every family has modules of its own; no common type knows them
        self.shape = shape

    @property
    def body(self) -> Any:
        return getattr(self.model, self.body_name)

    @property
    def layers(self) -> Any:
        return self.body.encoder.layer

    def context(self, hidden_BTH: torch.Tensor, attention_mask_BT: torch.Tensor | None) -> Context:
        return Context(mask_BQK=padding_mask(attention_mask_BT))

    def embed(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        """State 0, (B, T, H)."""
        return self.body.embeddings(input_ids=input_ids_BT)

    def layer(self, number: int, hidden_BTH: torch.Tensor, context: Context) -> torch.Tensor:
        return self.layers[number - 1](hidden_BTH, context.mask_BQK)

    def qkv(self, number: int, hidden_BTH: torch.Tensor, context: Context, parts: str) -> dict[str, torch.Tensor]:
        """The named parts among "q", "k", "v" of one layer, (B, heads, T, d) each, without running the rest of it.

        Families with one matrix for all three give all three.
        """
        inputs, projections = self.attention_input(number, hidden_BTH), self.projections(number)
        return {part: self.split(projections[part](inputs)) for part in parts}

    def projections(self, number: int) -> dict[str, Any]:
        attention = self.layers[number - 1].attention.self
        return {"q": attention.query, "k": attention.key, "v": attention.value}

    def attention_input(self, number: int, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return hidden_BTH

    def split(self, projected_BTH: torch.Tensor) -> torch.Tensor:
        return projected_BTH.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)

    def final(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        """The norm between the last layer and the head, of pre-norm families."""
        return hidden_BTH

    def head_transform(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """(N, H) → (N, E), ready for the decoder."""
        return self.model.cls.predictions.transform(hidden_NH)

    @property
    def decoder(self) -> nn.Linear:
        """The (V, E) output projection, tied to the input embeddings."""
        return self.model.get_output_embeddings()


class Roberta(Family):
    body_name = "roberta"

    def head_transform(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        head = self.model.lm_head
        return head.layer_norm(nn.functional.gelu(head.dense(hidden_NH)))


class RobertaPreLayerNorm(Roberta):
    body_name = "roberta_prelayernorm"

    def attention_input(self, number: int, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.layers[number - 1].attention.LayerNorm(hidden_BTH)

    def final(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.body.LayerNorm(hidden_BTH)


class DistilBert(Family):
    body_name = "distilbert"

    @property
    def layers(self) -> Any:
        return self.body.transformer.layer

    def projections(self, number: int) -> dict[str, Any]:
        attention = self.layers[number - 1].attention
        return {"q": attention.q_lin, "k": attention.k_lin, "v": attention.v_lin}

    def head_transform(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return self.model.vocab_layer_norm(self.model.activation(self.model.vocab_transform(hidden_NH)))


class Electra(Family):
    body_name = "electra"

    def embed(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        embedded = self.body.embeddings(input_ids=input_ids_BT)
        return self.body.embeddings_project(embedded) if hasattr(self.body, "embeddings_project") else embedded

    def head_transform(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return self.model.generator_predictions(hidden_NH)


class ModernBert(Family):
    body_name = "model"

    @property
    def layers(self) -> Any:
        return self.body.layers

    def context(self, hidden_BTH: torch.Tensor, attention_mask_BT: torch.Tensor | None) -> Context:
        length, device = hidden_BTH.shape[1], hidden_BTH.device
        positions = torch.arange(length, device=device)
        mask = padding_mask(attention_mask_BT)
        half = self.model.config.local_attention // 2
        local = None
        if half < length - 1:
            near = (positions[:, None] - positions[None, :]).abs() <= half
            local = near[None, None] if mask is None else near[None, None] & mask
        rotary = {
            kind: self.body.rotary_emb(hidden_BTH, positions[None], kind) for kind in set(self.model.config.layer_types)
        }
        return Context(mask_BQK=mask, local_mask_BQK=local if local is not None else mask, rotary=rotary)

    def layer(self, number: int, hidden_BTH: torch.Tensor, context: Context) -> torch.Tensor:
        layer = self.layers[number - 1]
        is_local = layer.attention_type == "sliding_attention"
        assert context.rotary is not None
        return layer(
            hidden_BTH,
            attention_mask=context.local_mask_BQK if is_local else context.mask_BQK,
            position_embeddings=context.rotary[layer.attention_type],
        )

    def qkv(self, number: int, hidden_BTH: torch.Tensor, context: Context, parts: str) -> dict[str, torch.Tensor]:
        layer = self.layers[number - 1]
        assert context.rotary is not None
        cos, sin = context.rotary[layer.attention_type]
        packed = layer.attn.Wqkv(layer.attn_norm(hidden_BTH)).unflatten(-1, (3, -1, self.shape.head_dim))
        query, key, value = (part.transpose(1, 2) for part in packed.unbind(dim=-3))
        query, key = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=1)
        return {"q": query, "k": key, "v": value}

    def final(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.body.final_norm(hidden_BTH)

    def head_transform(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return self.model.head(hidden_NH)


class Causal(Family):
    """Families whose tokens see what precedes them: pre-norm, with a head that is its decoder alone."""

    def context(self, hidden_BTH: torch.Tensor, attention_mask_BT: torch.Tensor | None) -> Context:
        pads = padding_mask(attention_mask_BT)
        if pads is None:
            return Context()  # the attention function asks the module, and SDPA skips the future by itself
        length = hidden_BTH.shape[1]
        past = torch.ones(length, length, dtype=torch.bool, device=hidden_BTH.device).tril()
        return Context(mask_BQK=past & pads)

    def head_transform(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return hidden_NH


class Gpt2(Causal):
    body_name = "transformer"

    @property
    def layers(self) -> Any:
        return self.body.h

    def embed(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        return self.body.drop(self.body.wte(input_ids_BT) + self.body.wpe(positions[None]))

    def layer(self, number: int, hidden_BTH: torch.Tensor, context: Context) -> torch.Tensor:
        return self.layers[number - 1](hidden_BTH, attention_mask=context.mask_BQK)

    def qkv(self, number: int, hidden_BTH: torch.Tensor, context: Context, parts: str) -> dict[str, torch.Tensor]:
        layer = self.layers[number - 1]
        packed = layer.attn.c_attn(layer.ln_1(hidden_BTH)).split(self.shape.hidden, dim=-1)
        return {part: self.split(projected) for part, projected in zip("qkv", packed, strict=True)}

    def final(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.body.ln_f(hidden_BTH)


class Llama(Causal):
    body_name = "model"

    @property
    def layers(self) -> Any:
        return self.body.layers

    def context(self, hidden_BTH: torch.Tensor, attention_mask_BT: torch.Tensor | None) -> Context:
        positions = torch.arange(hidden_BTH.shape[1], device=hidden_BTH.device)
        rotary = {"all": self.body.rotary_emb(hidden_BTH, position_ids=positions[None])}
        return Context(mask_BQK=super().context(hidden_BTH, attention_mask_BT).mask_BQK, rotary=rotary)

    def embed(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        return self.body.embed_tokens(input_ids_BT)

    def layer(self, number: int, hidden_BTH: torch.Tensor, context: Context) -> torch.Tensor:
        assert context.rotary is not None
        return self.layers[number - 1](
            hidden_BTH, attention_mask=context.mask_BQK, position_embeddings=context.rotary["all"]
        )

    def attention_input(self, number: int, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.layers[number - 1].input_layernorm(hidden_BTH)

    def projections(self, number: int) -> dict[str, Any]:
        attention = self.layers[number - 1].self_attn
        return {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}

    def qkv(self, number: int, hidden_BTH: torch.Tensor, context: Context, parts: str) -> dict[str, torch.Tensor]:
        found = super().qkv(number, hidden_BTH, context, parts)
        assert context.rotary is not None
        cos, sin = context.rotary["all"]
        for part in found.keys() & {"q", "k"}:
            found[part] = found[part] * cos[:, None] + rotate_half(found[part]) * sin[:, None]
        return found

    def final(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.body.norm(hidden_BTH)


_BY_TYPE: dict[str, type[Family]] = {
    "bert": Family,
    "roberta": Roberta,
    "roberta-prelayernorm": RobertaPreLayerNorm,
    "distilbert": DistilBert,
    "electra": Electra,
    "modernbert": ModernBert,
    "gpt2": Gpt2,
    "llama": Llama,
}


def family_of(model: PreTrainedModel, shape: Shape) -> Family:
    """The walker for a model whose shape is known to be supported (see `harness.models.shapes.shape_of`)."""
    return _BY_TYPE[shape.family](model, shape)
