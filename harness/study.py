"""A study: arms that share one budget, one stream of data, one schedule and one evaluation.

Read from YAML and validated before anything is spent. The study owns the science; a ds_config owns
the engine. Whatever is not said under `arms` is shared, so arms differ in their objective alone
unless they declare another difference under `differs`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.budget import Account, Budget
from harness.errors import ConfigError

STUDIES = Path(__file__).parent / "studies"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

# Accounts whose cost is known before it is spent; the others are always reported.
CHARGEABLE = frozenset({Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE, Account.TEACHER_TRAINING})

# The blocks an arm may depart from, if it declares so; everything else is what makes arms comparable.
MAY_DIFFER = ("student", "optimizer", "schedule", "teacher", "batch")

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Spec(BaseModel):
    """A frozen block of a study file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceSpec(Spec):
    """One corpus: `python-docs`, a local folder or file (parquet, jsonl, text), or a Hub dataset."""

    path: str = "python-docs"
    name: Annotated[str, Field(pattern=NAME)] | None = None
    config: str | None = None
    text_column: str = "text"
    weight: Annotated[float, Field(gt=0)] = 1.0

    @property
    def label(self) -> str:
        """The source's name in records and probes."""
        return self.name or Path(self.path).name


class MaskingSpec(Spec):
    """BERT's corruption: `fraction` of each block's tokens, of them 80/10/10 mask/random/keep."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    replace: Fraction = 0.8
    random: Fraction = 0.1

    @model_validator(mode="after")
    def _shares(self) -> MaskingSpec:
        if self.replace + self.random > 1:
            raise ValueError("replace + random must not exceed 1; the rest of the positions keeps its token")
        return self

    def count(self, block_length: int) -> int:
        """Masked positions in every block: a constant, so that every step costs the same."""
        return max(1, round(self.fraction * block_length))


class DataSpec(Spec):
    """What is read, how it is cut into blocks, and how blocks are masked."""

    sources: Annotated[list[SourceSpec], Field(min_length=1)] = Field(default_factory=lambda: [SourceSpec()])
    tokenizer: str = "builtin"
    block_length: Annotated[int, Field(ge=8)] = 128
    masking: MaskingSpec = MaskingSpec()
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.10
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.06
    limit_tokens: Positive | None = None


class ModelSpec(Spec):
    """A student (or a teacher to be trained) described by its shape; built from a transformers config.

    `init_from_teacher` starts from teacher layers (a list, one per student layer, or every k-th) and the
    teacher's embeddings and head. `untrained_top: drop` exports the student without the layers above the
    last state its objective trains.
    """

    family: Literal["bert", "roberta", "roberta-prelayernorm", "distilbert", "electra", "modernbert"] = "bert"
    layers: Positive = 6
    hidden: Positive = 768
    heads: Positive = 12
    intermediate: Positive | None = None
    init_std: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    init_from_teacher: list[Positive] | Literal["every_kth"] | None = None
    untrained_top: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSpec:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by heads {self.heads}")
        return self


class TeacherSpec(Spec):
    """A frozen teacher: `builtin`, a local folder in Hugging Face layout, or a Hub name.

    `trained_on` says how the teacher's training text relates to the study's. `dropout` above 0 is a
    `paper_code` variant: the published teacher was never put into eval mode. `allow_worse` admits a teacher
    whose MLM loss is above the untrained student's.
    """

    path: str = "builtin"
    trained_on: Literal["same", "superset", "disjoint", "unknown"] = "unknown"
    training_flop: Annotated[float, Field(ge=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    allow_worse: bool = False


class OptimizerSpec(Spec):
    """AdamW; weight decay touches matrices only, never biases and norms; `clip` bounds the global gradient norm."""

    lr: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] | None = 1.0


class ScheduleSpec(Spec):
    """Learning rate over the fraction of the budget spent: linear warm-up, then decay."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    decay: Literal["linear", "cosine", "constant"] = "linear"


