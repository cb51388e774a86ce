"""What judging costs: closed-form FLOPs of everything a study evaluates, while it trains and afterwards.

The same formulas the evaluations book for themselves, at real lengths where the corpus is at hand and at the
longest where it is not; see `harness.plan.glue` for GLUE.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.data.sources import WHOLE_TRAIN
from harness.models.shapes import Shape

if TYPE_CHECKING:
    from harness.objectives.composition import Plan
    from harness.plan.outline import Sketch
    from harness.setting import ArmSetting


@dataclass(frozen=True)
class Judging:
    """FLOPs of one model's evaluation by how they run: frozen forwards, heads trained, fine-tuning, GLUE."""

    forward: int = 0
    head: int = 0
    tuning: int = 0
    glue: int = 0

    @property
    def flop(self) -> int:
        return self.forward + self.head + self.tuning + self.glue

    def __add__(self, other: Judging) -> Judging:
        return Judging(
            self.forward + other.forward, self.head + other.head, self.tuning + other.tuning, self.glue + other.glue
        )


@dataclass(frozen=True)
class Evaluation:
    """before: vouching for the teacher; during: validation along the curve; after: item by item."""

    before: Judging = Judging()
    during: Judging = Judging()
    after: dict[str, Judging] = field(default_factory=dict)

    @property
    def in_training(self) -> Judging:
        return self.before + self.during

    @property
    def afterwards(self) -> Judging:
        return sum(self.after.values(), start=Judging())

    @property
    def flop(self) -> int:
        return (self.in_training + self.afterwards).flop


def of_trial(found: Sketch, arm: ArmSetting, plan: Plan) -> Evaluation:
    """Everything one trial of this arm is judged by."""
    from harness.evaluate.vouch import BLOCKS

    spec = found.study.evaluation
    before = during = Judging()
    if arm.teacher is not None:
        blocks = _at_most(BLOCKS, found.evaluation_blocks["validation"])
        before = _own_head(found, arm.teacher.shape, blocks) + _own_head(found, arm.shape, blocks)
    if plan.trains_head:
        blocks = _at_most(spec.mlm_blocks, found.evaluation_blocks["validation"]) // found.world * found.world
        during = _own_head(found, arm.shape, blocks * spec.curve_points)
    return Evaluation(before, during, items(found, exported(arm, plan), curve=True))


def exported(arm: ArmSetting, plan: Plan) -> Shape:
    """The shape that is evaluated: without the layers that `untrained_top: drop` leaves out."""
    if arm.study.student.untrained_top != "drop":
        return arm.shape
    kept = plan.trained_layers(arm.shape)
    return replace(arm.shape, layers=kept, windows=arm.shape.windows[:kept])


def of_references(found: Sketch) -> dict[str, Evaluation]:
    """The untrained student and the teacher, judged once for the whole study."""
    first = next(iter(found.arms.values()))
    glue = found.study.evaluation.glue
    wanted: list[str] = list(glue.references) if glue is not None else []
    references = {"untrained": first.shape}
    teacher = next((arm.teacher for arm in found.arms.values() if arm.teacher is not None), None)
    if teacher is not None:
        references["teacher"] = teacher.shape
    return {
        name: Evaluation(after=items(found, shape, curve=False, glue=name in wanted))
        for name, shape in references.items()
    }


def items(found: Sketch, shape: Shape, *, curve: bool, glue: bool = True) -> dict[str, Judging]:
    """Every score of one model, by the name of its item."""
    spec = found.study.evaluation
    judged = _at_most(spec.mlm_blocks, found.evaluation_blocks[spec.split])
    wanted = {"mlm": _own_head(found, shape, judged)}
    points = spec.curve_points if curve and spec.readout is not None and spec.readout.on_curve else 0
    if spec.readout is not None:
        each = [_readout(found, shape, spec.readout, final=False)] * points
        wanted["readout"] = sum(each, start=_readout(found, shape, spec.readout, final=True))
    if spec.probes is not None:
        for task in spec.probes.tasks:
            wanted[f"probe.{task}"] = Judging(tuning=_probe(found, shape, task, spec.probes))
    if spec.choices is not None:
        for task in spec.choices.tasks:
            wanted[f"choice.{task}"] = Judging(forward=_choices(found, shape, task, spec.choices))
    if spec.domains:
        wanted["domains"] = sum([_all_domains(found, shape)] * (1 + points), start=Judging())
    if found.glue is not None and glue:
        wanted["glue"] = Judging(glue=found.glue.flop(shape))
    return wanted


