"""What the GPUs were doing while the run ran: one line of JSON per device and period, one thread per node.

Lines have a `kind`: "device" (what a GPU is, and what it will not tell), "sample", "lost", "none" (nothing to
sample, with the reason) and "end" (what sampling cost). A value that is unknown is null, never 0.

The tensor estimate beside each sample is tensor-pipe utilisation × the peak at the current clock: an
occupancy-derived figure. A pipe that is active need not issue at full rate, nor in bf16, so it is an upper
estimate of executed FLOP/s and says nothing about a budget, which closed forms decide.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from harness.meters.gpm import GpmReading
from harness.meters.nvml import Nvml, NvmlUnavailable
from harness.meters.nvml_device import Device
from harness.meters.peaks import peak_of
from harness.meters.ticker import Ticker

PERIOD_S = 1.0
MAX_SHARE = 0.005  # of one core


def tensor_estimate_flop_s(device: Device, gpm: GpmReading | None, sm_mhz: int | None) -> float | None:
    """Tensor-pipe utilisation × peak at the current clock; None when any factor is unknown."""
    peak = peak_of(device.name)
    if peak is None or gpm is None or gpm.tensor is None or sm_mhz is None:
        return None
    return gpm.tensor * peak.at(sm_mhz, sms=device.sm_count)


class Sampler:
    """Samples devices into a JSONL file from its own thread; a context manager.

    Costs at most `max_share` of one core: where a sample is dearer, the period is stretched. Survives lost
    devices and a full disk (then `error` says why it ended); training never notices. `also` is called at
    every period: an energy meter's `poll`, which dates its resets and stalls.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        path: Path,
        *,
        period_s: float = PERIOD_S,
        max_share: float = MAX_SHARE,
        node: int = 0,
        also: Sequence[Callable[[], None]] = (),
        reason: str = "",
        clock: Callable[[], float] = time.monotonic,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._devices = devices
        self._path = path
        self._node = node
        self._also = also
        self._reason = reason
        self._clock = clock
        self._on_close = on_close
        self._file: IO[str] | None = None
        self._began = 0.0
        self._gpm = {device.uuid: device.gpm() for device in devices}
        self._mourned: set[str] = set()
        self._ticker = Ticker(self.sample, period_s=period_s, max_share=max_share, name="sampler")
        self._stopped = False

    # -- running -----------------------------------------------------------------------------------
    def start(self, *, thread: bool = True) -> None:
        """Write what the devices are and begin; with `thread=False` the caller calls `sample`."""
        self._began = self._clock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
            for device in self._devices:
                self._write(self._describe(device))
            if not self._devices:
                self._write({"kind": "none", "node": self._node, "reason": self._reason})
            self._file.flush()
        except OSError as error:
            self._ticker.fail(error)
            return
        if thread and (self._devices or self._also):
            self._ticker.start()

    def stop(self) -> None:
        """End the thread and the file; harmless when repeated."""
        if self._stopped:
            return
        self._stopped = True
        ended = self._ticker.stop()
        self._write_end()
        if ended:  # a thread that hangs in the driver still owns the connection
            for reader in self._gpm.values():
                if reader is not None:
                    reader.close()
            if self._on_close is not None:
                self._on_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def error(self) -> str | None:
        """Why sampling ended early; None while all is well."""
        return self._ticker.error

    @property
    def overhead(self) -> float:
        """The share of one core that sampling took, 0..1."""
        return self._ticker.overhead

    # -- sampling ----------------------------------------------------------------------------------
    def sample(self) -> None:
        """Look at every device once, and write a line for each that answers.

        Raises:
            OSError: the file cannot be written.
        """
        for poll in self._also:
            poll()
        for device in self._devices:
            if device.uuid in self._mourned:
                continue
            row = self._look(device)
            if device.lost:
                self._mourned.add(device.uuid)
                row = {
                    "kind": "lost",
                    "t_s": row["t_s"],
                    "node": self._node,
                    "uuid": device.uuid,
                    "missing": device.reasons,
                }
            self._write(row)
        if self._file is not None:
            self._file.flush()

    def _look(self, device: Device) -> dict[str, Any]:
        reader = self._gpm[device.uuid]
        gpm = None if reader is None else reader.read()
        sm_mhz, memory, use = device.sm_clock_mhz(), device.memory(), device.utilisation()
        return {
            "kind": "sample",
            "t_s": round(self._clock() - self._began, 4),
            "node": self._node,
            "uuid": device.uuid,
            "power_w": device.power_w(),
            "sm_mhz": sm_mhz,
            "temperature_c": device.temperature_c(),
            "memory_used_bytes": None if memory is None else memory.used_bytes,
            "busy": None if use is None else use.busy,
            "memory_busy": None if use is None else use.memory,
            "throttle": device.throttle_reasons(),
            "gpm": None if gpm is None else {key: _short(value) for key, value in asdict(gpm).items()},
            "tensor_estimate_flop_s": tensor_estimate_flop_s(device, gpm, sm_mhz),
        }

    # -- writing -----------------------------------------------------------------------------------
    def _describe(self, device: Device) -> dict[str, Any]:
        memory, peak, mhz = device.memory(), peak_of(device.name), device.max_sm_clock_mhz()
        row: dict[str, Any] = {
            "kind": "device",
            "node": self._node,
            "uuid": device.uuid,
            "name": device.name,
            "started_unix": round(time.time(), 3),
            "period_s": self._ticker.period_s,
            "max_sm_mhz": mhz,
            "power_limit_w": device.power_limit_w(),
            "memory_total_bytes": None if memory is None else memory.total_bytes,
            "tensor_peak_flop_s": None if peak is None or mhz is None else peak.at(mhz, sms=device.sm_count),
            "tensor_peak_source": "model not in the table of peaks" if peak is None else peak.source,
        }
        return {**row, "missing": dict(device.reasons)}

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row, separators=(",", ":")) + "\n")

    def _write_end(self) -> None:
        ticker = self._ticker
        end = {
            "kind": "end",
            "t_s": round(self._clock() - self._began, 4),
            "node": self._node,
            "ticks": ticker.ticks,
            "core_share": round(ticker.overhead, 6),
            "wall_s_per_tick": round(ticker.wall_s / ticker.ticks, 6) if ticker.ticks else None,
            "error": ticker.error,
            "missing": {device.uuid: dict(device.reasons) for device in self._devices if device.reasons},
        }
        file, self._file = self._file, None
        if file is None:
            return
        try:
            with file:
                file.write(json.dumps(end, separators=(",", ":")) + "\n")
        except OSError as error:
            ticker.fail(error)


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def open_sampler(
    uuids: Sequence[str],
    path: Path,
    *,
    period_s: float = PERIOD_S,
    node: int = 0,
    also: Sequence[Callable[[], None]] = (),
) -> Sampler:
    """A sampler of these devices, not yet started; of none, with the reason in its file, where NVML is absent.

    One process per node opens it, with the UUIDs of the run's devices on that node.
    """
    if not uuids:
        return Sampler([], path, period_s=period_s, node=node, also=also, reason="the run uses no GPU")
    try:
        nvml = Nvml.open()
    except NvmlUnavailable as error:
        return Sampler([], path, period_s=period_s, node=node, also=also, reason=str(error))
    try:
        devices = list({device.uuid: device for device in map(nvml.device, uuids)}.values())
    except NvmlUnavailable as error:
        nvml.close()
        return Sampler([], path, period_s=period_s, node=node, also=also, reason=str(error))
    return Sampler(devices, path, period_s=period_s, node=node, also=also, on_close=nvml.close)
