"""Controls: runs that are no contestants but take an effect apart.

Equal tokens: the baseline's recipe stopped at the tokens that another arm saw, its schedule ending there. What
that arm scores above its control is gain per token; what the control scores below the baseline is the price of
the tokens forgone; the two add up to the effect at equal cost. It comes out of the same loop, with a budget in
tokens instead of the study's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import kept
from harness.budget import Account, Budget, Ledger
from harness.study import StudySpec
from harness.units import Unit

EQUAL_TOKENS = "equal_tokens"
FOLDER = "controls"
# In a control's folder from its begin on: what it is.
DEFINITION = "control.json"


@dataclass(frozen=True)
class Control:
    """One run of `arm` (the baseline) for the tokens that `of` saw at the same seed."""

    arm: str
    of: str
    seed: int
    tokens: int

    @property
    def label(self) -> str:
        return f"control: {self.arm} at {self.of}'s tokens"

    def folder(self, root: Path) -> Path:
        return root / FOLDER / EQUAL_TOKENS / self.of / f"seed-{self.seed}"

    def ledger(self, path: Path | None) -> Ledger:
        return Ledger(Budget(self.tokens, Unit.TOKEN), charged=frozenset({Account.STUDENT_STEP}), path=path)

    def record(self) -> dict[str, Any]:
        """What marks a record as a control's."""
        return {"kind": EQUAL_TOKENS, "arm": self.arm, "of": self.of, "tokens": self.tokens}

    def made(self, record: dict[str, Any]) -> bool:
        """True for the record of this very control at its end: with another number of tokens it is another control."""
        return record.get("state") == "done" and record.get("control") == self.record()


def baseline_of(study: StudySpec) -> str:
    """The arm that controls repeat: the declared baseline, else the first."""
    return study.baseline or study.arms[0].name


def wanted(study: StudySpec, root: Path) -> list[Control]:
    """The study's controls whose contestant has finished, in the order of arms and seeds.

    An arm that saw as many tokens as the baseline needs none: the baseline is its control.
    """
    if EQUAL_TOKENS not in study.controls:
        return []
    base = baseline_of(study)
    found: list[Control] = []
    for seed in study.seeds:
        mine = _tokens(root, base, seed)
        for arm in study.arms:
            tokens = _tokens(root, arm.name, seed)
            if arm.name != base and tokens is not None and tokens != mine:
                found.append(Control(base, arm.name, seed, tokens))
    return found


def _tokens(root: Path, arm: str, seed: int) -> int | None:
    record = kept.read(root / "arms" / arm / f"seed-{seed}" / "record.json", kept.TrialRecord) or {}
    return record.get("tokens") if record.get("state") == "done" else None


def finished(control: Control, root: Path) -> bool:
    """True when this very control has run."""
    return control.made(_record(control, root))


def superseded(control: Control, root: Path) -> bool:
    """True when the folder of this control holds another one, made or begun: of another baseline, or for other tokens."""
    record, begun = _record(control, root), kept.read_json(control.folder(root) / DEFINITION)
    return (record.get("state") == "done" and not control.made(record)) or begun not in (None, control.record())


def _record(control: Control, root: Path) -> dict[str, Any]:
    return kept.read(control.folder(root) / "record.json", kept.TrialRecord) or {}
