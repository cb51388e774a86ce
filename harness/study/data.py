"""The data blocks of a study: sources, tokenizer, blocks, masking."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from harness.study.spec import NAME, Fraction, Positive, Spec

# Text that every Python installation brings along: documentation, and the standard library's code and comments.
EMBEDDED = ("python-docs", "python-code", "python-comments")


class TextSpec(Spec):
    """Where text is: an embedded corpus, a local folder or file (parquet, jsonl, text), or a Hub dataset."""

    path: str
    name: Annotated[str, Field(pattern=NAME)] | None = None
    config: str | None = None
    text_column: str = "text"

    @model_validator(mode="after")
    def _embedded(self) -> TextSpec:
        if self.path.startswith("python-") and self.path not in EMBEDDED and not Path(self.path).exists():
            raise ValueError(f"unknown source {self.path!r}: embedded are {', '.join(EMBEDDED)}")
        return self

    @property
    def label(self) -> str:
        """The source's name in records, probes and domains."""
        return self.name or Path(self.path).name

    def same_text(self, other: TextSpec) -> bool:
        """True where both read the same texts, whatever they are called."""
        mine, theirs = ((s.path, s.config, s.text_column) for s in (self, other))
        return mine == theirs


class SourceSpec(TextSpec):
    """One corpus of the training mixture and its share of it."""

    path: str = EMBEDDED[0]
    weight: Annotated[float, Field(gt=0)] = 1.0


class DomainSpec(TextSpec):
    """Text to evaluate on that no student learns from; or one of the mixture's sources, named again."""

    @model_validator(mode="after")
    def _named(self) -> DomainSpec:
        if re.fullmatch(NAME, self.label) is None:
            raise ValueError(f"domain {self.path!r} needs a name of letters, digits, dots and dashes: give it `name`")
        return self


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
    """What is read, how it is cut into blocks, how blocks are masked, and what comes again.

    A block is masked anew whenever it comes round. With `mask_epochs: k` the masks of its first k rounds come again instead.
    Every seed has an order and masks of its own; with `seed` all seeds have those of this number, and differ in their
    initial weights alone. Both hold for every arm.
    """

    sources: Annotated[list[SourceSpec], Field(min_length=1)] = Field(default_factory=lambda: [SourceSpec()])
    tokenizer: str = "builtin"
    block_length: Annotated[int, Field(ge=8)] = 128
    masking: MaskingSpec = MaskingSpec()
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.10
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.06
    limit_tokens: Positive | None = None
    mask_epochs: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
