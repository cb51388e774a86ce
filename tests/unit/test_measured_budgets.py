"""Law 1 for measured units, in virtual time: the real loop under clocks and counters that a test moves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import train
from harness.budget import Account, Budget, Charge, Ledger
from harness.errors import ConfigError
from harness.meters.device_time import DeviceClock
from harness.meters.energy_counter import CounterMeter
from harness.meters.energy_reading import EnergyMeter, NullMeter
from harness.meters.energy_run import RunEnergy
from harness.meters.measured import Measured
from harness.meters.wall_time import WallClock
from harness.ranks import Ranks
from harness.study import ScheduleSpec
from harness.study.accounting import default_charged
from harness.units import Unit

DEVICES = 2
STARTUP_S, EVALUATION_S = 3.0, 0.75
WATTS = 300.0
MEASURED = [Unit.SECOND, Unit.ALLOCATED_GPU_SECOND, Unit.GPU_SECOND, Unit.JOULE]


class World:
    """Virtual time, and a device whose counter shows joules up to its last update; from `lost_at` on it is gone."""

    name, wrap_j = "fake", None

    def __init__(self, *, update_s: float = 0.02, lost_at: float = math.inf) -> None:
        self.now = 1000.0
        self.lag_s = update_s
        self._lost_at = lost_at

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def read_j(self) -> float | None:
        return None if self.now >= self._lost_at else WATTS * math.floor(self.now / self.lag_s) * self.lag_s

    def power_w(self) -> float | None:
        return None if self.now >= self._lost_at else WATTS

    def reason(self) -> str:
        return "fake: the GPU is lost"

    def meter(self) -> CounterMeter:
        return CounterMeter([self], source="fake counter", clock=self.clock, min_window_s=0.0, max_share=math.inf)


class Plan:
    phases = (None,)

    def phase_at(self, fraction: float) -> int:
        return 0

    def schedule_progress(self, fraction: float) -> float:
        return fraction

    def teacher_needs(self, phase: int) -> None:
        return None


class Engine:
    """Steps that take as long as the list says, over and over."""

    device = torch.device("cpu")

    def __init__(self, world: World, durations: list[float]) -> None:
        self.world = world
        self.durations = durations
        self.taken: list[float] = []

    def set_learning_rate(self, lr: float, *, active: list[bool]) -> None:
        """Nothing learns here."""

    def learning_rates(self) -> list[dict[str, float]]:
        return [{"lr": 0.0}]

    def __call__(self, *_: Any) -> dict[str, torch.Tensor]:
        self.taken.append(self.durations[len(self.taken) % len(self.durations)])
        self.world.now += self.taken[-1]
        return {"total": torch.ones(())}

    def backward(self, loss: torch.Tensor) -> None:
        """Its time is in the forward's."""

    def step(self) -> bool:
        return True


class Loop:
    """A trial whose model is a stopwatch."""

    def __init__(
        self, folder: Path, world: World, durations: list[float], budget: Budget, *, meter: EnergyMeter | None = None,
        charged: frozenset[Account] | None = None, **trial: Any,
    ) -> None:  # fmt: skip
        self.world, self.engine = world, Engine(world, durations)
        energy = RunEnergy(
            meter or world.meter(), budgeted=budget.unit is Unit.JOULE, clock=world.clock, sleep=world.sleep
        )
        started = world.now
        self.measured = Measured(
            Ranks(), unit=budget.unit, device=DeviceClock(cuda=False, clock=world.clock),
            wall=WallClock(counts=True, held=DEVICES, started=started, clock=world.clock), energy=energy,
            started=started, clock=world.clock,
        )  # fmt: skip
        energy.start()
        world.now += STARTUP_S
        self.ledger = Ledger(budget, charged=charged or default_charged(budget.unit), path=folder / "ledger.jsonl")
        stub: Any = type("Stub", (), {})()
        stub.plan, stub.active, stub.tokens_per_step = Plan(), [[True]], 64
        engine: Any = self.engine
        self.trial = train.Trial(
            directory=folder, trainee=stub, groups=stub, engine=engine, teacher=None, stream=stub, corpus=stub,
            ledger=self.ledger, meters=[self.measured], measured=self.measured, schedule=ScheduleSpec(), peak_lr=1.0,
            ranks=Ranks(), **trial,
        )  # fmt: skip

    def run(self) -> Loop:
        self.trial.run()
        return self


@pytest.fixture(autouse=True)
def endless_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Batches:
        def __next__(self) -> list[Any]:
            return [None]

        def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr(train, "prefetched", lambda *_: Batches())


def price_of(unit: Unit, seconds: float) -> float:
    """What a step of this length costs in this unit."""
    return seconds * {Unit.ALLOCATED_GPU_SECOND: DEVICES, Unit.JOULE: WATTS}.get(unit, 1)


