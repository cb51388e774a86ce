"""What a table is made of: cells for people (HTML, Markdown) and plain records for machines (CSV)."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.budget import Account
from harness.report.arms import Arm
from harness.report.source import Json

ACCOUNT_NAMES = {
    Account.STUDENT_STEP: "Student step",
    Account.TEACHER_FORWARD: "Teacher forward",
    Account.OBJECTIVE: "Objective",
    Account.TEACHER_TRAINING: "Teacher training",
    Account.TEACHER_CACHE: "Teacher cache",
    Account.EVALUATION: "Evaluation",
    Account.CHECKPOINT: "Checkpoints",
    Account.STARTUP: "Start-up",
    Account.TUNING: "Tuning",
    Account.LOST: "Lost in crashes",
}


# Beneath a table that marks comparisons: a mark is no praise.
MARKED = "Marked: the interval excludes zero, whichever arm is the better one."


@dataclass(frozen=True)
class Cell:
    """Text with an optional second line, a tooltip and a role ("best", "muted", "flag" or none)."""

    text: str
    detail: str = ""
    tip: str = ""
    role: str = ""
    arm: int | None = None
    """The colour of the arm that this cell names."""


@dataclass(frozen=True)
class Table:
    """`name` is the CSV's file name; the first column names the row, the others hold figures."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    records: list[Json]
    notes: list[str] = field(default_factory=list)
    words: bool = False
    """True when the columns hold words, not figures: they are then aligned to the left."""


def account_name(account: str) -> str:
    """An account as a reader would say it; one unknown to this version keeps its own name."""
    return ACCOUNT_NAMES[Account(account)] if account in Account.__members__ else account


def arm_cell(arm: Arm, *, bare: bool = False) -> Cell:
    """The arm's name in its colour, with its objective beneath unless `bare`."""
    if bare:
        return Cell(arm.name, arm=arm.index)
    detail = arm.objective if arm.objective != arm.name else ""
    return Cell(arm.name, detail=f"{detail}, baseline".strip(", ") if arm.baseline else detail, arm=arm.index)