def _at_most(wanted: int, available: int | None) -> int:
    return wanted if available is None else min(wanted, available)


def _own_head(found: Sketch, shape: Shape, blocks: int) -> Judging:
    from harness.models.signals import Needs

    length = found.study.data.block_length
    masked = blocks * found.setting.predicted_per_block
    return Judging(Needs(logits="masked").forward_flops(shape, sequences=blocks, length=length, masked=masked))


def _readout(found: Sketch, shape: Shape, spec: Any, *, final: bool) -> Judging:
    """A read-out at a trial's end, where layers compete on validation blocks; or at a point of its curve, of one layer."""
    from harness.evaluate.readout import layers_tried
    from harness.models.signals import Needs

    length, per_block = found.study.data.block_length, found.setting.predicted_per_block
    train = _at_most(found.setting.readout_blocks, found.evaluation_blocks[WHOLE_TRAIN])
    judged = sum(
        _at_most(found.study.evaluation.mlm_blocks, found.evaluation_blocks[split])
        for split in (("validation", found.study.evaluation.split) if final else (found.study.evaluation.split,))
    )
    body = Needs(states=frozenset({shape.layers}))
    forward = body.forward_flops(shape, sequences=train + judged, length=length, masked=0)
    tried = len(layers_tried(shape.layers)) if final else 1
    forward += tried * shape.head_flops(judged * per_block)
    return Judging(forward=forward, head=tried * 3 * shape.head_flops(spec.steps * spec.positions))


def _all_domains(found: Sketch, shape: Shape) -> Judging:
    """The sources of the mixture and the others; as many blocks as were asked for where nobody knows how many there are."""
    from harness.evaluate import domains

    spec = found.study.evaluation
    labels = [
        *(s.label for s in found.study.data.sources),
        *(d.label for d in spec.domains_beside(found.study.data.sources)),
    ]
    known = {k: len(d.blocks) for k, d in found.setting.domains.items()} if found.complete else {}
    blocks = sum(_at_most(spec.mlm_blocks, known.get(label)) for label in labels)
    predicted = blocks * found.setting.predicted_per_block
    return Judging(domains.flops(shape, blocks=blocks, length=found.study.data.block_length, predicted=predicted))


def _probe(found: Sketch, shape: Shape, task: str, spec: Any) -> int:
    from harness.models.signals import Needs

    if found.complete:
        from harness.evaluate import probes

        return probes.flops(_Judged(shape), found.setting.probes[task], spec=spec)  # type: ignore[arg-type]
    body = Needs(states=frozenset({shape.layers}))
    examples = 3 * spec.train_examples + 2 * spec.test_examples
    return spec.epochs * body.forward_flops(shape, sequences=examples, length=found.study.data.block_length, masked=0)


def _choices(found: Sketch, shape: Shape, task: str, spec: Any) -> int:
    if found.complete:
        from harness.evaluate import choices

        return choices.flops(_Judged(shape), found.setting.choices[task])  # type: ignore[arg-type]
    from harness.data.choices import CHOICES
    from harness.models.signals import Needs

    rows, length = spec.examples * CHOICES, found.study.data.block_length
    body = Needs(states=frozenset({shape.layers})).forward_flops(shape, sequences=rows, length=length, masked=0)
    return body + shape.head_flops(rows * length)


@dataclass(frozen=True)
class _Judged:
    """What closed forms of evaluations ask of a subject."""

    shape: Shape