@pytest.mark.parametrize("unit", MEASURED)
@settings(max_examples=25)
@given(durations=st.lists(st.sampled_from([0.1, 0.12, 0.2, 0.34]), min_size=1, max_size=7), steps=st.integers(20, 90))
def test_law_1_a_measured_budget_stops_within_one_step(
    tmp_path_factory: pytest.TempPathFactory, unit: Unit, durations: list[float], steps: int
) -> None:
    """Never past the limit by more than a step longer than predicted, never short by more than a step."""
    overhead = STARTUP_S if unit in (Unit.SECOND, Unit.ALLOCATED_GPU_SECOND) else 0
    limit = price_of(unit, overhead + steps * sum(durations) / len(durations))
    loop = Loop(tmp_path_factory.mktemp("trial"), World(), durations, Budget(limit, unit)).run()
    step = price_of(unit, max(durations) + World().lag_s)
    assert abs(loop.ledger.remaining) <= step
    assert loop.ledger.price(loop.measured.next_step(0)) > loop.ledger.remaining, "the next step was not affordable"


@pytest.mark.parametrize("unit", MEASURED)
def test_the_ledger_holds_what_the_clocks_show(tmp_path: Path, unit: Unit) -> None:
    """Every second is in one account, and steady steps are exact."""
    loop = Loop(tmp_path, World(), [0.2], Budget(price_of(unit, 60.0), unit)).run()
    steps, ledger = len(loop.engine.taken), loop.ledger
    assert ledger.amount(Account.STUDENT_STEP, Unit.GPU_SECOND) == pytest.approx(steps * 0.2)
    assert ledger.amount(Account.STARTUP, Unit.SECOND) == pytest.approx(STARTUP_S)
    assert ledger.amount(Account.STARTUP, Unit.JOULE) == pytest.approx(WATTS * STARTUP_S, abs=WATTS * 0.03)
    elapsed = loop.world.now - 1000.0
    for each, per_second in ((Unit.SECOND, 1), (Unit.ALLOCATED_GPU_SECOND, DEVICES)):
        assert sum(ledger.amount(account, each) for account in Account) == pytest.approx(elapsed * per_second)
    joules = loop.measured.energy.tally
    assert joules.joules == pytest.approx(WATTS * elapsed, rel=0.01)
    assert joules.coverage == pytest.approx(1.0)
    assert joules.uncertainty_j == pytest.approx(WATTS * 0.02, rel=0.1)


def test_allocated_time_pays_for_waiting_and_device_time_does_not(tmp_path: Path) -> None:
    """The same minute: start-up, evaluation and checkpoints are billed by a cluster, not by a stopwatch."""
    world_of: dict[Unit, Loop] = {}
    for unit in (Unit.ALLOCATED_GPU_SECOND, Unit.GPU_SECOND):
        folder = tmp_path / unit
        folder.mkdir()
        world = World()

        def validate(world: World = world) -> dict[str, float]:
            world.now += EVALUATION_S
            return {"mlm_loss": 1.0}

        limit = 60.0 * (DEVICES if unit is Unit.ALLOCATED_GPU_SECOND else 1)
        world_of[unit] = Loop(folder, world, [0.2], Budget(limit, unit), curve_points=2, validate=validate).run()
    billed, stopwatch = world_of[Unit.ALLOCATED_GPU_SECOND], world_of[Unit.GPU_SECOND]
    assert len(stopwatch.engine.taken) == pytest.approx(300, abs=1)
    assert len(billed.engine.taken) == pytest.approx((60 - STARTUP_S - 2 * EVALUATION_S) / 0.2, abs=1)
    for loop in world_of.values():
        assert loop.ledger.amount(Account.EVALUATION, Unit.SECOND) == pytest.approx(2 * EVALUATION_S)
        assert loop.ledger.amount(Account.EVALUATION, Unit.GPU_SECOND) == pytest.approx(2 * EVALUATION_S)
        energy = loop.ledger.amount(Account.EVALUATION, Unit.JOULE)
        assert energy == pytest.approx(2 * EVALUATION_S * WATTS, abs=4 * WATTS * 0.02)


def test_steps_shorter_than_the_counters_update_are_kept_in_mind(tmp_path: Path) -> None:
    """A counter that moves every 100 ms under steps of 7 ms: the run may not go on as if they were free."""
    limit = WATTS * 5.0
    loop = Loop(tmp_path, World(update_s=0.1), [0.007], Budget(limit, Unit.JOULE)).run()
    assert abs(loop.ledger.remaining) <= WATTS * (0.007 + 0.1)
    assert sum(loop.engine.taken) == pytest.approx(5.0, abs=0.11)


