"""Which arm to buy at the full budget after a pilot, how sure that is, and whether it pays to be surer first.

Every arm's mean score at its own share of the full budget is a distribution (`harness.ladder.posterior`). The
recommendation is the arm with the best expected score, which is the one with the least expected regret: what the
truly best arm would have scored more, on average over everything the pilot leaves possible. "Best" speaks of arms,
over all seeds; the luck of the one seed that will be run is no arm's merit and is in `one_run` only.

Knowing better has a value: more pilot data are drawn from what is possible now, the decision is made again with them,
and the expected regret falls by the expected gain (preposterior analysis, Raiffa and Schlaifer 1961). It has a price
too: its cost is taken from the full budget, and the recommended arm then scores less. The noise is held at its
estimate there. Everything is drawn by one generator with a fixed seed: the same pilot gives the same answer.

Shapes: A arms, K rungs, n seeds, M draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.compare import ALPHA, LEVEL, Array
from harness.errors import ConfigError, DataError
from harness.ladder import posterior
from harness.ladder.posterior import Noise
from harness.ladder.rungs import axis_of, negligible, plain, table_of
from harness.ladder.scaling import FORM, fit
from harness.ladder.words import Words, listed, percent

DRAWS = 8_000
FURTHER = 2_000
_SEED = 0


@dataclass(frozen=True)
class Outlook:
    """One arm at the full budget; `budget` is what is left for it once its teacher is paid.

    score: expected mean over all seeds; low, high: 95 % of what is possible; one_run: the same for a single run.
    """

    arm: str
    budget: float
    score: float
    low: float
    high: float
    one_run: tuple[float, float]
    probability_best: float


@dataclass(frozen=True)
class Further:
    """More pilot before deciding: its cost, the expected regret after it, and what its cost takes from the result.

    price: how much less the recommended arm is expected to score with the rest of the budget; None where nothing
    would be left. worth: the regret falls by more than the price.
    """

    what: str
    cost: float
    gain: float
    regret_after: float
    price: float | None
    worth: bool


@dataclass(frozen=True)
class Decision:
    """The answer of a pilot; scores and regrets in the score's own unit, budgets in the ladder's.

    regret_if_wrong: the expected regret over those possibilities in which another arm is best. beyond: how many times
    the full budget lies above the largest rung. contradicted: arms whose rungs refute the power law at the 5 % level
    over all arms together (Bonferroni); every figure takes that form for granted, so with any such arm the sentence
    recommends nothing.
    """

    recommendation: str
    probability: float
    expected_regret: float
    regret_if_wrong: float
    outlooks: tuple[Outlook, ...]
    further: tuple[Further, ...]
    x: tuple[float, ...]
    n: int
    budget: float
    beyond: float
    contradicted: tuple[str, ...]
    words: Words = field(default_factory=Words)

    def as_json(self) -> dict[str, Any]:
        """`recommendation` is null where the form is contradicted; `best_if_form_holds` names the arm all the same."""
        told = {"level": LEVEL, "sentence": self.sentence(), "sentences": self.sentences()}
        told["best_if_form_holds"] = self.recommendation
        if self.contradicted:
            told["recommendation"] = None
        return {**plain(asdict(self)), **told}

    def sentence(self) -> str:
        """The recommendation with its probability and expected regret, or that the curve's form does not carry one."""
        regret = self.words.size(self.expected_regret)
        far = (
            f"extrapolated {self.beyond:,.3g} times beyond the pilot" if self.beyond > 1 else "within the pilot's range"
        )
        found = f"best with probability {percent(self.probability)}, expected regret {regret}, {far}"
        if self.contradicted:
            return (
                f"cannot tell yet at {self.words.rung(self.budget)}: the rungs of {listed(self.contradicted)} contradict "
                f"the form of the curve, a {FORM}; if it held nevertheless, {self.recommendation} would be {found}"
            )
        return f"choose {self.recommendation} at {self.words.rung(self.budget)}: {found}"

    def sentences(self) -> list[str]:
        """The recommendation, what a wrong one would cost, every arm's outlook, and the cost of knowing better."""
        wrong = f"if another arm is better, then by {self.words.size(self.regret_if_wrong)} on average"
        arms = [
            f"{o.arm}: {self.words.estimate(o.score, o.low, o.high)}, a single run "
            f"{self.words.between(*o.one_run)}, best with probability {percent(o.probability_best)}"
            for o in self.outlooks
        ]
        if self.contradicted:
            # Figures of a form that was refuted: no reason to stop, nor to go on.
            return [self.sentence(), *arms, "a pilot with larger rungs would show whether the curves settle"]
        return [self.sentence(), wrong, *arms, *(self._further(each) for each in self.further)]

    def _further(self, each: Further) -> str:
        spread = self.expected_regret
        after = (
            f"{each.what} costs {self.words.rung(each.cost)} and lowers the expected regret from "
            f"{self.words.size(self.expected_regret, spread=spread)} to {self.words.size(each.regret_after, spread=spread)}"
        )
        if each.price is None:
            return f"{after}; it costs more than the whole budget"
        price = f"spent on it, that cost takes {self.words.size(each.price)} from the result"
        return f"{after}; {price}: {'worth it' if each.worth else 'not worth it'}"


