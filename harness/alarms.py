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
# A loss that gains less than this share of its whole fall in the last half of its rows has stopped falling.
# Where the share's own standard error is larger than that, nobody can tell.
PLATEAU = 0.02
# The median of |N(0, 1)|.
NORMAL_MEDIAN = 0.6745
# What objectives call the term that needs no teacher: the loss of the text's own tokens.
TEXT_TERM = "cross_entropy"
# A row is a spike if it lies this far above the median of the rows before it, and far above their usual changes.
SPIKE = 1.25
SPIKE_CHANGES = 6.0
BEFORE = 5
# fp16 skips a few steps while its loss scale settles.
SKIPPED_SHARE = 0.01
SKIPPED_FEW = 10
# A student learns how often each token occurs within its first steps: a teacher whose loss is not below this share of
# what that alone gives has next to nothing to add.
WEAK_TEACHER = 0.9
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


@dataclass(frozen=True)
class Fall:
    """By how much a loss fell from its first rows to its last, of that in the second half, and either's standard error."""

    whole: float
    late: float
    error: float


def fall(losses: Sequence[float]) -> Fall | None:
    """Means over a tenth of the rows each; the noise of a row is taken from its changes from row to row. None on fewer than 20 rows."""
    tenth = len(losses) // 10
    if tenth < 2:
        return None
    start, middle, end = (statistics.fmean(losses[i : i + tenth]) for i in (0, len(losses) // 2, len(losses) - tenth))
    noise = statistics.median(abs(b - a) for a, b in pairwise(losses)) / (NORMAL_MEDIAN * math.sqrt(2))
    return Fall(start - end, middle - end, noise * math.sqrt(2 / tenth))


def late_share(losses: Sequence[float]) -> tuple[float, float] | None:
    """(share of a loss's whole fall that lies in the second half of its rows, that share's standard error).

    None where the loss did not fall, or on fewer than 20 rows.
    """
    found = fall(losses)
    return None if found is None or found.whole <= 0 else (found.late / found.whole, found.error / found.whole)


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
        loss, here = _number(row.get("loss")), row.get("terms")
        if loss is None:
            continue
        names = frozenset(here) if isinstance(here, dict) else frozenset()
        if names != terms:
            cut.append([])
            terms = names
        cut[-1].append(loss)
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
    """An objective that stopped falling early or never fell, on average over an arm's runs; of several phases the last is judged.

    Where an objective also learns from the text itself, the teacher's part is judged too: a falling cross-entropy
    would hide that distillation stands still.
    """
    found: list[Alarm] = []
    cuts = [segments(rows) for rows in runs]
    phased = any(len(cut) > 1 for cut in cuts)
    if all(cuts) and (how := _stood_still([cut[-1] for cut in cuts], phased=phased)):
        found.append(Alarm("plateau", arm, f"{arm}: the training objective {how}."))
    parts = [teacher_part(rows) for rows in runs]
    if all(parts) and not found and (how := _stood_still(parts, phased=phased)):
        text = f"{arm}: what it learns from its teacher {how}; what it learns from the text goes on."
        found.append(Alarm("plateau", arm, text))
    return found


def _stood_still(runs: Sequence[Sequence[float]], *, phased: bool) -> str:
    """How these runs' losses stood still, in words; empty where they fell, or where nobody can tell."""
    if _never_fell(runs):
        return f"never fell{' in its last phase' if phased else ''} by more than the noise of its rows"
    if _flat(runs):
        return f"stopped falling before half of {'its last phase was over' if phased else 'the budget was spent'}"
    return ""


def _never_fell(runs: Sequence[Sequence[float]]) -> bool:
    """Whether these runs' mean fall is not above its standard error."""
    falls = [each for losses in runs if (each := fall(losses)) is not None]
    if not falls or len(falls) < len(runs):
        return False
    error = math.sqrt(sum(each.error**2 for each in falls)) / len(falls)
    return statistics.fmean(each.whole for each in falls) <= error


def _flat(runs: Sequence[Sequence[float]]) -> bool:
    """Whether these runs' mean late share is next to nothing, and known well enough to say so."""
    shares = [share for losses in runs if (share := late_share(losses)) is not None]
    if not shares or len(shares) < len(runs):
        return False
    error = math.sqrt(sum(error**2 for _, error in shares)) / len(shares)
    return statistics.fmean(share for share, _ in shares) < PLATEAU and error < PLATEAU


def teacher_part(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The sum of the last phase's terms that a teacher is needed for; empty where all or none of its terms are such."""
    names: frozenset[str] = frozenset()
    losses: list[float] = []
    for row in rows:
        terms = row.get("terms")
        values = {str(k): _number(v) for k, v in terms.items()} if isinstance(terms, dict) else {}
        known = {name: value for name, value in values.items() if value is not None}
        if not values or len(known) < len(values):
            continue
        if known.keys() != names:
            names, losses = frozenset(known), []
        losses.append(math.fsum(value for name, value in known.items() if not _of_text(name)))
    taught = sum(not _of_text(name) for name in names)
    return losses if 0 < taught < len(names) else []


def _of_text(term: str) -> bool:
    return term.rpartition(".")[2] == TEXT_TERM


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


@dataclass(frozen=True)
class Copied:
    """Of the positions that the teacher got wrong, how many a student answered with the teacher's wrong token.

    `errors` positions in all runs together; the baseline is the arm of the same shape that never had this teacher,
    on the same positions. `gain` is the student's accuracy over the baseline's, on all positions: whoever knows more of
    the language is tempted by the same wrong tokens as a teacher who does, in proportion at most.
    """

    errors: int
    student: float
    baseline: float
    gain: float = 1.0

    @property
    def expected(self) -> float:
        """The share that the baseline's, and the student's greater accuracy, lead to expect."""
        return min(1.0, self.baseline * max(1.0, self.gain))

    @property
    def excess(self) -> float:
        return self.student - self.expected

    @property
    def p(self) -> float:
        """One-sided pooled two-proportion z test; the positions are shared, so this is conservative."""
        pooled = (self.student + self.expected) / 2
        variance = 2 * pooled * (1 - pooled) / self.errors if self.errors else 0.0
        return math.erfc(self.excess / math.sqrt(2 * variance)) / 2 if variance > 0 else 1.0


def copies_errors(copied: Copied, *, arm: str, baseline: str) -> list[Alarm]:
    """A student that repeats its teacher's errors more often than its size and its accuracy explain."""
    if copied.excess < COPIED or copied.p > COPIED_P:
        return []
    more = f" ({copied.expected:.0%} at {arm}'s accuracy)" if copied.gain > 1 else ""
    text = (
        f"{arm} repeats {copied.student:.0%} of its teacher's wrong answers where {baseline}, equally large, gives "
        f"{copied.baseline:.0%} of them{more}: it learns the teacher's errors, not only its knowledge."
    )
    return [Alarm("copied_errors", arm, text.replace("%", "\u202f%"))]


def weak(teacher_loss: float, frequency_loss: float) -> bool:
    """True when a teacher's held-out loss is no clear improvement on counts of tokens; NaN is weak."""
    return not teacher_loss < WEAK_TEACHER * frequency_loss


def weak_teacher(before: Mapping[str, Any], *, arm: str) -> list[Alarm]:
    """A teacher that was weak before training began, from what a record keeps of that; a worse one was refused there."""
    teacher, counted = _number(before.get("teacher_loss")), _number(before.get("frequency_loss"))
    if teacher is None or counted is None or not weak(teacher, counted):
        return []
    text = (
        f"{arm}: its teacher is not sufficiently better than an untrained student: a held-out loss of {teacher:.3f}, where "
        f"counts of tokens alone give {counted:.3f}. It has little to teach."
    )
    return [Alarm("weak_teacher", arm, text)]
