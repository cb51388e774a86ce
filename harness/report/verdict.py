"""One sentence out of three kinds: A beats B; no difference larger than z; cannot tell yet, run n more seeds.

The headline answers "distil or pretrain?": the baseline against its best contender. Every other arm gets
its own sentence of the same three kinds. Which contender is best was chosen with the data in hand, so the
test behind "beats" and the interval behind "± y" are corrected for all arms that could have been chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.compare import SEEDS_CAP, Comparison, higher_is_better
from harness.report import numbers

Kind = Literal["beats", "no difference", "cannot tell"]
# Used where a study declares no margin of its own: a fiftieth of a nat, half a percentage point.
LOSS_MARGIN = 0.02
SHARE_MARGIN = 0.005
# With one seed no spread is known; three seeds are the fewest whose interval is of use.
USEFUL_SEEDS = 3
UNLIKE_HARDWARE = "cannot tell yet, run all arms on the same hardware"


@dataclass(frozen=True)
class Verdict:
    """What the evidence says of two arms; `better` and `worse` are set for "beats" only."""

    kind: Kind
    sentence: str
    reason: str
    a: str | None = None
    b: str | None = None
    better: str | None = None
    worse: str | None = None
    more_seeds: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def margin_of(evaluation: dict[str, Any], metric: str) -> tuple[float, bool]:
    """The equivalence margin and whether the study declared it (`evaluation.margin`)."""
    declared = evaluation.get("margin")
    if isinstance(declared, int | float) and not isinstance(declared, bool) and declared > 0:
        return float(declared), True
    return (SHARE_MARGIN if higher_is_better(metric) else LOSS_MARGIN), False


def judge(comparison: Comparison, *, margin: float) -> Verdict:
    """The sentence for one pair of arms."""
    c = comparison
    if c.significant and c.mean_difference is not None and c.half_width is not None:
        better, worse = (c.a, c.b) if c.mean_difference > 0 else (c.b, c.a)
        size = numbers.amount_of(c.mean_difference, c.metric, spread=c.half_width)
        error = numbers.amount_of(c.half_width, c.metric, spread=c.half_width)
        small = f"; smaller than the margin of {_margin(margin, c)}" if _within(c, margin) else ""
        return Verdict(
            kind="beats",
            sentence=f"{better} beats {worse} by {size} ± {error} {numbers.unit(c.metric)}",
            reason=f"{_seeds(c.n)}, {interval_words(c)}, {_p(c.p_corrected)}{_corrected(c)}{small}",
            a=c.a,
            b=c.b,
            better=better,
            worse=worse,
        )
    if c.low is not None and c.high is not None and _within(c, margin):
        bound = max(-c.low, c.high)
        return Verdict(
            kind="no difference",
            sentence=f"{c.a} and {c.b}: no difference larger than "
            f"{numbers.amount_of(bound, c.metric, spread=bound)} {numbers.unit(c.metric)}",
            reason=f"{_seeds(c.n)}; the {interval_words(c)} lies within the margin of {_margin(margin, c)}",
            a=c.a,
            b=c.b,
        )
    more, reason = _more(c)
    return Verdict(
        kind="cannot tell", sentence=f"{c.a} or {c.b}: {_cannot(more, c)}", reason=reason, a=c.a, b=c.b, more_seeds=more
    )


def headline(comparisons: Sequence[Comparison], *, margin: float) -> Verdict:
    """The sentence that answers the study, from the comparisons of every arm against the baseline."""
    if not comparisons:
        return Verdict(
            kind="cannot tell",
            sentence="cannot tell yet: the study has fewer than two arms to compare",
            reason="a verdict needs a baseline and at least one other arm",
        )
    judged = [(c, judge(c, margin=margin)) for c in comparisons]
    wins = [pair for pair in judged if pair[1].better == pair[0].a]
    losses = [pair for pair in judged if pair[1].better == pair[0].b]
    undecided = [pair for pair in judged if pair[1].kind == "cannot tell"]
    # A winner answers the question. Else an open contender keeps it open, whatever the baseline beat besides.
    for group in (wins, undecided, [pair for pair in judged if pair[1].kind == "no difference"], losses):
        if group:
            return max(group, key=lambda pair: (pair[0].meaningful, _size(pair[0])))[1]
    raise AssertionError("a comparison is judged to be one of three kinds")


def withheld(verdict: Verdict, reason: str) -> Verdict:
    """The verdict of arms whose costs cannot be compared: nothing can be told from them, however clear the scores."""
    if verdict.a is None or verdict.b is None:
        return verdict
    sentence = f"{verdict.a} or {verdict.b}: {UNLIKE_HARDWARE}"
    return Verdict("cannot tell", sentence, f"the budget is measured, and {reason}", a=verdict.a, b=verdict.b)


def interval_words(c: Comparison) -> str:
    """ "95 % interval", and for how many comparisons at once where there are several."""
    return "95 % interval" if c.family_size == 1 else f"95 % interval for {c.family_size} comparisons at once"


def _corrected(c: Comparison) -> str:
    return "" if c.family_size == 1 else " after correction"


def _p(p: float | None) -> str:
    text = numbers.p_value(p).replace(" ", "\u00a0")
    return f"p\u00a0{text}" if text.startswith("<") else f"p\u00a0=\u00a0{text}"


def _within(c: Comparison, margin: float) -> bool:
    return c.meaningful and c.low is not None and c.high is not None and max(-c.low, c.high) <= margin


def _margin(margin: float, c: Comparison) -> str:
    return f"{numbers.amount_of(margin, c.metric, spread=margin)} {numbers.unit(c.metric)}"


def _size(c: Comparison) -> float:
    return float("-inf") if c.mean_difference is None else c.mean_difference


def _seeds(n: int) -> str:
    return f"{n} paired seed{'s' if n != 1 else ''}"


def _more(c: Comparison) -> tuple[int | None, str]:
    if not c.meaningful:
        return None, c.note
    if c.n < 2:
        reason = c.note or "one seed gives no interval"
        return max(1, USEFUL_SEEDS - c.n), reason
    if c.seeds_needed is None:
        return max(1, USEFUL_SEEDS - c.n), c.note
    observed = numbers.signed(c.mean_difference, c.metric, spread=c.half_width)
    reason = (
        f"{_seeds(c.n)} give a difference of {observed} with a {interval_words(c)} of "
        f"{numbers.interval(c.low, c.high, c.metric, signs=True)} {numbers.unit(c.metric)}"
    )
    return max(1, c.seeds_needed - c.n), reason


def _cannot(more: int | None, c: Comparison) -> str:
    if more is None:
        return "cannot tell yet, decide by a score that measures both"
    beyond = c.seeds_needed is not None and c.seeds_needed > SEEDS_CAP
    # Of a need beyond the cap only a lower bound is known: more than 50 in all is at least 51 − n more.
    return f"cannot tell yet, run {'at least ' if beyond else ''}{more} more seed{'s' if more != 1 else ''}"
