"""The evaluation blocks of a study: what every student is measured by."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.study.glue import GlueSpec
from harness.study.spec import Positive, Spec


class ReadoutSpec(Spec):
    """A fresh MLM head trained for a fixed number of uncharged steps on every arm's frozen body."""

    steps: Positive = 150
    positions: Positive = 320
    blocks: Positive = 1500
    lr: Annotated[float, Field(gt=0)] = 3e-3
    on_curve: bool = False


class ProbeSpec(Spec):
    """Built-in classification tasks, fine-tuned by one recipe for all arms."""

    tasks: list[str] = Field(default_factory=list)
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
    glue: GlueSpec | None = None

    def scores(self) -> list[str]:
        """Every score this evaluation makes; `main` is one of them."""
        found = ["mlm.loss", "mlm.accuracy"]
        if self.readout is not None:
            found += ["readout.loss", "readout.accuracy"]
        if self.probes is not None and self.probes.tasks:
            found += [*(f"probe.{task}" for task in self.probes.tasks), "probe.mean"]
        if self.glue is not None:
            found += self.glue.scores()
        return found
