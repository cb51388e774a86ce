"""A study: arms that share one budget, one stream of data, one schedule and one evaluation.

Whatever is not said under `arms` is shared, so arms differ in their objective alone unless they declare
another difference under `differs`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from harness.budget import Account, Budget
from harness.errors import ConfigError
from harness.study.accounting import AccountingSpec, completed
from harness.study.data import DataSpec
from harness.study.evaluation import EvaluationSpec
from harness.study.keys import assign
from harness.study.models import ModelSpec, TeacherSpec
from harness.study.recipe import BatchSpec, OptimizerSpec, ScheduleSpec
from harness.study.spec import NAME, Positive, Spec, explained
from harness.study.speed import SpeedSpec

# The blocks an arm may depart from, if it declares so; everything else is what makes arms comparable.
MAY_DIFFER = ("student", "optimizer", "schedule", "teacher", "batch")
# What is said of a teacher's weights: an arm with another teacher inherits none of it.
FACTS_OF_A_TEACHER = ("weights", "trained_on", "training_flop", "training_cost")


class TuningSpec(Spec):
    """A search for an arm's settings: what all its trials cost, and how many there were."""

    cost: str | list[str]
    trials: Positive


# The tag decides which of the two a mistake is reported for.
Tuning = Annotated[
    Annotated[str, Tag("cost")] | Annotated[TuningSpec, Tag("search")],
    Discriminator(lambda value: "cost" if isinstance(value, str) else "search"),
]


class ArmSpec(Spec):
    """One contestant. `differs` declares every departure from the shared recipe, e.g. optimizer.lr.

    `tuning`: what was spent on finding this arm's settings, a quantity such as "3e14 flop", or
    {cost: "3e14 flop", trials: 5}, where cost may be a list that says it in several units. Once one arm counts trials, every arm must have had as many.
    """

    name: Annotated[str, Field(pattern=NAME)]
    objective: str | dict[str, Any] = "mlm"
    differs: dict[str, Any] = Field(default_factory=dict)
    tuning: Tuning | None = None

    @property
    def trials(self) -> int | None:
        """Settings that were tried for this arm; None where nobody counted."""
        return self.tuning.trials if isinstance(self.tuning, TuningSpec) else None

    @property
    def tuning_cost(self) -> list[str]:
        """Quantities, each in a unit of its own; none where nothing was told."""
        cost = self.tuning.cost if isinstance(self.tuning, TuningSpec) else self.tuning
        return [] if cost is None else [cost] if isinstance(cost, str) else cost

    @model_validator(mode="before")
    @classmethod
    def _undeclared(cls, tree: Any) -> Any:
        shared = sorted(set(tree) & set(MAY_DIFFER)) if isinstance(tree, dict) else []
        if shared:
            raise ValueError(
                f"{shared[0]} is shared by all arms; declare a departure as differs: {{{shared[0]}.<key>: <value>}}"
            )
        return tree


