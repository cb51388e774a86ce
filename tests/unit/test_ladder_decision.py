"""Laws of a decision after a pilot: the same pilot, the same answer; more doubt, more regret; no free lunch."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from harness.errors import ConfigError, DataError
from harness.ladder import decision
from harness.ladder.decision import Decision, decide
from harness.ladder.words import Words

X = 1e15 * 2.0 ** np.arange(4)
Pilot = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laws hold for any number of draws; fewer are quicker."""
    monkeypatch.setattr(decision, "DRAWS", 2_000)
    monkeypatch.setattr(decision, "FURTHER", 500)


def pilot(own: float = 0.01, *, seeds: int = 3, seed: int = 0, gap: float = 0.1) -> Pilot:
    """Losses of two arms; kd leads by `gap` at every rung and falls alike."""
    rng = np.random.default_rng(seed)
    shared = 0.05 * rng.normal(size=(1, seeds))
    line = 2 + (X / 1e15)[:, None] ** -0.3
    noise = own * rng.normal(size=(2, len(X), seeds))
    return {"scratch": line + shared + noise[0], "kd": line - gap + shared + noise[1]}


def answer(scores: Pilot, **settings: Any) -> Decision:
    given = {"budget": 128e15, "higher_is_better": False, "words": Words("nats", axis_unit="flop")}
    return decide(X, scores, **{**given, **settings})


def test_a_clear_pilot_recommends_the_better_arm_and_regrets_nothing() -> None:
    found = answer(pilot(0.001, gap=0.3))
    assert (found.recommendation, found.probability, found.expected_regret) == ("kd", 1.0, 0.0)
    assert found.beyond == 16
    assert found.sentence() == (
        "choose kd at 128 PFLOP: best with probability 100 %, expected regret 0.000 nats, "
        "extrapolated 16 times beyond the pilot"
    )


def test_the_same_pilot_gives_the_same_answer_to_the_last_digit() -> None:
    assert answer(pilot()).as_json() == answer(pilot()).as_json()


def test_probabilities_add_up_and_the_recommendation_has_the_best_expected_score() -> None:
    found = answer({**pilot(0.05), "other": pilot(0.05, seed=5)["kd"]})
    assert sum(o.probability_best for o in found.outlooks) == pytest.approx(1)
    best = min(found.outlooks, key=lambda o: o.score)
    assert best.arm == found.recommendation
    assert best.probability_best == pytest.approx(found.probability)
    assert found.expected_regret == pytest.approx(found.regret_if_wrong * (1 - found.probability))


def test_arms_that_are_the_same_are_a_coin_toss() -> None:
    same = pilot(0.01)["kd"]
    found = answer({"a": same, "b": same})
    assert 0.45 < found.probability < 0.55
    assert found.expected_regret > 0


def test_swapping_the_arms_swaps_their_outlooks() -> None:
    scores = pilot(0.03)
    one, other = answer(scores), answer(dict(reversed(scores.items())))
    assert one.recommendation == other.recommendation
    assert one.probability == pytest.approx(other.probability, abs=0.05)
    assert {o.arm: round(o.score, 1) for o in one.outlooks} == {o.arm: round(o.score, 1) for o in other.outlooks}


def test_a_score_that_is_better_when_high_is_the_same_question_upside_down() -> None:
    down = answer(pilot(0.05))
    up = answer({arm: 10 - table for arm, table in pilot(0.05).items()}, higher_is_better=True)
    assert (up.recommendation, up.probability) == (down.recommendation, pytest.approx(down.probability))
    assert up.expected_regret == pytest.approx(down.expected_regret)
    assert [10 - o.score for o in up.outlooks] == pytest.approx([o.score for o in down.outlooks])


def test_the_unit_of_the_budget_changes_nothing() -> None:
    one = answer(pilot(0.05))
    other = decide(X / 1e15, pilot(0.05), budget=128, higher_is_better=False)
    assert other.probability == pytest.approx(one.probability, abs=0.01)
    assert other.expected_regret == pytest.approx(one.expected_regret, rel=0.05)


def test_a_teacher_that_takes_most_of_the_budget_changes_the_recommendation() -> None:
    scores = pilot(0.001, gap=0.01)
    assert answer(scores).recommendation == "kd"
    found = answer(scores, left={"kd": 10e15})
    assert found.recommendation == "scratch"
    assert {o.arm: o.budget for o in found.outlooks} == {"scratch": 128e15, "kd": 10e15}