def test_a_device_lost_mid_run_makes_no_step_free_and_is_said(tmp_path: Path) -> None:
    """Joules measured until then, predicted ones after: the run ends where it would have ended."""
    world = World(lost_at=1000.0 + STARTUP_S + 30)
    loop = Loop(tmp_path, world, [0.2], Budget(WATTS * 60, Unit.JOULE)).run()
    assert len(loop.engine.taken) == pytest.approx(300, abs=2)
    tally = loop.measured.energy.tally
    assert tally.joules == pytest.approx(WATTS * (STARTUP_S + 30), rel=0.02), "the record holds what was measured"
    assert tally.coverage == pytest.approx((STARTUP_S + 30) / (STARTUP_S + 60), rel=0.05)
    assert "the GPU is lost" in " ".join(loop.measured.energy.notes)
    rows = [json.loads(row) for row in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    sources = {charge[3] for row in rows for charge in row["charges"] if charge[2] == "joule"}
    assert sources == {"measured", "predicted"}


def test_an_energy_budget_that_nothing_measures_stops_at_once(tmp_path: Path) -> None:
    loop = Loop(tmp_path, World(), [0.2], Budget(WATTS * 60, Unit.JOULE), meter=NullMeter("no instrument")).run()
    assert len(loop.engine.taken) == 1
    assert loop.measured.energy.blind
    assert loop.measured.energy.tally.joules is None, "unknown, not 0"


def test_a_run_without_an_instrument_completes_and_knows_no_joules(tmp_path: Path) -> None:
    loop = Loop(tmp_path, World(), [0.2], Budget(20, Unit.GPU_SECOND), meter=NullMeter("no instrument")).run()
    tally = loop.measured.energy.tally
    assert (tally.joules, tally.uncertainty_j, tally.coverage) == (None, None, 0.0)
    assert all("joule" not in units for units in loop.ledger.accounts().values())


def test_a_budget_that_start_up_consumes_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="went before the first"):
        Loop(tmp_path, World(), [0.2], Budget(STARTUP_S / 2, Unit.SECOND)).run()


def test_one_slow_step_neither_ends_a_run_nor_lets_it_overrun(tmp_path: Path) -> None:
    """A hiccup of twenty steps' length is paid, and is not believed to come again."""
    durations = [0.2] * 40 + [4.0] + [0.2] * 1000
    loop = Loop(tmp_path, World(), durations, Budget(60.0, Unit.GPU_SECOND)).run()
    assert abs(loop.ledger.remaining) <= 0.2 + 1e-9
    assert len(loop.engine.taken) == pytest.approx((60 - 4) / 0.2 + 1, abs=1)


def test_a_resumed_trial_goes_on_counting_energy(tmp_path: Path) -> None:
    first = Loop(tmp_path, World(), [0.2], Budget(30.0, Unit.GPU_SECOND)).run()
    state = json.loads(json.dumps(first.measured.energy.tally.state()))
    second = RunEnergy(None, budgeted=False)
    second.tally.restore(state)
    assert second.tally == first.measured.energy.tally
    fresh = RunEnergy(None, budgeted=False)
    fresh.tally.restore({})
    assert fresh.tally.joules is None


def two_nodes(updates: tuple[float, float], steps: int) -> tuple[list[RunEnergy], Callable[[], list[Any]]]:
    """Two readers whose counters move at different times, agreed upon by hand."""
    world = [World(update_s=update) for update in updates]
    runs = [RunEnergy(w.meter(), budgeted=True, clock=w.clock, sleep=w.sleep) for w in world]
    for run in runs:
        run.start()
        run.switch(Account.STUDENT_STEP)

    def post() -> list[Any]:
        for each in world:
            each.now += 0.03
        sums = [sum(parts) for parts in zip(*(run.local() for run in runs), strict=True)]
        posted = [run.charges(sums, 1) for run in runs]
        assert posted[0] == posted[1], "all ranks post the same charges"
        return posted[0]

    return runs, post


def test_energy_sums_over_nodes_whose_counters_never_move_together() -> None:
    runs, post = two_nodes((0.07, 0.1), 400)
    charges = [charge for _ in range(400) for charge in post()]
    total = sum(charge.amount for charge in charges)
    assert total == pytest.approx(2 * WATTS * 400 * 0.03, rel=0.02)
    assert runs[0].tally == runs[1].tally
    assert runs[0].predict() == runs[1].predict(), "ranks predict alike"


class Counted:
    """One FLOP a step."""

    def next_step(self, phase: int) -> tuple[Charge, ...]:
        return (Charge(Account.STUDENT_STEP, 1, Unit.FLOP),)

    drain = next_step


def test_a_point_of_the_curve_knows_all_device_time_until_then(tmp_path: Path) -> None:
    """Postings are sixteen steps apart; the second currency of a point must not lag by as much."""
    seen: list[tuple[int, float]] = []
    loop = Loop(
        tmp_path, World(), [0.1], Budget(40, Unit.FLOP), curve_points=3,
        snapshot=lambda *_: seen.append((loop.trial.progress.step, loop.ledger.charged_in(Unit.GPU_SECOND))),
    )  # fmt: skip
    counted: Any = Counted()
    loop.trial.meters = [counted, loop.measured]
    loop.run()
    assert [step for step, _ in seen] == [10, 20, 30]
    assert [seconds for _, seconds in seen] == pytest.approx([1.0, 2.0, 3.0])


def test_device_time_that_is_not_posted_yet_is_unknown_and_not_zero(tmp_path: Path) -> None:
    loop = Loop(tmp_path, World(), [0.1], Budget(40, Unit.FLOP))
    counted: Any = Counted()
    loop.trial.meters = [counted, loop.measured]
    loop.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0]["device_seconds"] is None
    assert rows[-1]["device_seconds"] == pytest.approx(0.1 * 32, abs=0.81)
