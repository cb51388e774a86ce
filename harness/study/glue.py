"""The GLUE block of a study: which tasks, which grid of recipes, and what the best of the grid is chosen by.

One recipe for every arm. The fine-tuning seeds are nested in the study's own seeds: they lower the noise of one
student's score and never stand in for another student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator

from harness.budget import Budget
from harness.errors import ConfigError
from harness.study.spec import Positive, Spec, explained
from harness.units import Unit

Rate = Annotated[float, Field(gt=0)]
# What a GLUE block or a recorded recipe says beside how one task is fine-tuned: which tasks, of whom, from where, at what price.
BESIDE_RECIPE = ("tasks", "references", "path", "max_flop", "asked")
NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


class GridSpec(Spec):
    """Every learning rate with every batch size, each trained for this many epochs."""

    lrs: Annotated[list[Rate], Field(min_length=1)]
    batches: Annotated[list[Positive], Field(min_length=1)]
    epochs: Positive

    @field_validator("lrs", "batches")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) != len(values):
            raise ValueError("a value is listed twice")
        return values


# The published grid (Bui et al., 2024), and one of two points that spans students of 2 to 12 layers.
PAPER = GridSpec(lrs=[1e-5, 3e-5, 5e-5, 8e-5], batches=[16, 32], epochs=5)
QUICK = GridSpec(lrs=[5e-5, 5e-4], batches=[32], epochs=3)

# The tag decides which of the two a mistake is reported for.
Grid = Annotated[
    Annotated[Literal["paper", "quick", "staged"], Tag("named")] | Annotated[GridSpec, Tag("own")],
    Discriminator(lambda value: "named" if isinstance(value, str) else "own"),
]


class GlueSpec(Spec):
    """GLUE fine-tuning, the same for every arm.

    `path` is a Hub name or a folder in its layout. `select_on: train` holds out a part of train to choose the grid
    point by, `validation` chooses by the split that is also reported, as the paper did. `held_out` is the most examples,
    never more than a tenth of train. `max_flop` caps what one student's fine-tuning may cost. `train_examples` cuts
    every task's train split before anything is held out.
    """

    path: str = "nyu-mll/glue"
    tasks: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: list(NAMES))
    grid: Grid = "quick"
    select_on: Literal["train", "validation"] = "train"
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = Field(
        default_factory=lambda: [1]
    )
    length: Annotated[int, Field(ge=8)] = 128
    train_examples: Annotated[int, Field(ge=20)] | None = None
    held_out: Annotated[int, Field(ge=2)] = 2000
    max_flop: str | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    references: list[Literal["untrained", "teacher"]] = Field(default_factory=lambda: ["untrained"])

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: list[str]) -> list[str]:
        unknown = [task for task in tasks if task not in NAMES]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]!r}; GLUE's are {', '.join(NAMES)}")
        return _unique(tasks, "task")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        return _unique(seeds, "fine-tuning seed")

    @field_validator("max_flop", mode="before")
    @classmethod
    def _in_flop(cls, value: Any) -> str | None:
        if value is None:
            return None
        # YAML 1.1 reads 1e15 as text; a bare number here means FLOPs.
        text = str(value) if str(value).strip()[-1:].isalpha() else f"{value} flop"
        try:
            budget = Budget.parse(text)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if budget.unit is not Unit.FLOP:
            raise ValueError(f"a price is capped in flop, not in {budget.unit}")
        return text

    @property
    def points(self) -> GridSpec:
        """The grid itself; `staged` searches the paper's."""
        if isinstance(self.grid, GridSpec):
            return self.grid
        return QUICK if self.grid == "quick" else PAPER

    @property
    def cap(self) -> int | None:
        """The most FLOPs that one student's fine-tuning may cost, or None."""
        return None if self.max_flop is None else int(Budget.parse(self.max_flop).limit)

    def scores(self) -> list[str]:
        return [*(f"glue.{task}" for task in self.tasks), "glue.mean"]


def departure(grid: object, select_on: object) -> str | None:
    """In words, how a GLUE block departs from the published protocol of Bui et al. 2024; None where it is that one."""
    if (grid, select_on) == ("paper", "validation"):
        return None
    searched = f"the {grid} grid" if isinstance(grid, str) else "a grid of its own"
    chosen = "the reported split" if select_on == "validation" else "a held-out part of train"
    return (
        f"GLUE is searched over {searched} and chosen on {chosen}; the published protocol is the paper's grid in full, "
        "chosen on the reported split (grid: paper, select_on: validation)."
    )


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two GLUE blocks, or two recorded recipes, fine-tune a task differently.

    A recorded recipe has what `auto` and the models' longest input came to, so bf16 and fp32 are two recipes.
    """
    keys = (key for key in dict.fromkeys([*one, *other]) if key not in BESIDE_RECIPE)
    return [key for key in keys if one.get(key) != other.get(key)]


def glue_spec(tree: dict[str, Any], *, where: str) -> GlueSpec:
    """Read a GLUE block that stands alone.

    Raises:
        ConfigError: naming the first offending key.
    """
    try:
        return GlueSpec.model_validate(tree)
    except ValidationError as error:
        raise explained(error, where=where) from None


def _unique(values: list[Any], what: str) -> list[Any]:
    twice = [v for v in values if values.count(v) > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} is listed twice")
    return values
