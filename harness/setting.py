"""Everything a study needs, found and checked before anything is spent; and what each arm will cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.budget import Account, Charge, Ledger
from harness.ds_config import DsConfig
from harness.errors import ConfigError, DataError, TeacherError
from harness.models.shapes import Shape
from harness.study import ArmSpec, StudySpec
from harness.units import Unit

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from harness.data.corpus import Corpus
    from harness.data.probes import ProbeData
    from harness.meters.base import Meter
    from harness.models.teacher import TeacherInfo
    from harness.objectives.base import StepSize
    from harness.objectives.composition import Plan


@dataclass
class ArmSetting:
    """One arm as it will be trained: its own view of the study, its student's config, its teacher."""

    arm: ArmSpec
    study: StudySpec
    config: PretrainedConfig
    shape: Shape
    teacher: TeacherInfo | None
    size: StepSize

    def plan(self) -> Plan:
        """A fresh objective with its learned parts (randomly initialised from the global generator)."""
        from harness.objectives.composition import Plan

        return Plan(self.arm.objective, student=self.shape, teacher=self.teacher.shape if self.teacher else None)

    def student(self, *, seed: int) -> PreTrainedModel:
        """The student before its first step: random weights of this seed, or the teacher's chosen layers."""
        from harness.models.initialise import chosen_layers, copy_layers
        from harness.models.student import build_student

        student = build_student(self.config, seed=seed)
        wanted = self.study.student.init_from_teacher
        if self.teacher is not None and wanted is not None:
            import torch

            from harness.models.teacher import Teacher

            teacher = Teacher(self.teacher, device=torch.device("cpu"), dtype=torch.float32)
            layers = chosen_layers(wanted, self.shape, self.teacher.shape)
            copy_layers(student, self.shape, teacher.family.model, self.teacher.shape, layers)
        return student

    def analytic_meters(self, plan: Plan) -> list[Meter]:
        from harness.meters.flops import FlopMeter
        from harness.meters.tokens import TokenMeter

        teacher = self.teacher.shape if self.teacher else None
        return [FlopMeter(plan, student=self.shape, teacher=teacher, size=self.size), TokenMeter(self.size)]

    def upfront(self) -> list[Charge]:
        """What an arm with a teacher owes for the teacher's training, known or not charged."""
        if self.teacher is None:
            return []
        assert self.study.teacher is not None
        flop = self.study.teacher.training_flop
        flop = self.teacher.training_flop if flop is None else flop
        if flop is None:
            if Account.TEACHER_TRAINING in self.study.charged:
                raise ConfigError(
                    f"arm {self.arm.name}: TEACHER_TRAINING is charged", rule="nobody knows what this teacher's training cost",
                    remedy="set teacher.training_flop, or do not charge it",
                )  # fmt: skip
            return []
        return [Charge(Account.TEACHER_TRAINING, round(flop), Unit.FLOP)]

    def ledger(self, **kwargs: Any) -> Ledger:
        return Ledger(self.study.limit, charged=self.study.charged, **kwargs)