def test_a_farther_budget_is_less_certain() -> None:
    widths = [
        [o.high - o.low for o in answer(pilot(0.02), budget=budget).outlooks] for budget in (16e15, 128e15, 1024e15)
    ]
    assert widths[0] < widths[1] < widths[2]


def test_noisier_pilots_are_less_certain_and_a_single_run_is_less_certain_than_the_mean() -> None:
    quiet, loud = (answer(pilot(own)) for own in (0.01, 0.1))
    for a, b in zip(quiet.outlooks, loud.outlooks, strict=True):
        assert b.high - b.low > a.high - a.low
        assert a.one_run[0] < a.low
        assert a.high < a.one_run[1]
    assert loud.expected_regret > quiet.expected_regret


def test_knowing_better_never_raises_the_regret_and_costs_what_it_costs() -> None:
    found = answer(pilot(0.05))
    seed, rung = found.further
    assert (seed.what, rung.what) == ("one more seed at every rung", "one more rung at 16 PFLOP")
    assert seed.cost == pytest.approx(2 * 15e15)
    assert rung.cost == pytest.approx(2 * 3 * 16e15)
    for each in found.further:
        assert 0 <= each.gain <= found.expected_regret
        assert each.regret_after == pytest.approx(found.expected_regret - each.gain)
        assert each.price is not None
        assert each.price > 0
        assert each.worth == (each.gain > each.price)


def test_more_pilot_than_the_whole_budget_is_never_worth_it() -> None:
    found = answer(pilot(0.05), budget=20e15)
    assert [(each.price, each.worth) for each in found.further] == [(None, False), (None, False)]
    assert "costs more than the whole budget" in found.sentences()[-1]


def test_certainty_leaves_nothing_to_gain() -> None:
    assert [each.gain for each in answer(pilot(0.001, gap=0.3)).further] == pytest.approx([0, 0], abs=1e-9)


def test_rungs_that_contradict_the_curve_are_named_and_nothing_is_recommended() -> None:
    scores = pilot(0.001)
    scores["kd"][2:] -= 0.5
    found = answer(scores)
    assert found.contradicted == ("kd",)
    assert found.sentence().startswith(
        "cannot tell yet at 128 PFLOP: the rungs of kd contradict the form of the curve, a power law; if it held"
    )
    told = found.as_json()
    assert told["recommendation"] is None
    assert told["best_if_form_holds"] == found.recommendation
    assert not any("worth it" in sentence for sentence in found.sentences())


def falling(exponents: tuple[float, ...], *, rungs: int, seed: int) -> Pilot:
    """Arms whose losses fall along power laws, at doubling budgets from 1."""
    rng = np.random.default_rng(seed)
    means = [4 + 2 * (2.0 ** np.arange(rungs)) ** -exponent for exponent in exponents]
    return {f"arm{i}": mean[:, None] + 0.02 * rng.normal(size=(rungs, 3)) for i, mean in enumerate(means)}


def test_three_rungs_on_power_laws_get_a_recommendation() -> None:
    """The line that three rungs are far from made no figure: only the power law, that did, is on trial."""
    for seed in range(20):
        found = decide([1, 2, 4], falling((0.5, 1.0), rungs=3, seed=seed), budget=64, higher_is_better=False)
        assert found.contradicted == ()
        assert found.as_json()["recommendation"] == found.recommendation


def test_three_rungs_at_the_end_of_a_plateau_are_refused() -> None:
    """Flat, then falling faster, as no power law does: the second arm's rungs of the recorded pilot on two cores."""
    noise = np.array([[0.008], [0.018], [0.016]]) * [-1.0, 0.0, 1.0]
    scores = {
        "no_kd": falling((0.3,), rungs=3, seed=0)["arm0"],
        "tinybert": np.array([[6.645], [6.599], [6.133]]) + noise,
    }
    found = decide([0.428, 0.857, 1.71], scores, budget=42, higher_is_better=False)
    assert found.contradicted == ("tinybert",)
    assert "contradict the form of the curve, a power law" in found.sentence()


