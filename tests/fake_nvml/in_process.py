"""What tests do inside a process that has the fake library: each function prints its result as JSON.

Time is the fake's: it moves when a function moves it, so an hour of training takes no time.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.meters.energy import available_energy_source, open_energy_meter, require_energy_source
from harness.meters.energy_reading import EnergyMeter, EnergyReading, combine
from harness.meters.nvml import Nvml, NvmlUnavailable
from harness.meters.nvml_device import Device


class FakeClock:
    """The fake's clock: settable, or running at a factor of real time."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._library.fake_time.restype = ctypes.c_double
        self._library.fake_calls.restype = ctypes.c_ulong
        self.set(0.0)

    def set(self, seconds: float) -> None:
        self._library.fake_set_time(ctypes.c_double(seconds))

    def run(self, factor: float) -> None:
        self._library.fake_run(ctypes.c_double(factor))

    def __call__(self) -> float:
        return float(self._library.fake_time())

    @property
    def calls(self) -> int:
        return int(self._library.fake_calls())


def reading(value: EnergyReading) -> dict[str, Any]:
    return {**asdict(value), "text": str(value)}


def steps(begin: float, end: float, step: float) -> list[float]:
    return [begin + i * step for i in range(1, round((end - begin) / step) + 1)]


# -- nvml ----------------------------------------------------------------------------------------------
def connect() -> dict[str, Any]:
    """Whether NVML opens, and if not why."""
    try:
        with Nvml.open() as nvml:
            return {"open": True, "driver": nvml.driver_version, "uuids": [d.uuid for d in nvml.devices()]}
    except NvmlUnavailable as error:
        return {"open": False, "reason": error.rule, "remedy": error.remedy, "text": str(error)}


def ask(device: Device) -> dict[str, Any]:
    memory, use, reasons = device.memory(), device.utilisation(), device.throttle_reasons()
    answers = {
        "name": device.name,
        "energy_mj": device.energy_mj(),
        "power_w": device.power_w(),
        "power_limit_w": device.power_limit_w(),
        "sm_mhz": device.sm_clock_mhz(),
        "max_sm_mhz": device.max_sm_clock_mhz(),
        "temperature_c": device.temperature_c(),
        "memory": None if memory is None else asdict(memory),
        "utilisation": None if use is None else asdict(use),
        "throttle": None if reasons is None else list(reasons),
        "capability": device.compute_capability(),
        "gpm": device.gpm() is not None,
        "sm_count": device.sm_count,
        "is_mig": device.is_mig,
        "lost": device.lost,
    }
    return {**answers, "reasons": dict(device.reasons)}


def describe(uuid: str, at_s: float = 0.0, times: int = 1) -> dict[str, Any]:
    """Every query of one device, asked `times` times; the last answers and the driver calls the last round took."""
    clock = FakeClock()
    with Nvml.open() as nvml:
        device = nvml.device(uuid)
        clock.set(at_s)
        answers: dict[str, Any] = {}
        calls = 0
        for _ in range(times):
            before = clock.calls
            answers = ask(device)
            calls = clock.calls - before
        return {**answers, "calls": calls}


def resolve(uuids: list[str]) -> list[str]:
    """Each spelling's UUID, or why there is none."""
    with Nvml.open() as nvml:
        found: list[str] = []
        for uuid in uuids:
            try:
                found.append(nvml.device(uuid).uuid)
            except NvmlUnavailable as error:
                found.append(f"refused: {error.rule}")
        return found


def visible(environments: list[dict[str, str]]) -> list[Any]:
    """The UUIDs CUDA would see under each environment, or why that cannot be known."""
    with Nvml.open() as nvml:
        seen: list[Any] = []
        for environment in environments:
            try:
                seen.append([device.uuid for device in nvml.visible(environment)])
            except NvmlUnavailable as error:
                seen.append(f"refused: {error.rule}")
        return seen


def gpm(uuid: str, times_s: list[float]) -> dict[str, Any]:
    """GPM readings at these times of the fake."""
    clock = FakeClock()
    with Nvml.open() as nvml:
        device = nvml.device(uuid)
        reader = device.gpm()
        if reader is None:
            return {"readings": None, "reason": device.reasons["gpm"]}
        readings: list[Any] = []
        for at in times_s:
            clock.set(at)
            value = reader.read()
            readings.append(None if value is None else {**asdict(value), "window_s": None})
        reader.close()
        return {"readings": readings, "reason": device.reasons.get("gpm", "")}


# -- energy ----------------------------------------------------------------------------------------------
def integrate(
    uuids: list[str], reads_s: list[float], polls_s: Sequence[float] = (), counters: bool = True
) -> dict[str, Any]:
    """An energy meter over virtual time: the reading at every time of `reads_s`, and their sum."""
    clock = FakeClock()
    meter: EnergyMeter = open_energy_meter(uuids, clock=clock, poll_period_s=None, counters=counters)
    meter.start()
    readings: list[EnergyReading] = []
    for at, is_read in sorted([(t, False) for t in polls_s] + [(t, True) for t in reads_s]):
        clock.set(at)
        if is_read:
            readings.append(meter.read(force=True))
        else:
            meter.poll()
    meter.close()
    return {
        "readings": [reading(r) for r in readings],
        "total": reading(combine(readings, consecutive=True)),
        "source": meter.source,
    }