@dataclass
class Setting:
    """A study with its data, tokenizer and teachers found."""

    study: StudySpec
    ds_config: DsConfig
    tokenizer: Any
    tokenizer_fingerprint: str
    special: dict[str, int]
    corpus: Corpus
    world: int

    @cached_property
    def probes(self) -> dict[str, ProbeData]:
        """Every probe the study asks for, by task; ConfigError or DataError where the corpus cannot make it."""
        spec = self.study.evaluation.probes
        if spec is None:
            return {}
        from harness.data.probes import build_probe

        length = min(self.study.data.block_length, *(arm.shape.max_length for arm in self.arms.values()))
        return {
            task: build_probe(
                task, self.corpus, self.tokenizer, train_examples=spec.train_examples,
                test_examples=spec.test_examples, max_length=length,
            )
            for task in spec.tasks
        }  # fmt: skip

    @cached_property
    def vocab(self) -> int:
        return len(self.tokenizer)

    @cached_property
    def arms(self) -> dict[str, ArmSetting]:
        return {arm.name: self.arm(arm) for arm in self.study.arms}

    def arm(self, arm: ArmSpec) -> ArmSetting:
        from harness.models.initialise import chosen_layers
        from harness.models.shapes import shape_of
        from harness.models.student import student_config
        from harness.objectives.base import StepSize

        study = self.study.for_arm(arm)
        config = student_config(
            study.student, vocab=self.vocab, special=self.special, block_length=study.data.block_length
        )
        length = study.data.block_length
        masked = study.batch.sequences * study.data.masking.count(length)
        setting = ArmSetting(
            arm=arm, study=study, config=config, shape=shape_of(config.to_dict()),
            teacher=self.teacher(study), size=StepSize(study.batch.sequences, length, masked),
        )  # fmt: skip
        self.ds_config.micro_batch(sequences=study.batch.sequences, world=self.world)
        plan = setting.plan()
        initial_layers = chosen_layers(
            study.student.init_from_teacher, setting.shape, setting.teacher and setting.teacher.shape
        )
        if not plan.needs_teacher and not initial_layers:
            setting.teacher = None
        if plan.compares_logits and setting.teacher is not None and setting.teacher.shape.vocab != self.vocab:
            raise TeacherError(
                f"teacher {setting.teacher.path} has {setting.teacher.shape.vocab} outputs",
                rule=f"the student has {self.vocab}: logits cannot be compared",
                remedy="use objectives without logits, or a teacher with the same vocabulary",
            )
        if study.student.untrained_top == "drop" and plan.trained_layers(setting.shape) == 0:
            raise ConfigError(
                f"arm {arm.name}: student.untrained_top = drop", rule="no layer of this student is trained whole",
                remedy="add a layer, or keep the top",
            )  # fmt: skip
        ledger = setting.ledger()
        first = [charge for meter in setting.analytic_meters(plan) for charge in meter.next_step(0)]
        owed = setting.upfront()
        if study.limit.unit.deterministic and not ledger.affords([*owed, *first]):
            debt = f" after {ledger.price(owed):.4g} for the teacher's training" if ledger.price(owed) else ""
            raise ConfigError(
                f"budget {study.limit.limit} {study.limit.unit} for arm {arm.name}",
                rule=f"one step costs {ledger.price(first)} {study.limit.unit}{debt}",
                remedy="raise the budget or lower batch.sequences",
            )
        return setting

    def teacher(self, study: StudySpec) -> TeacherInfo | None:
        """The teacher's facts, checked against tokenizer and block length; its weights stay on disk."""
        if study.teacher is None:
            return None
        from harness.data.tokenizer import load_tokenizer
        from harness.models.teacher import inspect, resolve

        info = inspect(study.teacher.path)
        try:
            _, fingerprint = load_tokenizer(str(resolve(study.teacher.path)))
        except DataError as error:
            raise TeacherError(
                f"teacher {info.path}", rule=f"no usable tokenizer beside it: {error}", remedy="give a complete folder"
            ) from None
        if fingerprint != self.tokenizer_fingerprint:
            raise TeacherError(
                f"teacher {info.path}",
                rule=f"its tokenizer is not {study.data.tokenizer}'s",
                remedy="set data.tokenizer to the teacher's",
            )
        if info.shape.vocab < self.vocab:
            raise TeacherError(
                f"teacher {info.path} has {info.shape.vocab} embeddings", rule=f"the tokenizer has {self.vocab} entries",
                remedy="use the tokenizer the teacher was trained with",
            )  # fmt: skip
        if study.teacher.trained_on == "disjoint" and info.provenance.get("corpus") == self.corpus.fingerprint:
            raise TeacherError(
                f"teacher {info.path}", rule="trained_on says disjoint, but its record names this very corpus",
                remedy="declare trained_on: same",
            )  # fmt: skip
        if info.shape.max_length < study.data.block_length:
            raise TeacherError(
                f"teacher {info.path} reads {info.shape.max_length} tokens", rule=f"blocks have {study.data.block_length}",
                remedy="lower data.block_length or choose another teacher",
            )  # fmt: skip
        return info


def prepare(study: StudySpec, ds_config: DsConfig, *, world: int, tell: Callable[[str], None] | None = None) -> Setting:
    """Find and check everything a study names; builds or reuses the tokenised corpus.

    Raises:
        ConfigError, DataError, TeacherError: as their names say; nothing has been spent.
    """
    from harness.data.corpus import prepare as prepare_corpus
    from harness.data.tokenizer import load_tokenizer, special_ids
    from harness.objectives.composition import parse

    if study.limit.unit not in (Unit.FLOP, Unit.TOKEN, Unit.GPU_SECOND):
        raise ConfigError(
            f"budget {study.budget!r}",
            rule=f"nothing here cuts arms in {study.limit.unit}s",
            remedy="use flop, tokens or gpu-hours",
        )
    for arm in study.arms:
        parse(arm.objective)
    tokenizer, fingerprint = load_tokenizer(study.data.tokenizer)
    special = special_ids(tokenizer)
    corpus = prepare_corpus(study.data, vocab_limit=len(tokenizer), tell=tell)
    setting = Setting(
        study=study, ds_config=ds_config, tokenizer=tokenizer, tokenizer_fingerprint=fingerprint, corpus=corpus, world=world,
        special={"pad": special.pad, "cls": special.cls, "sep": special.sep, "mask": special.mask},
    )  # fmt: skip
    _ = setting.arms, setting.probes
    return setting
