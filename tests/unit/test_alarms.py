"""Laws of the alarms: each signature is raised where it is, and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness import alarms
from harness.alarms import Copied, copies_errors, late_share, plateaued, segments, spikes, stalled, unstable, weak
from harness.evaluate import agreement

FALLING = [2 + 4 * math.exp(-i / 30) for i in range(120)]
EARLY = [2 + 4 * math.exp(-i / 5) for i in range(120)]


def rows(losses: list[float], term: str = "mlm") -> list[dict]:
    return [{"loss": loss, "terms": {term: loss}} for loss in losses]


def test_a_loss_that_stops_falling_early_is_a_plateau_and_a_steady_one_is_not() -> None:
    assert plateaued(EARLY)
    assert not plateaued(FALLING)
    assert not plateaued([6 - i / 40 for i in range(120)])


@given(st.lists(st.floats(0.1, 10), max_size=19))
def test_a_curve_too_short_to_judge_raises_nothing(losses: list[float]) -> None:
    assert late_share(losses) is None
    assert stalled([rows(losses)], arm="a") == []


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


def test_a_teacher_hardly_better_than_random_weights_is_weak() -> None:
    assert weak(7.0, 8.3)
    assert weak(float("nan"), 8.3)
    assert not weak(3.6, 8.7)


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