def polled_in_real_time(uuids: list[str], factor: float, seconds: float) -> dict[str, Any]:
    """The meter with its own polling thread, over `seconds` of a clock that runs `factor` times as fast."""
    clock = FakeClock()
    meter = open_energy_meter(uuids, clock=clock, poll_period_s=0.1 / factor)
    clock.run(factor)
    meter.start()
    began = clock()
    while clock() - began < seconds:
        time.sleep(0.05)
    value = meter.read(force=True)
    meter.close()
    return reading(value)


def source(uuids: list[str], budget: str = "0.5 kWh") -> dict[str, Any]:
    """What would measure energy, and whether a budget in joules is accepted."""
    from harness.errors import ConfigError

    found = available_energy_source(uuids)
    try:
        require_energy_source(budget, uuids)
        refusal, code = "", 0
    except ConfigError as error:
        refusal, code = str(error), error.exit_code
    return {**asdict(found), "available": found.available, "refusal": refusal, "exit_code": code}


def throttle(uuids: list[str], every_s: float, count: int) -> dict[str, Any]:
    """Reads far more often than the counter moves: how many driver calls that costs."""
    clock = FakeClock()
    meter = open_energy_meter(uuids, clock=clock)
    meter.start()
    before = clock.calls
    values: list[EnergyReading] = []
    for i in range(1, count + 1):
        clock.set(i * every_s)
        values.append(meter.read())
    calls = clock.calls - before
    meter.close()
    zeros = sum(v.joules == 0 for v in values)
    return {
        "calls": calls,
        "pending": sum(v.pending for v in values),
        "zeros": zeros,
        "total": reading(combine(values, consecutive=True)),
    }


def cost(uuids: list[str], count: int) -> dict[str, float]:
    """Real microseconds per read, with and without a look at the counters."""
    clock = FakeClock()
    meter = open_energy_meter(uuids, clock=clock)
    meter.start()
    began = time.perf_counter()
    for i in range(1, count + 1):
        clock.set(float(i))
        meter.read(force=True)
    full = (time.perf_counter() - began) / count
    began = time.perf_counter()
    for _ in range(count):
        meter.read()
    skipped = (time.perf_counter() - began) / count
    meter.close()
    return {"read_us": 1e6 * full, "skipped_us": 1e6 * skipped}


# -- sampler ---------------------------------------------------------------------------------------------
def sample(uuids: list[str], path: str, times_s: list[float]) -> dict[str, Any]:
    """A sampler driven by hand over virtual time; its file is at `path`."""
    from harness.meters.sampler import open_sampler

    clock = FakeClock()
    sampler = open_sampler(uuids, Path(path), node=3)
    sampler._clock = clock  # pyright: ignore[reportPrivateUsage]
    sampler.start(thread=False)
    for at in times_s:
        clock.set(at)
        sampler.sample()
    sampler.stop()
    sampler.stop()
    return {"error": sampler.error}


def sample_threaded(
    uuids: list[str], path: str, period_s: float, seconds: float, factor: float = 1.0
) -> dict[str, Any]:
    """A sampler in its own thread over real time, with an energy meter polled beside it."""
    from harness.meters.sampler import open_sampler

    clock = FakeClock()
    clock.run(factor)
    meter = open_energy_meter(uuids, clock=clock)
    meter.start()
    sampler = open_sampler(uuids, Path(path), period_s=period_s, also=[meter.poll])
    began = time.monotonic()
    with sampler:
        time.sleep(seconds)
    stopped_in = time.monotonic() - began - seconds
    value = meter.read(force=True)
    meter.close()
    overhead, error = sampler.overhead, sampler.error
    return {"stopped_in_s": stopped_in, "overhead": overhead, "error": error, "energy": reading(value)}


# -- whole runs ------------------------------------------------------------------------------------------
def train(uuids: list[str], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Studies trained on the CPU while these GPUs stand for its devices; each run starts at its `at_s`.

    The fake's clock runs with real time, so that a joule is a joule of this run.
    """
    from harness import cli
    from harness.meters import node

    clock = FakeClock()
    here = node.Node(index=0, count=1, reads=True, uuids=tuple(uuids))
    node.find = lambda ranks: here
    records: list[dict[str, Any]] = []
    for run in runs:
        clock.set(run["at_s"])
        clock.run(1.0)
        code = cli.main(run["command"])
        file = Path(run["record"])
        records.append({"code": code, **(json.loads(file.read_text()) if file.exists() else {})})
    return records


# -- doctor ----------------------------------------------------------------------------------------------
def diagnose(environ: dict[str, str]) -> list[dict[str, str]]:
    """The findings that concern devices, under this environment."""
    from harness.doctor_devices import check_gpus

    return [asdict(finding) for finding in check_gpus(environ)]


if __name__ == "__main__":
    result = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps(result))