def decide(
    x: Sequence[float],
    scores: Mapping[str, Sequence[Sequence[float]] | Array],
    *,
    budget: float,
    higher_is_better: bool,
    left: Mapping[str, float] | None = None,
    words: Words | None = None,
) -> Decision:
    """The recommendation for `budget` from a pilot at increasing budgets x (K,).

    Args:
        scores: {arm: (K, n)}, column s the same seed for every arm and rung, n ≥ 2.
        left: what the full budget leaves to an arm, where that is less than all of it: its share of its teacher paid.

    Raises:
        ConfigError: fewer than two arms, or a budget that leaves nothing to an arm.
        DataError: one seed, or no spread, which leave no noise to judge by; otherwise see `harness.ladder.rungs`.
    """
    axis = axis_of(x, log=True)
    table = _checked(scores, rungs=len(axis))
    arms = list(scores)
    n = table.shape[-1]
    budgets = {arm: float((left or {}).get(arm, budget)) for arm in arms}
    for arm, amount in budgets.items():
        if not (math.isfinite(amount) and amount > 0):
            raise ConfigError(
                f"{arm}: {amount:g} of the budget left", rule="its teacher's share leaves it nothing",
                remedy="share the teacher among more students, or give a larger budget",
            )  # fmt: skip
    sign = 1.0 if higher_is_better else -1.0
    noise = posterior.noise_of(table)
    rng = np.random.default_rng(_SEED)
    variance = posterior.variances(noise, n, DRAWS, rng=rng)
    means = sign * table.mean(axis=-1)
    drawn = [posterior.draw(row, axis, variance, rng=rng) for row in means]
    places = [math.log(budgets[arm]) for arm in arms]
    value = np.stack([d.at(axis, place) for d, place in zip(drawn, places, strict=True)])
    chosen = int(value.mean(axis=1).argmax())
    best = value.argmax(axis=0)
    regret = value.max(axis=0) - value[chosen]
    wrong = best != chosen
    # What the pilot's seeds did to all arms alike moves every outlook and no order; one more run has a seed's luck of its own.
    shared = noise.shared * (n - 1) / rng.chisquare(n - 1, size=value.shape[1])
    level = value + np.sqrt(shared / n) * rng.normal(size=value.shape[1])
    luck = np.sqrt(variance * n + shared) * rng.normal(size=value.shape)
    outlooks = tuple(
        _outlook(arm, budgets[arm], sign * level[i], sign * (level[i] + luck[i]), float((best == i).mean()))
        for i, arm in enumerate(arms)
    )
    spent = float(np.sum(x)) * len(arms)
    ahead = _Ahead(
        axis, means, [d.ends[:FURTHER] for d in drawn], [d.exponent[:FURTHER] for d in drawn], places, noise, n
    )
    expected_regret = float(regret.mean())
    top = 2 * float(x[-1])
    options = (
        ("one more seed at every rung", spent, ahead.with_seed(rng)),
        (f"one more rung at {(words or Words()).rung(top)}", n * len(arms) * top, ahead.with_rung(math.log(top), rng)),
    )
    return Decision(
        recommendation=arms[chosen],
        probability=float((~wrong).mean()),
        expected_regret=expected_regret,
        regret_if_wrong=float(regret[wrong].mean()) if wrong.any() else 0.0,
        outlooks=outlooks,
        further=tuple(
            _further(what, cost, gain, expected_regret, price=ahead.price(chosen, budgets[arms[chosen]], cost))
            for what, cost, gain in options
        ),
        x=tuple(map(float, x)),
        n=n,
        budget=float(budget),
        beyond=max(1.0, max(budgets.values()) / float(x[-1])),
        contradicted=_contradicted(x, arms, table),
        words=words or Words(),
    )


