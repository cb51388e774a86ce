"""Laws of energy meters, on instruments of our own making: nothing is invented, lost between spans, or negative."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.meters import energy, rapl
from harness.meters.energy_counter import STALL_S, CounterMeter
from harness.meters.energy_power import PowerMeter
from harness.meters.energy_reading import EnergyReading, JointMeter, NullMeter, combine
from harness.meters.step_energy import StepEnergy


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Instrument:
    """A counter and a power sensor that a test sets by hand; None is a refusal."""

    lag_s = 0.1

    def __init__(self, name: str = "gpu", wrap_j: float | None = None) -> None:
        self.name = name
        self.wrap_j = wrap_j
        self.joules: float | None = 0.0
        self.watts: float | None = None

    def read_j(self) -> float | None:
        return self.joules

    def power_w(self) -> float | None:
        return self.watts

    def reason(self) -> str:
        return f"{self.name}: refused"


def counter_meter(*instruments: Instrument, clock: Clock) -> CounterMeter:
    meter = CounterMeter(instruments, source="counter", clock=clock)
    meter.start()
    return meter


# -- counters ------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.floats(0.15, 20), st.floats(1, 900), st.booleans()), min_size=1, max_size=40))
def test_spans_of_a_healthy_counter_add_up_whatever_the_pattern_of_reads(
    looks: list[tuple[float, float, bool]],
) -> None:
    clock, gpu = Clock(), Instrument()
    meter = counter_meter(gpu, clock=clock)
    readings: list[EnergyReading] = []
    for wait_s, watts, is_read in looks:
        clock.now += wait_s
        assert gpu.joules is not None
        gpu.joules += wait_s * watts
        if is_read:
            readings.append(meter.read(force=True))
        else:
            meter.poll()
    readings.append(meter.read(force=True))
    total = combine(readings, consecutive=True)
    assert total.joules == pytest.approx(gpu.joules)
    assert total.coverage == 1
    assert total.device_s == pytest.approx(clock.now)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 30), st.one_of(st.none(), st.floats(0, 1e6)), st.floats(0, 700), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_no_behaviour_of_a_counter_gives_a_negative_or_an_invented_figure(
    looks: list[tuple[float, float | None, float, bool]],
) -> None:
    clock, gpu = Clock(), Instrument()
    meter = counter_meter(gpu, clock=clock)
    for wait_s, joules, watts, is_read in looks:
        clock.now += wait_s
        gpu.joules, gpu.watts = joules, watts
        if not is_read:
            meter.poll()
            continue
        reading = meter.read(force=True)
        assert 0 <= reading.coverage <= 1
        if reading.joules is None:
            assert reading.coverage == 0
            assert reading.notes
        else:
            assert reading.joules >= 0
            assert reading.coverage > 0
            assert reading.uncertainty_j is not None
            assert reading.uncertainty_j >= 0


def test_a_span_shorter_than_an_update_is_pending_and_never_zero() -> None:
    clock, gpu = Clock(), Instrument()
    meter = counter_meter(gpu, clock=clock)
    clock.now = 0.05
    first = meter.read(force=True)
    assert first.pending
    assert first.joules is None
    clock.now, gpu.joules = 0.3, 90.0
    second = meter.read(force=True)
    assert second.joules == 90
    assert second.coverage == 1
    assert second.device_s == pytest.approx(0.3)


def test_a_counter_that_never_moves_is_unknown_not_zero() -> None:
    clock, gpu = Clock(), Instrument()
    meter = counter_meter(gpu, clock=clock)
    clock.now = STALL_S + 1
    reading = meter.read()
    assert reading.joules is None
    assert reading.coverage == 0
    assert not reading.pending
    assert "stands still" in reading.notes[0]


def test_an_absent_counter_is_told_in_every_span_not_only_the_first() -> None:
    clock, gpu = Clock(), Instrument()
    gpu.joules = None
    meter = counter_meter(gpu, clock=clock)
    for end in (10, 20):
        clock.now = end
        reading = meter.read()
        assert reading.joules is None
        assert reading.notes == ("gpu: refused",)


def test_a_refusal_of_some_seconds_costs_nothing_because_the_counter_integrates() -> None:
    clock, gpu = Clock(), Instrument()
    meter = counter_meter(gpu, clock=clock)
    for second in range(1, 11):
        clock.now = float(second)
        gpu.joules = None if 3 <= second <= 6 else 100.0 * second
        meter.poll()
    reading = meter.read()
    assert reading.joules == 1000
    assert reading.coverage == 1


def test_the_uncertainty_is_one_update_at_the_mean_power() -> None:
    clock, gpu = Clock(), Instrument()
    meter = counter_meter(gpu, clock=clock)
    clock.now, gpu.joules = 10.0, 4000.0
    reading = meter.read()
    assert reading.uncertainty_j == pytest.approx(gpu.lag_s * 400)
    assert reading.ends_j == reading.uncertainty_j


def test_a_reset_counts_what_came_after_it_and_leaves_the_rest_uncovered() -> None:
    clock, gpu = Clock(), Instrument()
    gpu.joules, gpu.watts = 5e6, 200.0
    meter = counter_meter(gpu, clock=clock)
    clock.now, gpu.joules = 10.0, 1200.0  # 6 of the 10 s at 200 W
    reading = meter.read()
    assert reading.joules == 1200
    assert reading.coverage == pytest.approx(0.6)
    assert "reset" in reading.notes[0]


def test_a_value_after_a_reset_that_the_power_cannot_explain_is_not_believed() -> None:
    clock, gpu = Clock(), Instrument()
    gpu.joules, gpu.watts = 5e6, 200.0
    meter = counter_meter(gpu, clock=clock)
    clock.now, gpu.joules = 10.0, 4e6
    reading = meter.read()
    assert reading.joules is None
    assert reading.coverage == 0


def test_reads_sooner_than_useful_do_not_touch_the_instrument() -> None:
    class Counted(Instrument):
        looks = 0

        def read_j(self) -> float | None:
            self.looks += 1
            return super().read_j()

    clock, gpu = Clock(), Counted()
    meter = counter_meter(gpu, clock=clock)
    for i in range(1, 100):
        clock.now, gpu.joules = i * 0.001, float(i)
        assert meter.read().pending
    assert gpu.looks == 1  # the start's


# -- power ---------------------------------------------------------------------------------------------
def test_polled_power_integrates_a_ramp_exactly_and_says_that_it_is_a_fallback() -> None:
    clock, gpu = Clock(), Instrument()
    gpu.watts = 100.0
    meter = PowerMeter([gpu], source=energy.POLLED, period_s=None, clock=clock)
    meter.start()
    for tick in range(1, 601):
        clock.now = tick / 10
        gpu.watts = 100 + 10 * clock.now
        meter.poll()
    reading = meter.read()
    assert reading.joules == pytest.approx(100 * 60 + 10 * 60**2 / 2)
    assert reading.coverage == pytest.approx(1)
    assert "fallback" in reading.source
    assert reading.uncertainty_j is not None
    assert reading.uncertainty_j > 0.05 * 24000


def test_a_hole_between_polls_is_uncovered_and_not_interpolated() -> None:
    clock, gpu = Clock(), Instrument()
    gpu.watts = 100.0
    meter = PowerMeter([gpu], source="polled", period_s=None, clock=clock)
    meter.start()
    for at in (0.5, 1.0, 9.0, 9.5, 10.0):
        clock.now = at
        meter.poll()
    reading = meter.read()
    assert reading.joules == pytest.approx(200)
    assert reading.coverage == pytest.approx(0.2)
    assert "too long to interpolate" in reading.notes[0]


def test_power_that_is_refused_is_unknown() -> None:
    clock, gpu = Clock(), Instrument()
    meter = PowerMeter([gpu], source="polled", period_s=None, clock=clock)
    meter.start()
    clock.now = 10.0
    reading = meter.read()
    assert reading.joules is None
    assert reading.coverage == 0
    assert reading.notes == ("gpu: refused",)


# -- adding up -----------------------------------------------------------------------------------------
parts = st.builds(
    lambda joules, coverage, spread, device_s: EnergyReading(
        joules if coverage > 0 else None, "counter", coverage, spread, device_s=device_s, ends_j=spread / 2
    ),
    st.floats(0, 1e6),
    st.floats(0, 1),
    st.floats(0, 1e3),
    st.floats(1e-3, 1e4),
)


@given(st.lists(parts, min_size=1, max_size=10))
def test_a_sum_is_known_exactly_where_a_part_is_and_covers_what_its_parts_cover(readings: list[EnergyReading]) -> None:
    total = combine(readings)
    known = [r for r in readings if r.joules is not None]
    assert (total.joules is None) == (not known)
    if known:
        assert total.joules == pytest.approx(sum(r.joules or 0 for r in known))
        assert total.uncertainty_j == pytest.approx(sum(r.uncertainty_j or 0 for r in known))
    covered = sum(r.coverage * r.device_s for r in readings)
    assert total.coverage * total.device_s == pytest.approx(covered, abs=1e-6)


def test_the_ends_of_adjoining_spans_cancel() -> None:
    spans = [EnergyReading(100.0, "counter", 1.0, 30.0, device_s=1.0, ends_j=30.0)] * 50
    assert combine(spans, consecutive=True).uncertainty_j == pytest.approx(30)
    assert combine(spans).uncertainty_j == pytest.approx(1500)


def test_pending_readings_count_for_nothing() -> None:
    pending = EnergyReading(None, "counter", 0.0, pending=True)
    assert combine([pending, EnergyReading(5.0, "counter", 1.0, 1.0, device_s=1.0)]).coverage == 1
    assert combine([pending]).joules is None


def test_one_lost_gpu_of_eight_leaves_the_others_energy() -> None:
    clock = Clock()
    gpus = [Instrument(f"gpu{i}") for i in range(8)]
    meter = counter_meter(*gpus, clock=clock)
    clock.now = 10.0
    for gpu in gpus:
        gpu.joules = 1000.0
    gpus[3].joules = None
    reading = meter.read()
    assert reading.joules == 7000
    assert reading.coverage == pytest.approx(7 / 8)
    assert reading.notes == ("gpu3: refused",)


def test_a_joint_meter_holds_back_what_is_early_and_loses_nothing() -> None:
    clock, fast, slow = Clock(), Instrument("fast"), Instrument("slow")
    joint = JointMeter([CounterMeter([fast], source="a", clock=clock), CounterMeter([slow], source="b", clock=clock)])
    joint.start()
    clock.now, fast.joules = 1.0, 10.0
    assert joint.read(force=True).pending
    clock.now, fast.joules, slow.joules = 1.5, 15.0, 30.0
    reading = joint.read(force=True)
    assert reading.joules == 45
    assert reading.source == "a and b"
    assert reading.device_s == pytest.approx(3)


def test_unknown_is_printed_as_unknown() -> None:
    assert str(NullMeter("no sensor").read()) == "unknown (no sensor)"
    assert "99.9 % covered" in str(EnergyReading(100.0, "counter", 0.99999, 1.0))
    assert "± 1 %" in str(EnergyReading(100.0, "counter", 1.0, 1.0))


# -- predicting ----------------------------------------------------------------------------------------
def whole(joules: float) -> EnergyReading:
    return EnergyReading(joules, "counter", 1.0, 0.0, device_s=1.0)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 100)), min_size=1, max_size=60))
def test_a_prediction_lies_within_what_was_observed_and_is_reproducible(seen: list[tuple[float, int]]) -> None:
    one, two = StepEnergy(), StepEnergy()
    for joules, steps in seen:
        one.observe(joules, steps)
        two.observe(joules, steps)
    each = [joules / steps for joules, steps in seen[-32:]]
    prediction = one.predict_step()
    assert prediction is not None
    assert prediction == two.predict_step()
    assert min(each) * (1 - 1e-9) <= prediction <= max(each) * (1 + 1e-9) + 1e-12
    restored = StepEnergy()
    restored.restore(one.state())
    assert restored.predict_step() == prediction


def test_a_burst_hardly_moves_the_prediction_and_a_lasting_change_does() -> None:
    steps = StepEnergy(window=8)
    for i in range(8):
        steps.observe(100.0 + i % 2, 1)
    steps.observe(100_000.0, 1)
    prediction = steps.predict_step()
    assert prediction is not None
    assert prediction < 103
    for _ in range(8):
        steps.observe(200.0, 1)
    assert steps.predict_step() == 200


def test_nothing_observed_predicts_nothing() -> None:
    assert StepEnergy().predict_step() is None
    for joules, steps in ((-1.0, 1), (1.0, 0), (math.nan, 1)):
        with pytest.raises(ValueError, match="is not a cost"):
            StepEnergy().observe(joules, steps)


def test_a_dying_instrument_makes_no_step_free() -> None:
    steps = StepEnergy()
    assert steps.charge(whole(1000.0), 10) == 1000
    dead = EnergyReading(None, "counter", 0.0)
    assert steps.charge(dead, 10) == 1000
    half = EnergyReading(600.0, "counter", 0.5)
    assert steps.charge(half, 10) == pytest.approx(600 + 500)
    assert StepEnergy().charge(dead, 1) is None


def test_pending_steps_are_kept_in_mind_and_charged_once() -> None:
    steps = StepEnergy()
    steps.charge(whole(100.0), 1)
    pending = EnergyReading(None, "counter", 0.0, pending=True)
    assert steps.charge(pending, 1) == 0
    assert steps.charge(pending, 1) == 0
    assert steps.pending_j == 200
    assert steps.charge(whole(330.0), 1) == 330
    assert steps.pending_j == 0
    assert steps.predict_step() == pytest.approx((100 + 330) / 4)


# -- RAPL ----------------------------------------------------------------------------------------------
def powercap(root: Path, *zones: tuple[str, str, int, int]) -> Path:
    for folder, name, microjoules, most in zones:
        (root / folder).mkdir(parents=True)
        (root / folder / "name").write_text(name + "\n")
        (root / folder / "energy_uj").write_text(f"{microjoules}\n")
        (root / folder / "max_energy_range_uj").write_text(f"{most}\n")
    return root


SERVER = (
    ("intel-rapl:0", "package-0", 1_000_000, 262_143_328_850),
    ("intel-rapl:0:0", "core", 900_000, 262_143_328_850),
    ("intel-rapl:0:1", "dram", 500_000, 65_712_999_613),
    ("intel-rapl:1", "package-1", 2_000_000, 262_143_328_850),
    ("intel-rapl:2", "psys", 9_000_000, 262_143_328_850),
    ("intel-rapl-mmio:0", "package-0", 1_000_000, 262_143_328_850),
)


def test_rapl_adds_packages_and_memory_and_counts_nothing_twice(tmp_path: Path) -> None:
    names = [zone.name for zone in rapl.zones(powercap(tmp_path, *SERVER))]
    assert names == ["package-0", "package-0 dram", "package-1"]


def test_a_rapl_counter_that_starts_over_is_continued(tmp_path: Path) -> None:
    root = powercap(tmp_path, ("intel-rapl:0", "package-0", 999_000_000, 1_000_000_000 - 1))
    clock = Clock()
    meter = rapl.meter(rapl.zones(root), clock=clock)
    meter.start()
    clock.now = 4.0
    (root / "intel-rapl:0" / "energy_uj").write_text("3000000\n")
    reading = meter.read()
    assert reading.joules == pytest.approx(4.0)
    assert reading.coverage == 1


def test_a_rapl_counter_read_too_rarely_to_tell_how_often_it_started_over_is_unknown(tmp_path: Path) -> None:
    root = powercap(tmp_path, ("intel-rapl:0", "package-0", 0, 1_000_000_000 - 1))
    clock, file = Clock(), root / "intel-rapl:0" / "energy_uj"
    meter = rapl.meter(rapl.zones(root), clock=clock)
    meter.start()
    clock.now = 4.0
    file.write_text("400000000\n")  # 100 W: once round is 10 s
    assert meter.read().joules == pytest.approx(400)
    clock.now = 104.0
    file.write_text("450000000\n")
    reading = meter.read()
    assert reading.joules is None
    assert "more than once" in reading.notes[-1]


def test_rapl_without_permission_says_how_to_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, plain = powercap(tmp_path, SERVER[0]), Path.read_text

    def refuse(path: Path, *args: object, **kwargs: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    found, reason = rapl.readable(root)
    assert not found
    assert "permission denied" in reason
    assert "chmod a+r" in reason


def test_an_energy_budget_without_an_instrument_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rapl, "readable", lambda: ([], "no RAPL zones here"))
    source = energy.available_energy_source()
    assert not source.available
    assert source.reason == "no RAPL zones here"
    with pytest.raises(ConfigError) as caught:
        energy.require_energy_source("0.5 kWh")
    assert caught.value.exit_code == 2
    assert "no RAPL zones here" in str(caught.value)
    reading = energy.open_energy_meter().read()
    assert reading.joules is None
    assert reading.notes == ("no RAPL zones here",)


def test_rapl_is_the_source_of_a_run_without_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rapl.zones(powercap(tmp_path, *SERVER))
    monkeypatch.setattr(rapl, "readable", lambda: (found, ""))
    assert energy.require_energy_source("10 Wh").kind == "rapl"
    meter = energy.open_energy_meter()
    assert "package-1" in meter.source
