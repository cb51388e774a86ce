"""What is kept of a teacher for one sequence: its size before there is any, signals to tensors, tensors to signals.

Shapes: B sequences, T tokens, H hidden, R positions of the head, K logits kept, C temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from harness.errors import ConfigError, DataError
from harness.models.signals import Needs, Signals, TopLogits

if TYPE_CHECKING:
    from harness.models.shapes import Shape
    from harness.models.signals import Head
    from harness.objectives.base import StepSize
    from harness.objectives.composition import Plan
    from harness.study import TeacherCacheSpec

Precision = Literal["computed", "half"]
# Logits of two models' size that are made at a time.
LOGITS_AT_ONCE = 1 << 25
STORED = {torch.float32: torch.float16}


@dataclass(frozen=True)
class Content:
    """What one sequence leaves. `half` keeps 2 bytes a number, computed ones as the teacher computes: 2 or 4."""

    needs: Needs
    shape: Shape
    length: int
    positions: int
    kept: int
    temperatures: tuple[float, ...]
    precision: Precision

    @classmethod
    def of(cls, plan: Plan, shape: Shape, size: StepSize, spec: TeacherCacheSpec, *, arm: str) -> Content:
        """What this plan asks of the teacher.

        Raises:
            ConfigError: it asks different things in different phases, or reads logits in a way that needs them all.
        """
        asked = {plan.teacher_needs(phase) for phase in range(len(plan.phases))}
        if len(asked) > 1:
            raise refuse(
                arm, "its phases ask different things of the teacher: which samples each reads is not known before"
            )
        (needs,) = asked
        temperatures: set[float] = set()
        for phase in range(len(plan.phases)):
            for _, objective in plan.objectives(phase):
                if objective.teacher_needs.logits == "none":
                    continue
                if objective.temperature is None:
                    raise refuse(arm, f"{objective.name} does not say at which temperature it compares logits")
                temperatures.add(float(objective.temperature))
        per_sequence = needs.positions(tokens=size.tokens, masked=size.masked) // size.sequences
        kept = shape.vocab if spec.logits == "all" else min(spec.logits, shape.vocab)
        return cls(
            needs, shape, size.length, per_sequence, kept if per_sequence else 0, tuple(sorted(temperatures)), spec.precision
        )  # fmt: skip

    def width(self, computed: int) -> int:
        """Bytes of a number of a state, where the teacher computes in `computed` bytes."""
        return 2 if self.precision == "half" else computed

    def row_bytes(self, computed: int) -> int:
        """What one sequence takes on disk."""
        parts = sum(self.shape.widths[part] for number in self.needs.attended for part in self.needs.parts_of(number))
        states = self.length * (len(self.needs.states) * self.shape.hidden + parts) * self.width(computed)
        # An id and a logit each (whole logits in fp32, whatever the teacher computes in), and the rests.
        return states + self.positions * (self.kept * (4 + self.width(4)) + 4 * len(self.temperatures))

    def pack(self, signals: Signals) -> dict[str, torch.Tensor]:
        """Tensors on the CPU whose first axis is the sequence.

        Raises:
            DataError: a number is beyond half precision's range.
        """
        found = {f"state.{number}": state for number, state in signals.states.items()}
        for number in sorted(self.needs.attended):
            for part in self.needs.parts_of(number):
                found[f"{part}.{number}"] = signals.part(number, part).transpose(1, 2).flatten(2)
        if signals.head is not None:
            found |= self._top(signals.head)
        return {name: self._stored(name, tensor).contiguous().cpu() for name, tensor in found.items()}

    def _top(self, head: Head) -> dict[str, torch.Tensor]:
        rows = max(1, LOGITS_AT_ONCE // self.shape.vocab)
        pieces = []
        for hidden in head.hidden_NE.split(rows):
            logits = torch.nn.functional.linear(hidden, head.weight_VE, head.bias_V).float()
            top, ids = logits.topk(self.kept, dim=-1)
            # Small numbers round best: a softmax does not see what is taken off all its logits.
            peak = top[:, :1]
            others = (logits - peak).scatter_(1, ids, -torch.inf)
            rests = torch.stack([(others / t).logsumexp(-1) for t in self.temperatures], -1)
            pieces.append((ids.int(), top - peak, rests))
        ids, top, rests = (torch.cat(column).unflatten(0, (-1, self.positions)) for column in zip(*pieces, strict=True))
        return {"top.ids": ids, "top.logits": top, "top.rests": rests}

    def _stored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if self.precision == "computed" or name in ("top.ids", "top.rests"):
            return tensor
        half = tensor.to(STORED.get(tensor.dtype, tensor.dtype))
        if not half.isfinite().all():
            raise DataError(
                f"teacher signal {name} of size {float(tensor.abs().max()):.3g}", rule="it does not fit half precision",
                remedy="set speed.teacher_cache.precision to computed",
            )  # fmt: skip
        return half

    def unpack(self, tensors: dict[str, torch.Tensor], *, dtype: torch.dtype) -> Signals:
        """The signals these tensors were, in the type the teacher computes in."""
        signals = Signals(states={number: tensors[f"state.{number}"].to(dtype) for number in sorted(self.needs.states)})
        for number in sorted(self.needs.attended):
            found = {
                part: tensors[f"{part}.{number}"].to(dtype).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
                for part in self.needs.parts_of(number)
            }
            signals.keep(number, found, self.needs)
        if self.kept:
            rests = tensors["top.rests"].flatten(0, 1)
            signals.top = TopLogits(
                tensors["top.ids"].flatten(0, 1).long(), tensors["top.logits"].flatten(0, 1).float(),
                {t: rests[:, column] for column, t in enumerate(self.temperatures)}, self.needs.logits,
            )  # fmt: skip
        return signals

    def identity(self) -> dict[str, Any]:
        """What tells it from any other content."""
        return {
            "logits": [self.needs.logits, self.kept, list(self.temperatures)],
            "states": sorted(self.needs.states),
            "parts": [[number, self.needs.parts_of(number)] for number in sorted(self.needs.attended)],
            "precision": self.precision,
        }


def outside(top: TopLogits, temperature: float) -> float:
    """The mean share of a position's mass at this temperature that lies outside the kept logits."""
    rest = top.rests[temperature][:, None]
    return float(torch.cat([top.logits_NK / temperature, rest], 1).softmax(-1)[:, -1].mean())


def refuse(arm: str, why: str) -> ConfigError:
    return ConfigError(
        f"speed.teacher_cache for arm {arm}", rule=why, remedy="leave speed.teacher_cache out, or put that arm into another study"
    )  # fmt: skip
