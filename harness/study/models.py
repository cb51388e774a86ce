"""The model blocks of a study: the student's shape and the teacher's place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.study.spec import Positive, Spec


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
