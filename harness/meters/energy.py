"""Which instrument can measure energy here, and a meter that uses it.

Best first: NVML's energy counter per GPU; NVML's power, polled and labelled so; without GPUs the CPU's RAPL
counters; nothing — and then every span is unknown with the reason, and an energy budget is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.errors import ConfigError
from harness.meters import rapl
from harness.meters.energy_counter import Counter, CounterMeter
from harness.meters.energy_power import PERIOD_S, PowerMeter
from harness.meters.energy_reading import EnergyMeter, EnergyReading, JointMeter, NullMeter, combine
from harness.meters.nvml import Nvml, NvmlUnavailable
from harness.meters.nvml_device import Device
from harness.meters.step_energy import StepEnergy

__all__ = [
    "EnergyMeter",
    "EnergyReading",
    "EnergySource",
    "NullMeter",
    "StepEnergy",
    "available_energy_source",
    "combine",
    "open_energy_meter",
    "require_energy_source",
]

COUNTER = "NVML energy counter"
POLLED = f"NVML power, polled every {1000 * PERIOD_S:.0f} ms (fallback)"
_LAG_S = 0.1  # the slowest update of the counter seen on any board; the fastest is 20 ms

Kind = Literal["nvml-counter", "nvml-power", "nvml-mixed", "rapl", "none"]


@dataclass(frozen=True)
class EnergySource:
    """What would measure energy here. `reason` says what is missing, and is empty when nothing is."""

    kind: Kind
    description: str
    reason: str = ""

    @property
    def available(self) -> bool:
        return self.kind != "none"


class _Gpu:
    """A whole GPU as a rising counter and as a power sensor."""

    lag_s = _LAG_S
    wrap_j: float | None = None

    def __init__(self, device: Device) -> None:
        self._device = device
        self.name = device.uuid
        self._asked = "energy"

    def read_j(self) -> float | None:
        self._asked = "energy"
        value = self._device.energy_mj()
        return None if value is None else value / 1e3

    def power_w(self) -> float | None:
        value = self._device.power_w()
        if value is None:
            self._asked = "power"
        return value

    def reason(self) -> str:
        return f"{self.name}: {self._device.reasons.get(self._asked, 'unknown')}"


@dataclass
class _Boards:
    """The whole GPUs behind the devices of a run, sorted by what can measure them."""

    counted: list[_Gpu]
    polled: list[_Gpu]
    unseen: list[_Gpu]
    notes: list[str]


def _boards(nvml: Nvml, uuids: Sequence[str], *, counters: bool = True) -> _Boards:
    """Each GPU once. A MIG instance stands for its GPU only when all instances of that GPU are listed.

    NVML meters whole GPUs, so with a stranger on one of the instances the figure would be theirs too.

    Raises:
        NvmlUnavailable: NVML does not know one of the UUIDs, or a MIG instance shares its GPU.
    """
    devices = {device.uuid: device for device in map(nvml.device, uuids)}
    boards: dict[str, Device] = {}
    notes: list[str] = []
    for device in devices.values():
        if device.parent is None:
            boards[device.uuid] = device
            continue
        strangers = [other.uuid for other in device.parent.instances() if other.uuid not in devices]
        if strangers:
            raise NvmlUnavailable(
                f"MIG instance {device.uuid}",
                rule=f"its GPU is metered as a whole and {len(strangers)} more instance(s) share it",
                remedy="use all instances of the GPU, or a whole GPU",
            )
        boards[device.parent.uuid] = device.parent
        notes.append(f"{device.parent.uuid}: metered as a whole, all its MIG instances belong to this run")
    notes += [
        f"{board.uuid}: a Grace Hopper counter includes the CPU and its memory"
        for board in boards.values()
        if "GH200" in board.name
    ]
    sorted_ = _Boards([], [], [], list(dict.fromkeys(notes)))
    for board in map(_Gpu, boards.values()):
        if counters and board.read_j() is not None:
            sorted_.counted.append(board)
        elif board.power_w() is not None:
            sorted_.polled.append(board)
        else:
            sorted_.unseen.append(board)
    return sorted_


def available_energy_source(uuids: Sequence[str] = ()) -> EnergySource:
    """What would measure a run on these devices (UUIDs as CUDA gives them), or on the CPU where there are none.

    Reads each instrument once; opens nothing that stays open.
    """
    if not uuids:
        found, reason = rapl.readable()
        if not found:
            return EnergySource("none", "nothing measures energy here", reason)
        return EnergySource("rapl", f"{rapl.SOURCE} of {', '.join(zone.name for zone in found)}", reason)
    try:
        with Nvml.open() as nvml:
            boards = _boards(nvml, uuids)
            return _describe(boards)
    except NvmlUnavailable as error:
        return EnergySource("none", "nothing measures energy here", str(error))


def _describe(boards: _Boards) -> EnergySource:
    reason = "; ".join(board.reason() for board in boards.unseen)
    if boards.counted and boards.polled:
        text = f"{COUNTER} of {len(boards.counted)} GPUs and {POLLED} of {len(boards.polled)}"
        return EnergySource("nvml-mixed", text, reason)
    if boards.counted:
        return EnergySource("nvml-counter", f"{COUNTER} of {len(boards.counted)} GPU(s)", reason)
    if boards.polled:
        return EnergySource("nvml-power", f"{POLLED} of {len(boards.polled)} GPU(s)", reason)
    return EnergySource("none", "nothing measures energy here", reason)


def require_energy_source(budget: str, uuids: Sequence[str] = ()) -> EnergySource:
    """The source for a budget in joules.

    Raises:
        ConfigError: nothing here can measure the energy of all the devices, so the budget could not be kept.
    """
    source = available_energy_source(uuids)
    if not source.available or source.reason:
        raise ConfigError(
            f"budget {budget}",
            rule=f"energy cannot be measured here: {source.reason}",
            remedy="give the budget in flop, tokens, gpu-hours or minutes, or make the energy readable (see doctor)",
        )
    return source


def open_energy_meter(
    uuids: Sequence[str] = (),
    *,
    clock: Callable[[], float] = time.monotonic,
    poll_period_s: float | None = PERIOD_S,
    counters: bool = True,
) -> EnergyMeter:
    """The best meter for these devices, not yet started; a NullMeter with the reason where there is none.

    One process per node opens it, with the UUIDs of all the run's devices on that node. Close it at the end.
    `counters=False` polls power even where a GPU has a counter: to check one against the other.
    """
    if not uuids:
        found, reason = rapl.readable()
        return rapl.meter(found, clock=clock) if found else NullMeter(reason)
    try:
        nvml = Nvml.open()
    except NvmlUnavailable as error:
        return NullMeter(str(error))
    try:
        boards = _boards(nvml, uuids, counters=counters)
    except NvmlUnavailable as error:
        nvml.close()
        return NullMeter(str(error))
    meters: list[EnergyMeter] = []
    counted: list[Counter] = [*boards.counted, *(boards.unseen if boards.counted else [])]
    if counted:
        # With a polling thread beside it, the connection is closed by that one, after its thread has ended.
        last = None if boards.polled else nvml.close
        meters.append(CounterMeter(counted, source=COUNTER, clock=clock, on_close=last, standing_notes=boards.notes))
    if boards.polled:
        sensors = [*boards.polled, *([] if boards.counted else boards.unseen)]
        meters.append(PowerMeter(sensors, source=POLLED, period_s=poll_period_s, clock=clock, on_close=nvml.close))
    if not meters:
        nvml.close()
        return NullMeter("; ".join(board.reason() for board in boards.unseen))
    return meters[0] if len(meters) == 1 else JointMeter(meters)
