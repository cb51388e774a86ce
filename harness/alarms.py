"""Failure signatures of distillation as alarms: pure functions over curves and scores, used in the run and in the report.

An alarm says that a result should not be quoted before its cause is known. The signatures are the literature's: a
distillation loss that stops falling early, a student below the one that never had a teacher, a student that copies
its teacher's errors more than its size explains (Stanton et al. 2021, "Does knowledge distillation really work?"),
unstable training where architectures do not match, and a teacher with little to teach (Cho and Hariharan 2019).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

Kind = Literal["plateau", "below_baseline", "no_better_than_untrained", "copied_errors", "instability", "weak_teacher"]
# A loss that gains less than this share of its whole fall in the last half of the budget has stopped falling.
PLATEAU = 0.02
# A row is a spike if it lies this far above the median of the rows before it, and far above their usual changes.
SPIKE = 1.25
SPIKE_CHANGES = 6.0
BEFORE = 5
# fp16 skips a few steps while its loss scale settles.
SKIPPED_SHARE = 0.01
SKIPPED_FEW = 10
# A teacher above this share of the untrained student's loss has hardly learnt more than how often each token occurs.
WEAK_TEACHER = 0.75
# Copied errors beyond the baseline's: less than this says nothing about the student, whatever its p.
COPIED = 0.05
COPIED_P = 0.01


@dataclass(frozen=True)
class Alarm:
    """One signature, where it was seen, and the sentence that tells it."""

    kind: Kind
    arm: str
    text: str
    seed: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plateaued(losses: Sequence[float]) -> bool:
    """True when the second half of the budget adds next to nothing to the loss's fall; False on fewer than 20 rows."""
    return (share := late_share(losses)) is not None and share < PLATEAU


def late_share(losses: Sequence[float]) -> float | None:
    """The share of a loss's whole fall that lies in the second half; None where it did not fall or is too short."""
    tenth = len(losses) // 10
    if tenth < 2:
        return None
    start, middle, end = (statistics.fmean(losses[i : i + tenth]) for i in (0, len(losses) // 2, len(losses) - tenth))
    return (middle - end) / (start - end) if start > end else None


def spikes(losses: Sequence[float]) -> list[int]:
    """Places where a training loss jumped: a quarter above the median before it, and six times its usual change."""
    usual = statistics.median(abs(b - a) for a, b in pairwise(losses)) if len(losses) > 1 else 0.0
    found: list[int] = []
    for i in range(BEFORE, len(losses)):
        level = statistics.median(losses[i - BEFORE : i])
        if level > 0 and losses[i] > SPIKE * level and losses[i] - level > SPIKE_CHANGES * usual:
            found.append(i)
    return found


def segments(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Finite losses of training rows, cut wherever the objective's terms change: phases have no common scale."""
    cut: list[list[float]] = []
    terms: frozenset[str] | None = None
    for row in rows:
        loss, here = row.get("loss"), row.get("terms")
        if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss):
            continue
        names = frozenset(here) if isinstance(here, dict) else frozenset()
        if names != terms:
            cut.append([])
            terms = names
        cut[-1].append(float(loss))
    return cut


def unstable(rows: Sequence[Mapping[str, Any]], *, arm: str, seed: int, steps: Any, skipped: Any) -> list[Alarm]:
    """Loss spikes and skipped steps of one run."""
    found: list[Alarm] = []
    jumps = sum(len(spikes(losses)) for losses in segments(rows))
    if jumps:
        often = "once" if jumps == 1 else f"{jumps} times"
        text = f"{arm}, seed {seed}: the training loss jumped {often}; lower the rate, or check how the layers match"
        found.append(Alarm("instability", arm, text, seed))
    counts = all(isinstance(n, int) and not isinstance(n, bool) for n in (steps, skipped))
    if counts and skipped > max(SKIPPED_FEW, SKIPPED_SHARE * steps):
        text = f"{arm}, seed {seed}: {skipped} of {steps} steps were skipped for gradients that are no numbers"
        found.append(Alarm("instability", arm, text, seed))
    return found


def of_trial(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[Alarm]:
    """What one finished run shows by itself, before any score is known: the same words as in the report."""
    arm, seed = str(record.get("name")), record.get("seed")
    place = seed if isinstance(seed, int) else 0
    steps, skipped = record.get("steps"), record.get("skipped_steps")
    return [*unstable(rows, arm=arm, seed=place, steps=steps, skipped=skipped), *stalled([rows], arm=arm)]


def stalled(runs: Sequence[Sequence[Mapping[str, Any]]], *, arm: str) -> list[Alarm]:
    """An objective that stopped falling early, on average over an arm's runs; composed objectives by their last phase."""
    shares = [late_share(cut[-1]) for rows in runs if (cut := segments(rows))]
    known = [share for share in shares if share is not None]
    if len(known) < len(runs) or not known or statistics.fmean(known) >= PLATEAU:
        return []
    return [
        Alarm("plateau", arm, f"{arm}: the training objective stopped falling before half of the budget was spent.")
    ]


@dataclass(frozen=True)
class Copied:
    """Of the positions that the teacher got wrong, how many a student answered with the teacher's wrong token.

    `errors` positions in all runs together; the baseline is the arm of the same shape that never had this teacher,
    on the same positions.
    """

    errors: int
    student: float
    baseline: float

    @property
    def excess(self) -> float:
        return self.student - self.baseline

    @property
    def p(self) -> float:
        """One-sided pooled two-proportion z test; the positions are shared, so this is conservative."""
        pooled = (self.student + self.baseline) / 2
        variance = 2 * pooled * (1 - pooled) / self.errors if self.errors else 0.0
        return math.erfc(self.excess / math.sqrt(2 * variance)) / 2 if variance > 0 else 1.0


def copies_errors(copied: Copied, *, arm: str, baseline: str) -> list[Alarm]:
    """A student that repeats its teacher's errors more often than an equally large student without a teacher."""
    if copied.excess < COPIED or copied.p > COPIED_P:
        return []
    text = (
        f"{arm} repeats {copied.student:.0%} of its teacher's wrong answers where {baseline}, equally large, gives "
        f"{copied.baseline:.0%} of them: it learns the teacher's errors, not only its knowledge."
    )
    return [Alarm("copied_errors", arm, text.replace("%", "\u202f%"))]


def weak(teacher_loss: float, untrained_loss: float) -> bool:
    """True when a teacher's held-out loss is no clear improvement on the untrained student's; NaN is weak."""
    return not teacher_loss < WEAK_TEACHER * untrained_loss
