"""What GLUE fine-tuning costs, before any of it: closed-form FLOPs at real token counts, and what a cap leaves.

Counted: the forward of the body and of the classifier, three times over in training; one forward for every example
that is only predicted. Ignored, as everywhere: look-ups, norms, softmax, dropout and the optimizer.
The plan knows a step's mean length, a job counts its own batches: over whole epochs the two agree exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from harness.data import glue
from harness.data.glue import Part, TaskData
from harness.errors import ConfigError
from harness.models.shapes import Shape
from harness.study import GlueSpec, StudySpec
from harness.units import Unit, format_amount

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Successive halving over the paper's grid: (share of the full run's steps, grid points kept afterwards).
STAGES = ((0.1, 4), (0.2, 2), (1.0, 1))
# No fine-tuning of a round is shorter than this, or than the full one: a few steps of warm-up tell recipes apart by luck.
FEWEST_STEPS = 100


@dataclass(frozen=True)
class Stage:
    """One round of a search: how far every surviving grid point is trained, and how many survive it."""

    share: float
    keep: int

    def steps(self, full: int) -> int:
        return min(full, math.ceil(round(self.share * full, 6)))


def stages(spec: GlueSpec, examples: int) -> list[Stage]:
    """One round for a grid that is trained in full, three for `staged`.

    In one round every rival reads the same share of the epochs, whatever its batch: rivals at the largest batch take
    the fewest steps, so where FEWEST_STEPS binds it is theirs. A round's price then does not depend on who survives.
    Rounds of equal shares are the same fine-tunings, and are done and paid once.
    """
    if spec.grid != "staged":
        return [Stage(1.0, 1)]
    fewest = min(1.0, FEWEST_STEPS / _steps(examples, batch=max(spec.points.batches), epochs=spec.points.epochs))
    return [Stage(max(share, fewest), keep) for share, keep in STAGES]


def points(spec: GlueSpec) -> list[tuple[float, int]]:
    """(learning rate, batch) of every grid point, in order."""
    return [(lr, batch) for lr in spec.points.lrs for batch in spec.points.batches]


def full_steps(data: TaskData, *, batch: int, epochs: int) -> int:
    return _steps(len(data.train), batch=batch, epochs=epochs)


def _steps(examples: int, *, batch: int, epochs: int) -> int:
    return epochs * -(-examples // batch)


@lru_cache(maxsize=65536)
def sequence_flop(shape: Shape, length: int, outputs: int) -> int:
    """One example's forward through every layer and the classifier."""
    flop = shape.embedding_flops(sequences=1, length=length)
    for layer in range(1, shape.layers + 1):
        flop += shape.layer_flops(layer, sequences=1, length=length)
    return flop + 2 * shape.hidden * outputs


def forward_flop(shape: Shape, part: Part, outputs: int) -> int:
    """One forward over every example of a part, at real tokens."""
    lengths, counts = np.unique(part.lengths_E, return_counts=True)
    return sum(int(n) * sequence_flop(shape, int(length), outputs) for length, n in zip(lengths, counts, strict=True))


def job_flop(shape: Shape, data: TaskData, *, batch: int, epochs: int, steps: int) -> int:
    """One fine-tuning of `steps` steps: training, and the predictions made at its end."""
    outputs = data.task.outputs
    full = full_steps(data, batch=batch, epochs=epochs)
    training = 3 * forward_flop(shape, data.train, outputs) * epochs * steps // full
    judged = sum(forward_flop(shape, part, outputs) for part in data.judged.values())
    selection = 0 if data.selection is None else forward_flop(shape, data.selection, outputs)
    if steps < full and data.selection is not None:
        judged = 0  # a round that is not the last is only chosen by
    return training + selection + judged


def task_flop(shape: Shape, data: TaskData, spec: GlueSpec) -> int:
    """Everything one student's fine-tuning on one task costs: every round, grid point and fine-tuning seed."""
    epochs = spec.points.epochs

    def price(batch: int, stage: Stage) -> int:
        steps = stage.steps(full_steps(data, batch=batch, epochs=epochs))
        return job_flop(shape, data, batch=batch, epochs=epochs, steps=steps)

    return search_flop(spec, len(data.train), price)


def search_flop(spec: GlueSpec, examples: int, price: Callable[[int, Stage], int]) -> int:
    """The sum over a search on so many training examples; `price` is one fine-tuning's, by batch and round.

    Which points survive a round is not known beforehand; the dearest are assumed to, which only rounding tells apart.
    """
    total, remaining, done = 0, len(points(spec)), 0.0
    for stage in stages(spec, examples):
        if stage.share > done:
            prices = sorted((price(batch, stage) for _, batch in points(spec)), reverse=True)
            total += sum(prices[:remaining]) * len(spec.seeds)
        remaining, done = min(remaining, stage.keep), stage.share
    return total