@pytest.mark.parametrize("rungs", [3, 4])
def test_a_form_that_holds_is_refuted_for_any_of_many_arms_in_5_per_cent(rungs: int) -> None:
    """Straight lines, the form's edge, where it is refuted most easily; ten arms in 200 pilots."""
    rng = np.random.default_rng(rungs)
    refuted = 0
    for _ in range(200):
        table = 5 - 0.3 * np.arange(rungs)[:, None] + 0.02 * rng.normal(size=(10, rungs, 3))
        arms = [f"arm{i}" for i in range(10)]
        refuted += bool(decision._contradicted(2.0 ** np.arange(rungs), arms, table))
    assert refuted <= 17, "of 200: a right form is refuted in more than 17 once in a hundred such tests"


def test_the_answer_is_json_with_its_sentences() -> None:
    found = answer(pilot(0.05))
    again = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert again["recommendation"] == found.recommendation
    assert again["sentences"] == found.sentences()
    assert len(found.sentences()) == 2 + 2 + 2


@pytest.mark.parametrize(
    ("scores", "settings", "error", "says"),
    [
        ({"a": [[1.0, 2.0]] * 4}, {}, ConfigError, "1 arm"),
        ({"a": [[1.0]] * 4, "b": [[2.0]] * 4}, {}, DataError, "one seed"),
        ({"a": [[1.0, 1.0]] * 4, "b": [[2.0, 2.0]] * 4}, {}, DataError, "last digit"),
        ({"a": [[1.0, 2.0]] * 4, "b": [[2.0, 2.5, 3.0]] * 4}, {}, DataError, "share their seeds"),
        ({"a": [[1.0, 2.0]] * 3, "b": [[2.0, 2.5]] * 4}, {}, DataError, "same seeds"),
        ({"a": [[1.0, math.nan]] * 4, "b": [[2.0, 2.5]] * 4}, {}, DataError, "scores of a"),
        ({"a": [[1.0, 2.0]] * 4, "b": [[2.0, 2.5]] * 4}, {"left": {"b": -1.0}}, ConfigError, "leaves it nothing"),
        ({"a": [[1.0, 2.0]] * 4, "b": [[2.0, 2.5]] * 4}, {"budget": math.inf}, ConfigError, "of the budget left"),
    ],
)
def test_pilots_that_decide_nothing_are_refused(scores: Any, settings: Any, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        answer(scores, **settings)


@pytest.mark.slow
def test_stated_probabilities_and_regrets_are_those_that_come_true(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truths drawn as the posterior supposes, three arms close to each other; a full budget 12 times the top rung."""
    monkeypatch.setattr(decision, "DRAWS", 1_000)
    monkeypatch.setattr(decision, "FURTHER", 10)
    rng = np.random.default_rng(12)
    doublings = np.arange(4.0)
    stated, right, regret, happened, inside = [], [], [], [], 0
    for _ in range(600):
        exponents = np.minimum(rng.exponential(0.5, size=3), 2.0)[:, None]
        first, fall = 3 + 0.03 * rng.normal(size=(3, 1)), 0.3 + 0.03 * rng.normal(size=(3, 1))

        def truth(log_budget: np.ndarray, e: Any = exponents, f: Any = first, d: Any = fall) -> np.ndarray:
            return f - d * np.expm1(-e * log_budget) / np.expm1(-e * math.log(8))

        scores = (
            truth(doublings * math.log(2))[..., None]
            + 0.05 * rng.normal(size=(1, 1, 3))
            + 0.02 * rng.normal(size=(3, 4, 3))
        )
        found = decide(2**doublings, dict(zip("abc", scores, strict=True)), budget=100, higher_is_better=False)
        at_full = dict(zip("abc", truth(np.array([math.log(100)]))[:, 0], strict=True))
        lost = at_full[found.recommendation] - min(at_full.values())
        stated.append(found.probability)
        right.append(lost == 0)
        regret.append(found.expected_regret)
        happened.append(lost)
        inside += sum(o.low <= at_full[o.arm] <= o.high for o in found.outlooks)
    with capsys.disabled():
        print(
            f"\nstated {np.mean(stated):.1%}, right {np.mean(right):.1%}; regret stated {np.mean(regret):.4f}, "
            f"happened {np.mean(happened):.4f}; intervals hold {inside / 1800:.1%}"
        )
    assert np.mean(right) == pytest.approx(np.mean(stated), abs=0.05)
    assert np.mean(happened) == pytest.approx(np.mean(regret), rel=0.3)
    assert 0.92 <= inside / 1800 <= 0.98
