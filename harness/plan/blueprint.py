"""How many weights a model has and which of them are trained, counted on PyTorch's meta device: nothing is allocated."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.models.shapes import Shape
    from harness.models.signals import Needs
    from harness.objectives.composition import Plan


@dataclass(frozen=True)
class Weights:
    """Numbers of weights: of the whole model, of those that get a gradient, of the largest layer."""

    total: int
    trained: int
    largest_layer: int


def config_of_shape(shape: Shape) -> Any:
    """A transformers config of this shape, for models that a plan only knows the sizes of."""
    from harness.models.configs import config_of

    config = config_of(
        shape.family, layers=shape.layers, hidden=shape.hidden, heads=shape.heads, intermediate=shape.intermediate,
        vocab=shape.vocab, length=shape.max_length, init_std=0.02, dropout=0.0, kv_heads=shape.kv_heads or None,
        special={"pad": 0, "cls": 1, "sep": 2, "mask": 3},
    )  # fmt: skip
    if shape.family == "electra":
        config.embedding_size = shape.embedding
    return config


def on_meta(config: Any, shape: Shape) -> Any:
    """The model as a walker of its family, every tensor on the meta device."""
    import torch

    from harness.models import attention
    from harness.models.configs import auto_model
    from harness.models.families import family_of

    attention.register()
    with torch.device("meta"):
        model = auto_model(shape.family).from_config(copy.deepcopy(config), attn_implementation=attention.NAME)
    return family_of(model, shape)


def weights_of(config: Any, shape: Shape) -> int:
    """All weights of a model, tied ones once."""
    return sum(_unique(on_meta(config, shape).model).values())


def weights_for(config: Any, shape: Shape, needs: Needs) -> Weights:
    """What a model that answers `needs` with gradients trains: everything up to the deepest thing asked for.

    A layer of which only Q, K, V are needed trains just those (and the norm before them). Weights count once
    however often they are used: a decoder tied to the embeddings adds its bias alone.
    """
    family = on_meta(config, shape)
    every = _unique(family.model)
    layers = [_unique(layer) for layer in family.layers]
    beyond = {identity for layer in layers for identity in layer}
    kept = {identity: size for identity, size in every.items() if identity not in beyond}
    for layer in layers[: needs.full_layers(shape)]:
        kept |= layer
    if (cut := needs.cut_layer(shape)) is not None:
        kept |= _unique_of(_projections(family, cut, needs.parts_of(cut)))
    if needs.logits == "none":
        body = _unique(family.body)
        kept = {identity: size for identity, size in kept.items() if identity in body}
    if needs.full_layers(shape) < shape.layers:
        for module in _after_the_layers(family):
            kept = {identity: size for identity, size in kept.items() if identity not in _unique(module)}
    return Weights(sum(every.values()), sum(kept.values()), max((sum(layer.values()) for layer in layers), default=0))


def teacher_weights(shape: Shape, needs: Needs) -> int:
    """Weights of a teacher that was cut after the deepest thing asked for: whole layers, as the run frees them."""
    family = on_meta(config_of_shape(shape), shape)
    every = _unique(family.model)
    deepest = needs.cut_layer(shape) or needs.full_layers(shape)
    for layer in list(family.layers)[deepest:]:
        every = {identity: size for identity, size in every.items() if identity not in _unique(layer)}
    if needs.logits == "none":
        body = _unique(family.body)
        every = {identity: size for identity, size in every.items() if identity in body}
    return sum(every.values())


def all_needs(plan: Plan, whose: str) -> Needs:
    """What every phase together asks of the student or of the teacher."""
    from harness.models.signals import Needs

    needs = Needs()
    for phase in range(len(plan.phases)):
        needs |= plan.student_needs(phase) if whose == "student" else plan.teacher_needs(phase)
    return needs


def _unique(module: Any) -> dict[int, int]:
    """{identity: number of elements} of a module's weights, tied ones once."""
    return _unique_of(list(module.parameters()))


def _unique_of(parameters: list[Any]) -> dict[int, int]:
    return {id(p): p.numel() for p in parameters}


def _projections(family: Any, number: int, parts: str) -> list[Any]:
    """The weights that make Q, K, V of one layer, and of the norm in front of them."""
    layer = family.layers[number - 1]
    words = {
        "q": ("query", "q_lin", "q_proj"),
        "k": ("key", "k_lin", "k_proj"),
        "v": ("value", "v_lin", "v_proj"),
    }
    wanted = {word for part in parts for word in words[part]} | {"Wqkv", "c_attn"}
    before = {"attn_norm", "input_layernorm", "ln_1"}
    found = []
    for name, parameter in layer.named_parameters():
        owner = name.split(".")
        in_attention = set(owner[:-1]) & wanted
        norm = set(owner[:-1]) & before or owner[:2] == ["attention", "LayerNorm"]
        if in_attention or norm:
            found.append(parameter)
    return found


def _after_the_layers(family: Any) -> list[Any]:
    """Norms that only the last state goes through."""
    names = {"model": ("final_norm", "norm"), "roberta_prelayernorm": ("LayerNorm",), "transformer": ("ln_f",)}
    return [getattr(family.body, name) for name in names.get(family.body_name, ()) if hasattr(family.body, name)]
