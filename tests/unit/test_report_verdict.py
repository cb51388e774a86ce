"""Laws of the verdict: three kinds of sentence, none of them said too early."""

from __future__ import annotations

import re

import numpy as np
import pytest

from harness.compare import against_baseline
from harness.report.verdict import LOSS_MARGIN, headline, judge, margin_of

KINDS = {
    "beats": r"^\S+ beats \S+ by [\d.]+ ± [\d.]+ (nats|points)$",
    "no difference": r"no difference larger than [\d.]+ (nats|points)$",
    "cannot tell": r"cannot tell yet",
}


def study(seeds: int, *, metric: str = "readout.loss", noise: float = 0.01, **means: float):
    rng = np.random.default_rng(seeds)
    shared = rng.normal(0, noise, seeds)
    scores = {
        arm: {seed: mean + shared[seed] + rng.normal(0, noise) for seed in range(seeds)} for arm, mean in means.items()
    }
    return against_baseline(scores, "base", metric=metric)


def test_false_winners_are_announced_in_at_most_six_per_cent_of_studies_without_a_difference() -> None:
    rng = np.random.default_rng(7)
    for seeds in (3, 5):
        noise = rng.normal(size=(2000, 4, seeds))
        announced = 0
        for draw in noise:
            scores = {arm: dict(enumerate(draw[i])) for i, arm in enumerate(("base", "x", "y", "z"))}
            announced += headline(against_baseline(scores, "base", metric="m.loss"), margin=LOSS_MARGIN).kind == "beats"
        assert announced / len(noise) <= 0.06


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("beats", headline(study(5, base=4.2, x=4.0), margin=0.02)),
        ("no difference", headline(study(7, noise=0.003, base=4.2, x=4.2), margin=0.02)),
        ("cannot tell", headline(study(3, base=4.2, x=4.21), margin=0.0001)),
        ("cannot tell", headline(study(1, base=4.2, x=4.0), margin=0.02)),
        ("cannot tell", headline([], margin=0.02)),
    ],
)
def test_a_verdict_is_one_of_three_sentences(kind: str, verdict) -> None:
    assert verdict.kind == kind
    assert [k for k, pattern in KINDS.items() if re.search(pattern, verdict.sentence)] == [kind]


def test_the_winner_is_named_first_whichever_arm_is_the_baseline() -> None:
    assert headline(study(5, base=4.2, x=4.0), margin=0.02).sentence.startswith("x beats base by 0.")
    assert headline(study(5, base=4.0, x=4.2), margin=0.02).sentence.startswith("base beats x by 0.")
    accuracy = study(5, metric="readout.accuracy", base=0.30, x=0.40)
    assert re.match(r"x beats base by 1?\d\.\d+ ± [\d.]+ points", headline(accuracy, margin=0.005).sentence)


def test_the_best_of_several_winners_is_the_headline() -> None:
    assert headline(study(6, base=4.2, x=4.1, y=3.9, z=4.6), margin=0.02).better == "y"


def test_an_open_contender_keeps_the_question_open_although_the_baseline_beats_another() -> None:
    verdict = headline(study(3, base=4.2, x=4.19, z=5.0), margin=0.0001)
    assert (verdict.kind, verdict.a) == ("cannot tell", "x")


def test_one_seed_asks_for_enough_seeds_for_an_interval() -> None:
    verdict = headline(study(1, base=4.2, x=4.0), margin=0.02)
    assert verdict.more_seeds == 2
    assert verdict.sentence == "x or base: cannot tell yet, run 2 more seeds"
    assert "gives no interval" in verdict.reason


def test_the_seeds_asked_for_are_those_that_would_show_the_observed_difference() -> None:
    comparison = study(3, base=4.2, x=4.19)[0]
    verdict = judge(comparison, margin=0.0001)
    assert comparison.seeds_needed is not None
    assert verdict.more_seeds == comparison.seeds_needed - 3


def test_a_need_beyond_fifty_seeds_is_a_lower_bound() -> None:
    scores = {"base": {0: 1.0, 1: 2.0, 2: 3.0}, "x": {0: 1.5, 1: 1.5, 2: 3.001}}
    verdict = headline(against_baseline(scores, "base", metric="m.loss"), margin=0.001)
    assert verdict.sentence == "x or base: cannot tell yet, run at least 48 more seeds"


def test_a_metric_that_measures_only_one_arm_never_decides() -> None:
    rng = np.random.default_rng(1)
    scores = {"base": dict(enumerate(rng.normal(4, 0.01, 5))), "x": dict(enumerate(rng.normal(8, 0.01, 5)))}
    flagged = against_baseline(scores, "base", metric="mlm.loss", meaningless={"x": "x never trained its MLM head"})
    verdict = headline(flagged, margin=0.02)
    assert verdict.kind == "cannot tell"
    assert verdict.reason == "x never trained its MLM head"


def test_a_clear_difference_below_the_margin_is_said_to_be_small() -> None:
    clear = study(6, noise=0.0005, base=4.200, x=4.195)
    assert "smaller than the margin of 0.020 nats" in headline(clear, margin=0.02).reason
    assert "margin" not in headline(clear, margin=0.001).reason


def test_the_margin_is_the_studys_own_where_it_declares_one() -> None:
    assert margin_of({"margin": 0.1}, "readout.loss") == (0.1, True)
    assert margin_of({}, "readout.loss") == (0.02, False)
    assert margin_of({"margin": None}, "probe.order") == (0.005, False)
    assert margin_of({"margin": -1}, "probe.order") == (0.005, False)
