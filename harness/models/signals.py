"""What an objective may ask of a model, and the forward pass that computes just that.

`Needs` is the question, `Signals` the answer. A forward ends at the deepest thing needed: the head
when logits are, a layer when its state is, and half-way through a layer when only its Q, K, V are.
Shapes: B sequences, T tokens, H hidden, A heads, d head size, N positions, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.errors import ConfigError
from harness.kernels.soft_cross_entropy.reference import Top
from harness.models.attention import QKV, watched
from harness.models.families import Family
from harness.models.shapes import Shape

Positions = Literal["none", "masked", "tokens"]


class TrainingBatch(Protocol):
    """The part of a batch that models and objectives read; `harness.data.stream.Batch` is one."""

    @property
    def input_ids_BT(self) -> torch.Tensor: ...
    @property
    def positions_N(self) -> torch.Tensor: ...
    @property
    def labels_N(self) -> torch.Tensor: ...
    @property
    def attention_mask_BT(self) -> torch.Tensor | None: ...
    @property
    def masked_count(self) -> float: ...
    @property
    def token_count(self) -> float: ...
    @property
    def sequence_count(self) -> float: ...


@dataclass(frozen=True)
class Needs:
    """Layers count from 1, states from 0 (the embeddings) to `layers` (after the final norm).

    "masked" logits are those at the positions a batch predicts: the masked ones, or, of a causal model, those
    whose next token is real text. `qkv` asks for Q, K and V of a layer, `parts` for one of them: (layer, "k").
    """

    logits: Positions = "none"
    states: frozenset[int] = frozenset()
    qkv: frozenset[int] = frozenset()
    parts: frozenset[tuple[int, str]] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        order: list[Positions] = ["none", "masked", "tokens"]
        logits = max(self.logits, other.logits, key=order.index)
        return Needs(
            logits=logits,
            states=self.states | other.states,
            qkv=self.qkv | other.qkv,
            parts=self.parts | other.parts,
        )

    def __bool__(self) -> bool:
        return self.logits != "none" or bool(self.states or self.qkv or self.parts)

    @property
    def attended(self) -> frozenset[int]:
        """Layers of which Q, K or V is asked for."""
        return self.qkv | {number for number, _ in self.parts}

    def parts_of(self, number: int) -> str:
        """Which of "q", "k", "v" of this layer are asked for, in that order."""
        return "".join(part for part in "qkv" if number in self.qkv or (number, part) in self.parts)

    def check(self, shape: Shape, *, whose: str) -> None:
        """Raise ConfigError when a layer does not exist."""
        for number in sorted(self.states | self.attended):
            if not 0 <= number <= shape.layers or (number == 0 and 0 in self.attended):
                raise ConfigError(
                    f"layer {number} of the {whose}",
                    rule=f"it has layers 1 to {shape.layers}",
                    remedy="choose one of those",
                )

    def full_layers(self, shape: Shape) -> int:
        """Layers that run whole."""
        if self.logits != "none":
            return shape.layers
        deepest_qkv = max(self.attended, default=0)
        return max(max(self.states, default=0), deepest_qkv - 1)

    def cut_layer(self, shape: Shape) -> int | None:
        """The layer of which only Q, K, V run, if the forward ends there."""
        deepest = max(self.attended, default=0)
        return deepest if deepest > self.full_layers(shape) else None

    def positions(self, *, tokens: int, masked: int) -> int:
        """Positions at which the head runs."""
        return {"none": 0, "masked": masked, "tokens": tokens}[self.logits]

    def forward_flops(self, shape: Shape, *, sequences: int, length: int, masked: int) -> int:
        """Closed-form FLOPs of one forward that answers these needs; `masked` counts all sequences."""
        if not self:
            return 0
        flops = shape.embedding_flops(sequences=sequences, length=length)
        for number in range(1, self.full_layers(shape) + 1):
            flops += shape.layer_flops(number, sequences=sequences, length=length)
        if (cut := self.cut_layer(shape)) is not None:
            flops += shape.qkv_flops(sequences=sequences, length=length, parts=self.parts_of(cut))
        return flops + shape.head_flops(self.positions(tokens=sequences * length, masked=masked))


@dataclass
class Head:
    """Logits, not yet multiplied out: losses may fuse the product with the decoder.

    The N rows are the masked positions, or all real tokens in order, as `positions` says.
    """

    hidden_NE: torch.Tensor
    weight_VE: torch.Tensor
    bias_V: torch.Tensor | None
    positions: Positions = "masked"

    def logits(self) -> torch.Tensor:
        """(N, V)."""
        return nn.functional.linear(self.hidden_NE, self.weight_VE, self.bias_V)


@dataclass
class TopLogits:
    """The K largest logits at N positions and, by temperature, what all others weigh together (kernels' `Top`).

    All that is remembered of a teacher's head; rows as a `Head`'s.
    """

    ids_NK: torch.Tensor
    logits_NK: torch.Tensor
    rests: dict[float, torch.Tensor]
    positions: Positions = "masked"

    def at(self, temperature: float) -> Top:
        """For a loss at this temperature."""
        return Top(self.ids_NK, self.logits_NK, self.rests[temperature])


@dataclass
class Signals:
    """The answer to `Needs`: states (B, T, H) and (q, k, v), each (B, heads, T, d), by number.

    `parts` holds those asked for one by one. `top` stands for `head` where only the largest logits were remembered.
    """

    states: dict[int, torch.Tensor] = field(default_factory=dict)
    qkv: dict[int, QKV] = field(default_factory=dict)
    head: Head | None = None
    parts: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    top: TopLogits | None = None

    def part(self, number: int, part: str) -> torch.Tensor:
        """Q, K or V of a layer, however it was asked for."""
        return self.qkv[number]["qkv".index(part)] if number in self.qkv else self.parts[number, part]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that was computed for this answer, by name; weights of a head are none of it."""
        found = {f"state {number}": state for number, state in self.states.items()}
        found |= {
            f"{part} of layer {n}": x for n, three in self.qkv.items() for part, x in zip("qkv", three, strict=True)
        }
        found |= {f"{part} of layer {number}": x for (number, part), x in self.parts.items()}
        return found | ({} if self.head is None else {"head": self.head.hidden_NE})

    def clone(self) -> Signals:
        """The same answer in memory of its own."""
        found = self._each(torch.clone)
        found.head = None if self.head is None else replace(self.head, hidden_NE=self.head.hidden_NE.clone())
        return found

    def to(self, dtype: torch.dtype) -> Signals:
        """The same answer with states, Q, K and V in this type; a head is multiplied in its own."""
        return self._each(lambda tensor: tensor.to(dtype))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Signals:
        return Signals(
            states={number: change(state) for number, state in self.states.items()},
            qkv={number: (change(q), change(k), change(v)) for number, (q, k, v) in self.qkv.items()},
            head=self.head, parts={key: change(part) for key, part in self.parts.items()}, top=self.top,
        )  # fmt: skip

    def keep(self, number: int, found: dict[str, torch.Tensor], needs: Needs) -> None:
        """Of a layer's Q, K, V hold what was asked for."""
        if number in needs.qkv:
            self.qkv[number] = found["q"], found["k"], found["v"]
        else:
            self.parts.update({(number, part): found[part] for part in needs.parts_of(number)})


class Walk(nn.Module):
    """A frozen model whose one forward is `run`, for an engine that gathers weights while a forward needs them."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.model = family.model
        self.family = family

    def forward(self, batch: TrainingBatch, needs: Needs) -> Signals:
        signals = run(
            self.family, needs, input_ids_BT=batch.input_ids_BT, positions_N=batch.positions_N,
            attention_mask_BT=batch.attention_mask_BT,
        )  # fmt: skip
        if signals.head is not None:
            # The loss multiplies them after this forward, when each rank has only its share again.
            signals.head.weight_VE = signals.head.weight_VE.clone()
            signals.head.bias_V = None if signals.head.bias_V is None else signals.head.bias_V.clone()
        return signals


def run(
    family: Family,
    needs: Needs,
    *,
    input_ids_BT: torch.Tensor,
    positions_N: torch.Tensor | None,
    attention_mask_BT: torch.Tensor | None = None,
    recompute: bool = False,
) -> Signals:
    """One forward pass that computes what `needs` names and nothing beyond it.

    With `recompute`, layers keep their input only and run again in the backward pass; a layer whose Q, K or V
    an objective holds is kept as it is.

    `positions_N` are flat indices into B·T at which the head runs when `needs.logits` is "masked"; for
    "tokens" it runs at every position that is not a pad.
    """
    signals = Signals()
    shape = family.shape
    hidden = family.embed(input_ids_BT)
    context = family.context(hidden, attention_mask_BT)
    if 0 in needs.states:
        signals.states[0] = hidden
    last = needs.full_layers(shape)
    for number in range(1, last + 1):
        if number in needs.attended:
            with watched() as seen:
                hidden = family.layer(number, hidden, context)
            signals.keep(number, dict(zip("qkv", seen[-1], strict=True)), needs)
        elif recompute and torch.is_grad_enabled():
            # No check of what is recomputed: under ZeRO-3 a weight is whole or away, depending on the moment.
            hidden = checkpoint(family.layer, number, hidden, context, use_reentrant=False, determinism_check="none")
        else:
            hidden = family.layer(number, hidden, context)
        if number == shape.layers:
            hidden = family.final(hidden)
        if number in needs.states:
            signals.states[number] = hidden
    if (cut := needs.cut_layer(shape)) is not None:
        signals.keep(cut, family.qkv(cut, hidden, context, needs.parts_of(cut)), needs)
    if needs.logits != "none":
        flat = hidden.flatten(0, 1)
        if needs.logits == "masked":
            assert positions_N is not None
            flat = flat.index_select(0, positions_N)
        elif attention_mask_BT is not None:
            flat = flat[attention_mask_BT.flatten().bool()]
        decoder = family.decoder
        signals.head = Head(family.head_transform(flat), decoder.weight, decoder.bias, needs.logits)
    return signals
