"""Laws of the alarms: each signature is raised where it is, and nowhere else."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness import alarms
from harness.alarms import (
    Copied,
    copies_errors,
    late_share,
    segments,
    spikes,
    stalled,
    teacher_part,
    unstable,
    weak,
    weak_teacher,
)
from harness.evaluate import agreement

FALLING = [2 + 4 * math.exp(-i / 30) for i in range(120)]
EARLY = [2 + 4 * math.exp(-i / 5) for i in range(120)]
SOON = EARLY[::4]


def rows(losses: list[float], term: str = "mlm") -> list[dict]:
    return [{"loss": loss, "terms": {term: loss}} for loss in losses]


def test_a_loss_that_stops_falling_early_is_a_plateau_and_a_steady_one_is_not() -> None:
    assert [a.kind for a in stalled([rows(EARLY)], arm="a")] == ["plateau"]
    assert stalled([rows(FALLING)], arm="a") == []
    assert stalled([rows([6 - i / 40 for i in range(120)])], arm="a") == []


def test_a_plateau_of_the_last_phase_is_told_as_that() -> None:
    """Three quarters of the budget on the text, then a distillation that soon stands still."""
    (alarm,) = stalled([rows(FALLING[:90]) + rows(SOON, "tinybert")], arm="a")
    assert alarm.text == "a: the training objective stopped falling before half of its last phase was over."
    (alarm,) = stalled([rows(EARLY)], arm="a")
    assert alarm.text == "a: the training objective stopped falling before half of the budget was spent."
    (alarm,) = stalled([rows(FALLING[:90], "mlm") + both(FALLING[:30], SOON)], arm="a")
    assert "its teacher stopped falling before half of its last phase was over" in alarm.text


@pytest.mark.parametrize("level", [0.0, 4.0])
def test_a_loss_that_never_fell_is_a_plateau_from_the_first_row(level: float) -> None:
    never = "a: the training objective never fell by more than the noise of its rows."
    assert [a.text for a in stalled([rows([level] * 20)], arm="a")] == [never]
    assert [a.text for a in stalled([rows([4 + i / 100 for i in range(100)])], arm="a")] == [never], "nor did this"
    assert stalled([rows([level] * 19)], arm="a") == [], "too short to judge"
    (alarm,) = stalled([rows(FALLING) + rows([level] * 30, "tinybert")], arm="a")
    assert "never fell in its last phase by more than the noise" in alarm.text
    (alarm,) = stalled([both(FALLING, [level] * 120)], arm="a")
    assert alarm.text.startswith("a: what it learns from its teacher never fell")


def test_a_loss_within_its_noise_never_fell_and_a_fall_of_some_of_it_did() -> None:
    flat = [bool(stalled([rows(noisy([4.0] * 120, 0.3, seed))], arm="a")) for seed in range(200)]
    slight = [
        bool(stalled([rows(noisy([4 - i / 120 for i in range(120)], 0.3, seed))], arm="a")) for seed in range(200)
    ]
    assert sum(flat) >= 150, "five in six: the fall of a flat loss is above one standard error in the sixth"
    assert sum(slight) == 0, "it falls by seven standard errors"
    several = [rows(noisy([4.0] * 120, 0.3, seed)) for seed in range(3)] + [rows(FALLING)]
    assert stalled(several, arm="a") == [], "on average over the runs it fell"


def noisy(losses: list[float], size: float, seed: int) -> list[float]:
    noise = random.Random(seed)
    return [x + noise.gauss(0, size) for x in losses]


@pytest.mark.parametrize("size", [0.02, 0.4, 1.5])
def test_noise_alone_makes_no_plateau_and_little_noise_hides_none(size: float) -> None:
    """FALLING gains a tenth of its fall late; 40 noisy copies of it, and of one that stands still."""
    falling, early = (
        [bool(stalled([rows(noisy(losses, size, seed))], arm="a")) for seed in range(40)] for losses in (FALLING, EARLY)
    )
    assert sum(falling) <= 2
    assert sum(early) >= (38 if size < 0.1 else 0)


def test_the_standard_error_of_a_late_share_is_its_spread() -> None:
    found = [late_share(noisy(FALLING, 0.3, seed)) for seed in range(300)]
    shares, errors = zip(*(pair for pair in found if pair is not None), strict=True)
    assert statistics.fmean(errors) == pytest.approx(statistics.stdev(shares), rel=0.25)


def both(text: list[float], taught: list[float]) -> list[dict]:
    return [
        {"loss": a + b, "terms": {"kd.cross_entropy": a, "kd.kl": b}} for a, b in zip(text, taught, strict=True)
    ]  # fmt: skip


def test_text_that_is_still_learnt_hides_no_distillation_that_stands_still() -> None:
    assert not stalled([both(FALLING, FALLING)], arm="a")
    (alarm,) = stalled([both(FALLING, EARLY)], arm="a")
    assert alarm.kind == "plateau"
    assert "from its teacher" in alarm.text
    assert not stalled([both(EARLY, FALLING)], arm="a"), "the teacher goes on teaching"
    assert len(stalled([both(EARLY, EARLY)], arm="a")) == 1, "said once"


def test_the_teachers_part_is_known_only_beside_a_part_of_the_text() -> None:
    assert teacher_part(rows(FALLING, "kd.kl")) == []
    assert teacher_part(rows(FALLING, "mlm.cross_entropy")) == []
    assert teacher_part([]) == []
    late = both(FALLING, EARLY) + rows(FALLING, "mlm.cross_entropy")
    assert teacher_part(late) == [], "the last phase alone is judged"
    assert teacher_part(rows(FALLING, "mlm.cross_entropy") + both(FALLING, EARLY)) == EARLY


@given(st.lists(st.floats(0.1, 10), max_size=19))
def test_a_curve_too_short_to_judge_raises_nothing(losses: list[float]) -> None:
    assert late_share(losses) is None
    assert stalled([rows(losses)], arm="a") == []
    assert stalled([both(losses, losses)], arm="a") == []


def test_a_loss_that_never_fell_has_no_share() -> None:
    assert late_share([1 + i / 100 for i in range(100)]) is None


def test_one_run_without_rows_silences_an_arm_s_plateau() -> None:
    assert [a.kind for a in stalled([rows(EARLY), rows(EARLY)], arm="a")] == ["plateau"]
    assert stalled([rows(EARLY), []], arm="a") == []


def test_the_last_phase_alone_is_judged_and_a_change_of_objective_is_no_spike() -> None:
    two = rows(FALLING) + rows([3 * x for x in FALLING], "minilmv2")
    assert [len(cut) for cut in segments(two)] == [120, 120]
    assert stalled([two], arm="a") == []
    assert unstable(two, arm="a", seed=1, steps=240, skipped=0) == []


@pytest.mark.parametrize("place", [5, 60, 119])
def test_a_jump_of_the_loss_is_a_spike_where_it_happens(place: int) -> None:
    jumped = [x * (1.6 if i == place else 1) for i, x in enumerate(FALLING)]
    assert place in spikes(jumped)
    assert len(spikes(jumped)) == 1


def test_a_noisy_but_steady_loss_is_no_spike() -> None:
    noisy = [x * (1 + 0.05 * math.sin(7 * i)) for i, x in enumerate(FALLING)]
    assert spikes(noisy) == []


def test_a_few_skipped_steps_are_a_loss_scale_and_many_are_an_alarm() -> None:
    assert unstable([], arm="a", seed=1, steps=500, skipped=9) == []
    assert unstable([], arm="a", seed=1, steps=50_000, skipped=400) == []
    (alarm,) = unstable([], arm="a", seed=1, steps=500, skipped=40)
    assert (alarm.kind, alarm.seed) == ("instability", 1)
    assert "40 of 500" in alarm.text


@pytest.mark.parametrize("junk", [None, "x", True, float("nan"), [], {}])
def test_junk_in_a_row_or_a_record_raises_nothing(junk: object) -> None:
    assert segments([{"loss": junk, "terms": junk}]) == [] or junk is not True
    assert unstable([{"loss": junk}], arm="a", seed=1, steps=junk, skipped=junk) == []


# -- copied errors -----------------------------------------------------------------------------------


def test_copying_needs_a_clear_excess_over_an_equally_large_student() -> None:
    assert copies_errors(Copied(2000, 0.30, 0.12), arm="kd", baseline="no_kd")[0].kind == "copied_errors"
    assert copies_errors(Copied(2000, 0.15, 0.12), arm="kd", baseline="no_kd") == []  # too small to matter
    assert copies_errors(Copied(20, 0.30, 0.20), arm="kd", baseline="no_kd") == []  # too few to tell
    assert copies_errors(Copied(2000, 0.12, 0.30), arm="kd", baseline="no_kd") == []
    # Half as accurate again, and half as many of the teacher's errors again: it knows more, it copies nothing.
    assert copies_errors(Copied(2000, 0.30, 0.20, gain=1.5), arm="kd", baseline="no_kd") == []
    (alarm,) = copies_errors(Copied(2000, 0.40, 0.20, gain=1.5), arm="kd", baseline="no_kd")
    assert "30\u202f% at kd's accuracy" in alarm.text
    assert Copied(2000, 0.30, 0.20, gain=0.5).expected == 0.20, "knowing less excuses nothing"
    assert Copied(100, 0.6, 0.5).p == pytest.approx(0.0776, abs=1e-4)
    assert Copied(0, 0.0, 0.0).p == 1.0


def test_shares_are_those_of_the_positions_the_teacher_got_wrong(tmp_path: Path) -> None:
    labels = torch.tensor([1, 2, 3, 4, 5])
    agreement.keep(tmp_path, "mlm", torch.tensor([1, 9, 9, 9, 9]))  # the teacher: four errors
    student = tmp_path / "student"
    student.mkdir()
    agreement.keep(student, "mlm", torch.tensor([9, 9, 9, 4, 0]))  # two of them repeated
    agreement.keep(student, "readout", torch.tensor([1, 2, 3, 9, 5]))
    assert agreement.copied(student, tmp_path, labels=labels) == {"errors": 4, "mlm": 0.5, "readout": 0.25}


def test_answers_of_other_blocks_or_none_at_all_give_no_share(tmp_path: Path) -> None:
    labels = torch.tensor([1, 2])
    assert agreement.copied(tmp_path, tmp_path, labels=labels) is None
    agreement.keep(tmp_path, "mlm", torch.tensor([1, 2]))
    assert agreement.copied(tmp_path, tmp_path, labels=labels) is None  # no error to copy
    agreement.keep(tmp_path, "mlm", torch.tensor([1, 3, 4]))
    assert agreement.copied(tmp_path, tmp_path, labels=labels) is None
    (tmp_path / agreement.FILE).write_bytes(b"torn")
    assert agreement.copied(tmp_path, tmp_path, labels=labels) is None


# -- the teacher -------------------------------------------------------------------------------------


def test_a_teacher_hardly_better_than_counts_of_tokens_is_weak() -> None:
    assert weak(6.4, 6.5)
    assert weak(float("nan"), 6.5)
    assert not weak(3.6, 6.5)
    (alarm,) = weak_teacher({"teacher_loss": 6.4, "frequency_loss": 6.5, "student_loss": 8.7}, arm="kd")
    assert (alarm.kind, alarm.arm) == ("weak_teacher", "kd")
    assert "6.400" in alarm.text
    assert "6.500" in alarm.text
    assert weak_teacher({"teacher_loss": 3.6, "frequency_loss": 6.5}, arm="kd") == []
    assert weak_teacher({"teacher_loss": 6.4, "student_loss": 8.7}, arm="kd") == [], (
        "a record from before tells nothing"
    )
    assert weak_teacher({}, arm="kd") == []


def test_an_alarm_is_plain_json() -> None:
    assert alarms.Alarm("plateau", "a", "text").as_json() == {
        "kind": "plateau",
        "arm": "a",
        "text": "text",
        "seed": None,
    }


def test_a_finished_run_raises_its_own_alarms_before_any_score_is_known() -> None:
    record = {"name": "kd", "seed": 2, "steps": 500, "skipped_steps": 40}
    assert [a.kind for a in alarms.of_trial(rows(EARLY), record)] == ["instability", "plateau"]
    assert alarms.of_trial(rows(FALLING), {"name": "kd", "seed": 2, "steps": 500, "skipped_steps": 0}) == []
    assert alarms.of_trial([], {}) == []