@dataclass(frozen=True)
class _Ahead:
    """What the decision could become: curves drawn from what is possible now, larger always better."""

    axis: Array
    means: Array
    ends: list[Array]
    exponent: list[NDArray[np.intp]]
    places: list[float]
    noise: Noise
    n: int

    def with_seed(self, rng: np.random.Generator) -> float:
        """Expected gain of one more seed at every rung."""
        found: list[Array] = []
        for i, place in enumerate(self.places):
            truth = np.stack([self._at(i, rung) for rung in self.axis], axis=-1)
            seen = truth + math.sqrt(self.noise.own) * rng.normal(size=truth.shape)
            means = (self.n * self.means[i] + seen) / (self.n + 1)
            found.append(posterior.expected(means, self.axis, place, self.noise.own / (self.n + 1)))
        return _gain(np.stack(found))

    def with_rung(self, rung: float, rng: np.random.Generator) -> float:
        """Expected gain of one more rung at this log budget, with the pilot's number of seeds."""
        axis = np.append(self.axis, rung)
        found: list[Array] = []
        for i, place in enumerate(self.places):
            truth = self._at(i, rung)
            seen = truth + math.sqrt(self.noise.own / self.n) * rng.normal(size=truth.shape)
            means = np.column_stack([np.broadcast_to(self.means[i], (len(seen), len(self.axis))), seen])
            found.append(posterior.expected(means, axis, place, self.noise.own / self.n))
        return _gain(np.stack(found))

    def price(self, arm: int, budget: float, cost: float) -> float | None:
        """How much less an arm is expected to score when `cost` is taken from its budget."""
        if cost >= budget:
            return None
        full, rest = (
            float(posterior.expected(self.means[arm], self.axis, math.log(b), self.noise.own / self.n))
            for b in (budget, budget - cost)
        )
        return full - rest

    def _at(self, arm: int, place: float) -> Array:
        return posterior.Draws(self.exponent[arm], self.ends[arm]).at(self.axis, place)


def _contradicted(x: Sequence[float], arms: Sequence[str], table: Array) -> tuple[str, ...]:
    """The arms whose rungs refute the form of the curve that was extrapolated; a right form is refuted for any in 5 %."""
    chances = {arm: fit(x, each, arm=arm).lack_of_fit_p for arm, each in zip(arms, table, strict=True)}
    return tuple(arm for arm, p in chances.items() if p is not None and p <= ALPHA / len(arms))


def _gain(expected: Array) -> float:
    """By how much choosing after the new data beats choosing before them; expected (A, M), never negative."""
    return float(expected.max(axis=0).mean() - expected.mean(axis=1).max())


def _further(what: str, cost: float, gain: float, regret: float, *, price: float | None) -> Further:
    # Simulation noise may put the gain a hair above what there is to gain.
    gain = min(gain, regret)
    return Further(what, cost, gain, regret - gain, price, worth=price is not None and gain > price)


def _outlook(arm: str, budget: float, mean: Array, one: Array, probability: float) -> Outlook:
    ends = [ALPHA / 2, 1 - ALPHA / 2]
    low, high = np.quantile(mean, ends)
    run_low, run_high = np.quantile(one, ends)
    return Outlook(
        arm, budget, float(mean.mean()), float(low), float(high), (float(run_low), float(run_high)), probability
    )  # fmt: skip


def _checked(scores: Mapping[str, Sequence[Sequence[float]] | Array], *, rungs: int) -> Array:
    """(A, K, n), all arms with the same seeds."""
    if len(scores) < 2:
        raise ConfigError(f"{len(scores)} arm", rule="a decision is between two or more", remedy="add an arm")
    tables = [table_of(each, rungs=rungs, what=f"scores of {arm}") for arm, each in scores.items()]
    counts = sorted({each.shape[1] for each in tables})
    if len(counts) > 1:
        raise DataError(
            f"arms with {counts[0]} and {counts[-1]} seeds", rule="all arms share their seeds",
            remedy="keep the seeds that every arm has finished on every rung",
        )  # fmt: skip
    if counts[0] < 2:
        raise DataError("a pilot of one seed", rule="noise is known from two seeds on", remedy="run one more seed")
    table = np.stack(tables)
    if negligible(math.sqrt(posterior.noise_of(table).own), table):
        raise DataError(
            "a pilot whose seeds agree to the last digit", rule="without noise nothing says how sure an answer is",
            remedy="check that the seeds differ",
        )  # fmt: skip
    return table