@dataclass(frozen=True)
class GluePlan:
    """What a study will fine-tune on. `flop` and `dropped` are {task: price of one student, the dearest}."""

    spec: GlueSpec
    data: dict[str, TaskData]
    length: int
    flop: dict[str, int]
    dropped: dict[str, int]

    @property
    def notes(self) -> list[str]:
        """What a reader of the plan or of the scores must know."""
        found = []
        if self.dropped:
            listed = ", ".join(f"{task} ({format_amount(flop, Unit.FLOP)})" for task, flop in self.dropped.items())
            found.append(
                f"GLUE is capped at {format_amount(self.spec.cap or 0, Unit.FLOP)} per student: tasks were taken cheapest "
                f"first, for every arm alike, and these did not fit: {listed}"
            )
        if self.spec.select_on == "validation":
            found.append(
                "GLUE grid points are chosen on the split that is reported, as in the paper: the scores are optimistic"
            )
        if self.spec.train_examples is not None:
            cut = [
                f"{name} ({t.available:,})" for name, t in self.data.items() if t.available > self.spec.train_examples
            ]
            if cut:
                found.append(f"GLUE train splits are cut to {self.spec.train_examples:,} examples: {', '.join(cut)}")
        if self.length < self.spec.length:
            found.append(f"GLUE examples are cut at {self.length} tokens: the students read no more")
        return found


def prepare(
    spec: GlueSpec, tokenizer: PreTrainedTokenizerBase, *, tokenizer_fingerprint: str, shapes: list[Shape],
    others: list[Shape],
) -> GluePlan:  # fmt: skip
    """Data and prices for students of these shapes; `others` are fine-tuned too, but do not count for the cap.

    Raises:
        ConfigError: not even the cheapest task fits under the cap.
        DataError: the data cannot be had, or is not as it must be.
    """
    longest = min(shape.max_length for shape in [*shapes, *others])
    data = glue.prepare(spec, tokenizer, tokenizer_fingerprint=tokenizer_fingerprint, longest=longest)
    return plan(spec, data, shapes, longest=longest)


def plan(spec: GlueSpec, data: Mapping[str, TaskData], shapes: list[Shape], *, longest: int) -> GluePlan:
    """Price every task at the dearest of the shapes, and keep what fits under the cap; see `capped`."""
    prices = {name: max(task_flop(shape, task, spec) for shape in shapes) for name, task in data.items()}
    return capped(spec, data, prices, length=min(spec.length, longest))


def capped(spec: GlueSpec, data: Mapping[str, TaskData], prices: Mapping[str, int], *, length: int) -> GluePlan:
    """The cheapest tasks that fit under the cap together: a dearer one is never taken in place of a cheaper one.

    Raises:
        ConfigError: not even the cheapest task fits.
    """
    kept = fitting(prices, spec.cap)
    if not kept:
        raise too_low(spec, prices)
    return GluePlan(
        spec=spec, data={n: t for n, t in data.items() if n in kept}, length=length,
        flop={n: prices[n] for n in data if n in kept}, dropped={n: prices[n] for n in data if n not in kept},
    )  # fmt: skip


def fitting(prices: Mapping[str, int], cap: int | None) -> list[str]:
    """The tasks, cheapest first, that cost no more than the cap together."""
    kept: list[str] = []
    spent = 0
    for name in sorted(prices, key=lambda n: (prices[n], n)):
        spent += prices[name]
        if cap is not None and spent > cap:
            break
        kept.append(name)
    return kept


def too_low(spec: GlueSpec, prices: Mapping[str, int], *, costs: str = "costs") -> ConfigError:
    """The error for a cap under which not even the cheapest task fits."""
    cheapest = min(prices, key=lambda n: prices[n])
    return ConfigError(
        f"evaluation.glue.max_flop {spec.max_flop}",
        rule=f"the cheapest task, {cheapest}, {costs} {format_amount(prices[cheapest], Unit.FLOP)} per student",
        remedy="raise the cap, or choose a smaller grid, fewer seeds or fewer train_examples",
    )


def decided_by(plan: GluePlan, main: str) -> None:
    """Refuse a plan whose cap drops the task that a study is decided by.

    Raises:
        ConfigError: it does.
    """
    if main.startswith("glue.") and main.removeprefix("glue.") in plan.dropped:
        raise ConfigError(
            f"evaluation.main {main}", rule=f"its task does not fit under evaluation.glue.max_flop {plan.spec.max_flop}",
            remedy="raise the cap, or decide by another score",
        )  # fmt: skip


def plan_notes(plan: GluePlan, study: StudySpec) -> list[str]:
    """What the plan of a study says of its GLUE block before anything is spent."""
    found = list(plan.notes)
    if len(study.seeds) < 2 and len(study.arms) > 1:
        more = " (fine-tuning seeds do not replace them)" if len(plan.spec.seeds) > 1 else ""
        found.append(f"one pretraining seed gives no interval for GLUE: arms can be shown, not told apart{more}")
    return found