class BatchSpec(Spec):
    """The global batch of one optimizer step; the engine's micro-batch must divide it."""

    sequences: Positive = 256


class AccountingSpec(Spec):
    """Which accounts are charged to the budget; all of them are reported."""

    charged: list[Account] = sorted([Account.STUDENT_STEP, Account.TEACHER_FORWARD, Account.OBJECTIVE])

    @field_validator("charged")
    @classmethod
    def _chargeable(cls, accounts: list[Account]) -> list[Account]:
        if Account.STUDENT_STEP not in accounts:
            raise ValueError("STUDENT_STEP must be charged, or no run would ever end")
        refused = sorted(set(accounts) - CHARGEABLE)
        if refused:
            raise ValueError(f"{refused[0]} is reported, not charged; chargeable are {', '.join(sorted(CHARGEABLE))}")
        return sorted(set(accounts))


class ReadoutSpec(Spec):
    """A fresh MLM head trained for a fixed number of uncharged steps on every arm's frozen body."""

    steps: Positive = 150
    positions: Positive = 320
    blocks: Positive = 1500
    lr: Annotated[float, Field(gt=0)] = 3e-3
    on_curve: bool = False


class ProbeSpec(Spec):
    """Built-in classification tasks, fine-tuned by one recipe for all arms."""

    tasks: list[str] = []
    train_examples: Positive = 1200
    test_examples: Positive = 800
    epochs: Positive = 2
    batch: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 1e-3


class EvaluationSpec(Spec):
    """What every student is measured by, which score decides the verdict, and what difference matters (`margin`)."""

    main: str = "readout.loss"
    margin: Annotated[float, Field(gt=0)] | None = None
    curve_points: Annotated[int, Field(ge=0)] = 4
    mlm_blocks: Positive = 512
    readout: ReadoutSpec | None = ReadoutSpec()
    probes: ProbeSpec | None = None

    def scores(self) -> list[str]:
        """Every score this evaluation makes; `main` is one of them."""
        found = ["mlm.loss", "mlm.accuracy"]
        if self.readout is not None:
            found += ["readout.loss", "readout.accuracy"]
        if self.probes is not None and self.probes.tasks:
            found += [*(f"probe.{task}" for task in self.probes.tasks), "probe.mean"]
        return found


class ArmSpec(Spec):
    """One contestant. `differs` declares every departure from the shared recipe, e.g. optimizer.lr."""

    name: Annotated[str, Field(pattern=NAME)]
    objective: str | dict[str, Any] = "mlm"
    differs: dict[str, Any] = {}

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
    arms: Annotated[list[ArmSpec], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [1]
    baseline: str | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoints: Annotated[int, Field(ge=0)] = 2

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        names = [arm.name for arm in self.arms]
        for what, values in (("arm", names), ("seed", self.seeds)):
            twice = sorted({v for v in values if values.count(v) > 1}, key=str)
            if twice:
                raise ValueError(f"{what} {twice[0]!r} is listed twice")
        if self.evaluation.main not in self.evaluation.scores():
            raise ValueError(
                f"evaluation.main {self.evaluation.main!r} is not a score this study makes: "
                f"{', '.join(self.evaluation.scores())}"
            )
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is not one of the arms {', '.join(names)}")
        return self

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
        for key, value in arm.differs.items():
            if key.split(".")[0] not in MAY_DIFFER:
                raise ConfigError(
                    f"arms.{arm.name}.differs.{key}",
                    rule="an arm may differ in student, teacher, optimizer, schedule or batch only",
                    remedy="budget, data, evaluation and accounting are shared, or arms would not be comparable",
                )
            _assign(tree, key, value)
        return _validated(tree, where=f"arm {arm.name}")

    def science(self) -> dict[str, Any]:
        """What two runs must share to be compared: all but the list of arms, seeds and evaluations."""
        tree = self.model_dump(mode="json")
        for key in ("arms", "seeds", "baseline", "evaluation", "question", "checkpoints"):
            tree.pop(key)
        # The same limit however it is spelt; and a permission is no part of what was computed.
        tree["budget"] = [self.limit.limit, self.limit.unit.value]
        if tree["teacher"]:
            tree["teacher"].pop("allow_worse", None)
        return tree

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.science(), sort_keys=True).encode()).hexdigest()[:16]