class StudySpec(Spec):
    """The whole study. Everything outside `arms` and `seeds` is the same object for every arm."""

    name: Annotated[str, Field(pattern=NAME)]
    question: str = ""
    budget: str
    accounting: AccountingSpec = AccountingSpec()
    data: DataSpec = DataSpec()
    student: ModelSpec = ModelSpec()
    teacher: TeacherSpec | None = None
    batch: BatchSpec = BatchSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    speed: SpeedSpec = SpeedSpec()
    arms: Annotated[list[ArmSpec], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = Field(
        default_factory=lambda: [1]
    )
    baseline: str | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoints: Annotated[int, Field(ge=0)] = 2
    controls: list[Literal["equal_tokens"]] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _accounting_by_unit(cls, tree: Any) -> Any:
        """What is charged when the study does not say so depends on the budget's unit."""
        if not isinstance(tree, dict) or not isinstance(tree.get("budget"), str):
            return tree
        block = tree.get("accounting")
        if block is not None and not isinstance(block, dict):
            return tree
        speed = tree.get("speed")
        cached = speed.get("teacher_cache") if isinstance(speed, dict) else getattr(speed, "teacher_cache", None)
        unit = Budget.parse(tree["budget"]).unit
        return {**tree, "accounting": completed(block, unit, cached=cached not in (None, False))}

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        self.accounting.check(self.limit.unit)
        for arm in self.arms:
            units = [Budget.parse(cost).unit for cost in arm.tuning_cost]
            if len(set(units)) < len(units):
                raise ValueError(f"arms.{arm.name}.tuning: two costs in one unit; say each unit once")
        self._tuned_alike()
        names = [arm.name for arm in self.arms]
        listed: list[Any]
        for what, listed in (("arm", names), ("seed", self.seeds)):
            twice = sorted({v for v in listed if listed.count(v) > 1}, key=str)
            if twice:
                raise ValueError(f"{what} {twice[0]!r} is listed twice")
        scores = self.evaluation.scores(causal=self.causal, sources=self.data.sources)
        if self.evaluation.main not in scores:
            raise ValueError(
                f"evaluation.main {self.evaluation.main!r} is not a score this study makes: {', '.join(scores)}"
            )
        if self.evaluation.choices is not None and not self.causal:
            raise ValueError(f"evaluation.choices: {self.student.family} gives no likelihood of a text; use probes")
        if self.teacher is not None and self.teacher.dropout and self.speed.overlap_teacher:
            raise ValueError("speed.overlap_teacher: a teacher with dropout would draw its numbers in another order")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is not one of the arms {', '.join(names)}")
        return self

    def _tuned_alike(self) -> None:
        """Settings may come out of a search when every arm was searched as hard: the winner is not the best tuned."""
        counted = next((arm for arm in self.arms if arm.trials is not None), None)
        for arm in self.arms:
            if counted is not None and arm.trials != counted.trials:
                had = "none that is counted" if arm.trials is None else arm.trials
                raise ValueError(
                    f"arms.{counted.name}.tuning has {counted.trials} trials, arms.{arm.name}.tuning {had}: "
                    "tune every arm as often, or tell the cost alone, and a rate of its own is a declared difference"
                )

    @property
    def causal(self) -> bool:
        """True when the students predict the next token; no study mixes the two kinds."""
        return self.student.causal

    @property
    def limit(self) -> Budget:
        return Budget.parse(self.budget)

    @property
    def charged(self) -> frozenset[Account]:
        return frozenset(self.accounting.charged)

    def for_arm(self, arm: ArmSpec) -> StudySpec:
        """The study as this arm sees it: the shared recipe with the arm's declared differences."""
        if not arm.differs:
            return self
        tree = self.model_dump(mode="json")
        own_teacher = arm.differs.get("teacher.path", tree["teacher"] and tree["teacher"]["path"])
        if tree["teacher"] and own_teacher != tree["teacher"]["path"]:
            tree["teacher"] = {k: v for k, v in tree["teacher"].items() if k not in FACTS_OF_A_TEACHER}
        for key, value in arm.differs.items():
            if key in MAY_DIFFER:
                raise ConfigError(
                    f"arms.{arm.name}.differs.{key}", rule="a block in its place would undo what else the study says there",
                    remedy=f"name what differs, one key at a time: {{{key}.<key>: <value>}}",
                )  # fmt: skip
            if key.split(".")[0] not in MAY_DIFFER:
                raise ConfigError(
                    f"arms.{arm.name}.differs.{key}",
                    rule="an arm may differ in student, teacher, optimizer, schedule or batch only",
                    remedy="budget, data, evaluation and accounting are shared, or arms would not be comparable",
                )
            assign(tree, key, value)
        seen = validated(tree, where=f"arm {arm.name}")
        if seen.causal != self.causal:
            raise ConfigError(
                f"arms.{arm.name}.differs: a {seen.student.family} student beside {self.student.family} ones",
                rule="a study's students are all causal or all masked: their losses are not of one kind",
                remedy="put them into two studies",
            )
        return seen

    def science(self) -> dict[str, Any]:
        """What two runs must share to be compared: all but the list of arms, seeds and evaluations."""
        tree = self.model_dump(mode="json")
        for key in ("arms", "seeds", "baseline", "evaluation", "question", "checkpoints", "controls"):
            tree.pop(key)
        # The same limit however it is spelt; and a permission is no part of what was computed.
        tree["budget"] = [self.limit.limit, self.limit.unit.value]
        if tree["teacher"]:
            tree["teacher"].pop("allow_worse", None)
        tree["accounting"].pop("grid_g_per_kwh")
        return tree

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.science(), sort_keys=True).encode()).hexdigest()[:16]


def validated(tree: Any, *, where: str) -> StudySpec:
    if not isinstance(tree, dict):
        raise ConfigError(
            f"study {where}", rule="a study file is a mapping of keys", remedy="see harness/studies/quickstart.yaml"
        )
    try:
        spec = StudySpec.model_validate(tree)
    except ValidationError as error:
        raise explained(error, where=where) from None
    _ = spec.limit  # an unreadable budget fails here
    return spec
