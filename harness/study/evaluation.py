"""The evaluation blocks of a study: what every student is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.study.data import DomainSpec, TextSpec
from harness.study.glue import GlueSpec
from harness.study.spec import Positive, Spec


class ReadoutSpec(Spec):
    """A fresh head, masked or next-token, trained for a fixed number of uncharged steps on every arm's frozen body."""

    steps: Positive = 150
    positions: Positive = 320
    blocks: Positive = 1500
    lr: Annotated[float, Field(gt=0)] = 3e-3
    on_curve: bool = False


class ProbeSpec(Spec):
    """Built-in classification tasks, by one recipe for all arms.

    `mode: finetune` trains the whole student; `frozen` trains a linear classifier on the mean state of each layer and
    keeps the layer that is best on held-out examples (epochs, batch and lr then mean nothing).
    """

    tasks: list[str] = Field(default_factory=list)
    mode: Literal["finetune", "frozen"] = "finetune"
    train_examples: Positive = 1200
    test_examples: Positive = 800
    epochs: Positive = 2
    batch: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 1e-3


class ChoiceSpec(Spec):
    """Built-in multiple-choice probes of causal students: which of four continuations is the likeliest?

    `normalise` divides the log-likelihood of a continuation by its tokens or by its UTF-8 bytes, or not at all.
    `head: readout` scores by the read-out's head, which every arm has alike; `own` by the student's, which some
    objectives never train.
    """

    tasks: Annotated[list[Literal["continuation", "word_order"]], Field(min_length=1)] = Field(
        default_factory=lambda: ["continuation", "word_order"]
    )
    examples: Positive = 400
    normalise: Literal["tokens", "bytes", "none"] = "tokens"
    head: Literal["readout", "own"] = "readout"


class EvaluationSpec(Spec):
    """What every student is measured by, which score decides the verdict, and what difference matters (`margin`).

    `mlm_blocks` held-out blocks give a student's own loss, a causal one's too, and its loss on every domain; of the
    `split` that is named: what settings are chosen by must not be what arms are compared by.
    `domains`: the read-out's loss on each source of the mixture by itself, and on the sources named here.
    """

    main: str = "readout.loss"
    margin: Annotated[float, Field(gt=0)] | None = None
    curve_points: Annotated[int, Field(ge=0)] = 4
    mlm_blocks: Positive = 512
    split: Literal["test", "validation"] = "test"
    readout: ReadoutSpec | None = ReadoutSpec()
    probes: ProbeSpec | None = None
    choices: ChoiceSpec | None = None
    domains: list[DomainSpec] = Field(default_factory=list)
    glue: GlueSpec | None = None

    @model_validator(mode="after")
    def _head_of_choices(self) -> EvaluationSpec:
        if self.choices is not None and self.choices.head == "readout" and self.readout is None:
            raise ValueError("choices.head readout: this evaluation has no readout; add one, or say head: own")
        if self.domains and self.readout is None:
            raise ValueError("domains are scored by the read-out's head: this evaluation has no readout, add one")
        labels = [domain.label for domain in self.domains]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"domain {twice!r} is listed twice: give one of them another `name`")
        return self

    def domains_beside(self, sources: Sequence[TextSpec]) -> list[DomainSpec]:
        """The listed domains that are no source of this mixture: what the students never learn from.

        Raises:
            ValueError: a domain has the name of a source with other text, or the text of a source under another name.
        """
        found = []
        for domain in self.domains:
            namesake = next((s for s in sources if s.label == domain.label), None)
            twin = next((s for s in sources if s.same_text(domain)), None)
            if twin is not None and twin.label != domain.label:
                raise ValueError(
                    f"domain {domain.label!r} is the text of data source {twin.label!r}, which students learn from: its "
                    f"held-out blocks are scored as domain.{twin.label} anyway, leave it out"
                )
            if namesake is not None and twin is None:
                raise ValueError(f"domain {domain.label!r} has the name of a data source: give it another `name`")
            if twin is None:
                found.append(domain)
        return found

    def scores(self, *, causal: bool = False, sources: Sequence[TextSpec] = ()) -> list[str]:
        """Every score this evaluation makes of such students on this mixture; `main` is one of them."""
        found = ["clm.loss", "clm.accuracy", "clm.bits_per_byte"] if causal else ["mlm.loss", "mlm.accuracy"]
        if self.readout is not None:
            found += ["readout.loss", "readout.accuracy"]
        probes = [*(self.probes.tasks if self.probes else []), *(self.choices.tasks if self.choices else [])]
        if probes:
            found += [*(f"probe.{task}" for task in probes), "probe.mean"]
        if self.domains:
            labels = [*(s.label for s in sources), *(d.label for d in self.domains_beside(sources))]
            found += [f"domain.{label}.{kind}" for label in labels for kind in ("loss", "accuracy")]
        if self.glue is not None:
            found += self.glue.scores()
        return found
