"""The model blocks of a study: the student's shape and the teacher's place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.study.spec import Positive, Spec

# Families whose tokens see what precedes them only; they predict the next token. The others fill in masked ones.
CAUSAL_FAMILIES = ("gpt2", "llama")


class ModelSpec(Spec):
    """A student (or a teacher to be trained) described by its shape; built from a transformers config.

    `kv_heads` below `heads` shares keys and values between query heads (Llama's grouped-query attention).
    `init_from_teacher` starts from teacher layers (a list, one per student layer, or every k-th) and the
    teacher's embeddings and head. `untrained_top: drop` exports the student without the layers above the
    last state its objective trains.
    """

    family: Literal[
        "bert", "roberta", "roberta-prelayernorm", "distilbert", "electra", "modernbert", "gpt2", "llama"
    ] = "bert"
    layers: Positive = 6
    hidden: Positive = 768
    heads: Positive = 12
    kv_heads: Positive | None = None
    intermediate: Positive | None = None
    init_std: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    init_from_teacher: list[Positive] | Literal["every_kth"] | None = None
    untrained_top: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSpec:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by heads {self.heads}")
        if self.kv_heads is not None and self.family != "llama":
            raise ValueError(f"kv_heads {self.kv_heads}: {self.family} has one key and value head per head; use llama")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        return self

    @property
    def causal(self) -> bool:
        """True for families that predict the next token."""
        return self.family in CAUSAL_FAMILIES


class TeacherSpec(Spec):
    """A frozen teacher: `builtin`, `builtin-causal`, a local folder in Hugging Face layout, or a Hub name.

    `weights` is the fingerprint its weights must have, as a run's record names it.

    `trained_on` says how the teacher's training text relates to the study's. `dropout` above 0 is a
    `paper_code` variant: the published teacher was never put into eval mode. `allow_worse` admits a teacher
    whose own loss is above the untrained student's. `training_cost` says what its training took in other units
    than FLOPs, e.g. ["30 gpu-hours", "9 kWh"], where its own record does not tell.
    """

    path: str = "builtin"
    weights: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    trained_on: Literal["same", "superset", "subset", "disjoint", "unknown"] = "unknown"
    training_flop: Annotated[float, Field(ge=0)] | None = None
    training_cost: list[str] = Field(default_factory=list)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    allow_worse: bool = False