def names() -> list[str]:
    """The studies that ship with the harness."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load(
    study: str,
    *,
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
    budget: str | None = None,
    assignments: list[str] | None = None,
) -> StudySpec:
    """Read a named study or a YAML file, apply the command line's changes, and validate the result.

    Raises:
        ConfigError: unknown study, arm, key or unit; malformed YAML; a value outside its range.
    """
    tree = _read(study)
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set {assignment}", rule="an assignment is KEY=VALUE", remedy="for example --set optimizer.lr=1e-3"
            )
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {assignment}", rule="the value is not YAML", remedy="quote it") from error
        _assign(tree, key, _number(value))
    if budget is not None:
        tree["budget"] = budget
    if seeds is not None:
        tree["seeds"] = seeds
    spec = validate(tree, where=study)
    if arms is not None:
        known = {arm.name: arm for arm in spec.arms}
        for name in arms:
            if name not in known:
                raise ConfigError(
                    f"arm {name!r}", rule=f"{study} has the arms {', '.join(known)}", remedy="pick from those"
                )
        baseline = spec.baseline if spec.baseline in arms else None
        spec = validate(
            {
                **spec.model_dump(mode="json"),
                "arms": [known[n].model_dump(mode="json") for n in arms],
                "baseline": baseline,
            },
            where=study,
        )
    return spec


def validate(tree: Any, *, where: str) -> StudySpec:
    """Turn plain YAML into a StudySpec, every arm's own view included; the first offending key is named."""
    spec = _validated(tree, where=where)
    for arm in spec.arms:
        spec.for_arm(arm)
    return spec


def _validated(tree: Any, *, where: str) -> StudySpec:
    if not isinstance(tree, dict):
        raise ConfigError(
            f"study {where}", rule="a study file is a mapping of keys", remedy="see harness/studies/quickstart.yaml"
        )
    try:
        spec = StudySpec.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or "study"
        given = "" if isinstance(first.get("input"), dict) else f" = {first.get('input')!r}"
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        raise ConfigError(f"{path}{given}", rule=message, remedy=f"correct it in {where}") from None
    _ = spec.limit  # an unreadable budget fails here
    return spec


def _read(study: str) -> Any:
    path = Path(study)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"study {study!r}", rule="no such file", remedy="give a path that exists")
    else:
        path = STUDIES / f"{study}.yaml"
        if study not in names():
            raise ConfigError(
                f"study {study!r}", rule="unknown study", remedy=f"known are {', '.join(names())}, or a path to a .yaml"
            )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"study {study!r}", rule=f"malformed YAML: {error}", remedy="correct the file") from None
    return _numbers(copy.deepcopy(tree))


def _assign(tree: Any, key: str, value: Any) -> None:
    """Set a dotted key; list items by index, arms by name."""
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        node = _child(node, part, key)
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"key {key!r}", rule=f"{parents[-1]} holds a single value", remedy="set that key itself")


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, key)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise ConfigError(f"key {key!r}", rule=f"nothing lies below {part!r}", remedy="check the dotted path")


def _index(items: list[Any], part: str, key: str) -> int:
    for position, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == part:
            return position
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise ConfigError(f"key {key!r}", rule=f"{part!r} is not an item of that list", remedy="use its name or its index")


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 (no dot) as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and not value[0].isalpha() else value
        except (ValueError, IndexError):
            return value
    return value


def _numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(k): _numbers(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_numbers(v) for v in tree]
    return _number(tree)
