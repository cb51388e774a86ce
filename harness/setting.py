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

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from harness.data.choices import ChoiceData
    from harness.data.corpus import Corpus
    from harness.data.domains import Domain
    from harness.data.glue_price import GluePlan
    from harness.data.probes import ProbeData
    from harness.meters.base import Meter
    from harness.meters.teacher_cache import CacheMeter
    from harness.models.teacher import TeacherInfo
    from harness.objectives.base import StepSize
    from harness.objectives.composition import Plan

# What an arm may owe before its first step, in words.
OWED = {Account.TEACHER_TRAINING: "the teacher's training", Account.TUNING: "the arm's tuning"}


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

    def analytic_meters(self, plan: Plan, cache: CacheMeter | None = None) -> list[Meter]:
        """What counts this arm's steps. Without `cache`, of a teacher that is remembered, a step of new samples only."""
        from harness.meters.flops import FlopMeter
        from harness.meters.tokens import TokenMeter

        teacher = self.teacher.shape if self.teacher else None
        tokens = TokenMeter(self.size)
        if not self.remembers(plan):
            return [FlopMeter(plan, student=self.shape, teacher=teacher, size=self.size), tokens]
        steps = FlopMeter(plan, student=self.shape, teacher=None, size=self.size)
        return [steps, tokens, cache or self.cache_meter(plan, fresh=lambda: self.size.sequences)]

    def remembers(self, plan: Plan) -> bool:
        """True where the teacher's signals are read from a cache."""
        return self.study.speed.teacher_cache is not None and self.teacher is not None and plan.needs_teacher

    def cache_meter(self, plan: Plan, *, fresh: Callable[[], int], seconds: float | None = None) -> CacheMeter:
        """Charges the new samples of each step, this arm's share of them; see `CacheMeter`."""
        from harness.meters.teacher_cache import CacheMeter

        policy = self.study.accounting.teacher_cache
        shared_by = 1 if isinstance(policy, str) else policy.amortised_over
        return CacheMeter(flop=self.sample_flop(plan), fresh=fresh, shared_by=shared_by, seconds=seconds)

    def sample_flop(self, plan: Plan) -> int:
        """What asking the teacher about one sequence costs."""
        assert self.teacher is not None
        size = self.size
        return plan.teacher_needs(0).forward_flops(
            self.teacher.shape, sequences=1, length=size.length, masked=size.masked // size.sequences
        )  # fmt: skip

    def upfront(self) -> list[Charge]:
        """What this arm owes before its first step, charged or only reported; see `harness.owed`."""
        from harness.owed import upfront

        return upfront(self.study, self.teacher, tuning=self.arm.tuning_cost, arm=self.arm.name)

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
    tell: Callable[[str], None] | None = None

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
    def choices(self) -> dict[str, ChoiceData]:
        """Every multiple-choice probe the study asks for, by task; DataError where the corpus cannot make it."""
        spec = self.study.evaluation.choices
        if spec is None:
            return {}
        from harness.data.choices import build_choices

        length = min(self.study.data.block_length, *(arm.shape.max_length for arm in self.arms.values()))
        return {
            task: build_choices(task, self.corpus, self.tokenizer, examples=spec.examples, max_length=length)
            for task in spec.tasks
        }

    @cached_property
    def glue(self) -> GluePlan | None:
        """What the study fine-tunes on, priced and capped; ConfigError or DataError where that cannot be.

        Lengths and prices are those of the arms' students, so that every arm gets the same tasks.
        """
        spec = self.study.evaluation.glue
        if spec is None:
            return None
        from harness.data import glue_price

        teachers = [arm.teacher.shape for arm in self.arms.values() if arm.teacher is not None]
        found = glue_price.prepare(
            spec, self.tokenizer, tokenizer_fingerprint=self.tokenizer_fingerprint,
            shapes=list(dict.fromkeys(arm.shape for arm in self.arms.values())),
            others=teachers if "teacher" in spec.references else [],
        )  # fmt: skip
        glue_price.decided_by(found, self.study.evaluation.main)
        return found

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """Every domain the study is evaluated on, by label; ConfigError or DataError where one cannot be had."""
        from harness.data.domains import prepare

        return prepare(self.study.evaluation, self.corpus, tell=self.tell)

    @property
    def predicted_per_block(self) -> int:
        """Masked positions, or next tokens, of every block: a constant, so that every step costs the same."""
        from harness.data.next_token import predicted_count

        length = self.study.data.block_length
        return predicted_count(length) if self.study.causal else self.study.data.masking.count(length)

    @property
    def readout_blocks(self) -> int:
        """Train blocks that the read-out learns from: no more than hold all the positions its steps take."""
        spec = self.study.evaluation.readout
        assert spec is not None
        needed = -(-spec.steps * spec.positions // self.predicted_per_block)
        return min(spec.blocks, needed) if self.study.causal else spec.blocks

    @cached_property
    def vocab(self) -> int:
        return len(self.tokenizer)

    @cached_property
    def arms(self) -> dict[str, ArmSetting]:
        return {arm.name: self.arm(arm) for arm in self.study.arms}

    def arm(self, arm: ArmSpec) -> ArmSetting:
        from harness.models.initialise import adopt, chosen_layers
        from harness.models.shapes import shape_of
        from harness.models.student import student_config
        from harness.objectives.base import StepSize

        study = self.study.for_arm(arm)
        config = student_config(
            study.student, vocab=self.vocab, special=self.special, block_length=study.data.block_length
        )
        teacher = self.teacher(study)
        if (
            study.student.init_from_teacher is not None
            and teacher is not None
            and teacher.shape.family == config.model_type
        ):
            adopt(config, teacher.config)
        length = study.data.block_length
        masked = study.batch.sequences * self.predicted_per_block
        setting = ArmSetting(
            arm=arm, study=study, config=config, shape=shape_of(config.to_dict()),
            teacher=teacher, size=StepSize(study.batch.sequences, length, masked),
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
        if setting.remembers(plan):
            self._check_cache(setting, plan)
        if study.student.untrained_top == "drop" and plan.trained_layers(setting.shape) == 0:
            raise ConfigError(
                f"arm {arm.name}: student.untrained_top = drop", rule="no layer of this student is trained whole",
                remedy="add a layer, or keep the top",
            )  # fmt: skip
        ledger = setting.ledger()
        first = [charge for meter in setting.analytic_meters(plan) for charge in meter.next_step(0)]
        owed = setting.upfront()
        self._check_teachers_hardware(setting)
        if study.limit.unit.deterministic and not ledger.affords([*owed, *first]):
            debts = [f"{ledger.price([each]):.4g} for {OWED[each.account]}" for each in owed if ledger.price([each])]
            debt = f" after {' and '.join(debts)}" if debts else ""
            raise ConfigError(
                f"budget {study.limit.limit} {study.limit.unit} for arm {arm.name}",
                rule=f"one step costs {ledger.price(first)} {study.limit.unit}{debt}",
                remedy="raise the budget or lower batch.sequences",
            )
        return setting

    def _check_teachers_hardware(self, arm: ArmSetting) -> None:
        """Raise ConfigError where a measured budget would be charged with the time of other devices than these."""
        from harness.hardware import device_names
        from harness.owed import measured_on

        unit = arm.study.limit.unit
        if arm.teacher is None or Account.TEACHER_TRAINING not in arm.study.charged:
            return
        there = measured_on(arm.study, arm.teacher, unit)
        if there is not None and there != device_names():
            raise ConfigError(
                f"arm {arm.arm.name}: its teacher was trained on {' + '.join(there)}, not on {' + '.join(device_names())}",
                rule=f"a {unit.value} of one device is no {unit.value} of another",
                remedy="say what its training would have taken here in teacher.training_cost, or give a budget in FLOPs",
            )

    def _check_cache(self, arm: ArmSetting, plan: Plan) -> None:
        """Raise ConfigError where this arm's teacher cannot be remembered."""
        from harness.teacher_cache.content import Content, refuse

        assert arm.teacher is not None
        assert arm.study.teacher is not None
        assert arm.study.speed.teacher_cache is not None
        if arm.study.teacher.dropout:
            raise refuse(
                arm.arm.name, f"its teacher has dropout {arm.study.teacher.dropout:g} and never answers the same"
            )
        if not arm.study.limit.unit.deterministic and not arm.shape.causal and arm.study.data.mask_epochs is None:
            raise refuse(
                arm.arm.name, "a measured budget does not tell how many samples it buys, and masks never come again"
            )
        Content.of(plan, arm.teacher.shape, arm.size, arm.study.speed.teacher_cache, arm=arm.arm.name)

    def teacher(self, study: StudySpec) -> TeacherInfo | None:
        """The teacher's facts, checked against tokenizer and block length; its weights stay on disk."""
        if study.teacher is None:
            return None
        from harness.data.tokenizer import load_tokenizer
        from harness.models.student import MIN_POSITIONS, student_shape
        from harness.models.teacher import inspect, resolve, weights_fingerprint
        from harness.objectives.base import opposite_teacher

        info = inspect(study.teacher.path)
        wanted = study.teacher.weights
        if wanted is not None and (found := weights_fingerprint(study.teacher.path)) != wanted:
            raise TeacherError(
                f"teacher {info.path} has weights {found}", rule=f"teacher.weights says {wanted}",
                remedy="restore its files, or change teacher.weights",
            )  # fmt: skip
        if info.shape.causal != study.causal:
            student = student_shape(study.student, vocab=self.vocab, special=self.special, block_length=MIN_POSITIONS)
            raise opposite_teacher(student, info.shape, name=info.path)
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


def prepare(
    study: StudySpec, ds_config: DsConfig, *, world: int, tell: Callable[[str], None] | None = None, glue: bool = True
) -> Setting:
    """Find and check everything a study names; builds or reuses the tokenised corpus. Without `glue`, GLUE is left unread.

    Raises:
        ConfigError, DataError, TeacherError: as their names say; nothing has been spent.
    """
    from harness.data.corpus import prepare as prepare_corpus
    from harness.data.text_bytes import check as check_offsets
    from harness.data.tokenizer import load_tokenizer, require_mask, special_ids
    from harness.objectives.composition import parse

    for arm in study.arms:
        parse(arm.objective)
    tokenizer, fingerprint = load_tokenizer(study.data.tokenizer)
    special = special_ids(tokenizer)
    if study.causal:
        check_offsets(tokenizer, study.data.tokenizer)
    else:
        require_mask(special, study.data.tokenizer)
    corpus = prepare_corpus(study.data, vocab_limit=len(tokenizer), tell=tell)
    setting = Setting(
        study=study, ds_config=ds_config, tokenizer=tokenizer, tokenizer_fingerprint=fingerprint, corpus=corpus, world=world,
        tell=tell, special={"pad": special.pad, "cls": special.cls, "sep": special.sep, "mask": special.mask},
    )  # fmt: skip
    _ = setting.arms, setting.probes, setting.choices, setting.domains, setting.glue if glue else None
    return setting
