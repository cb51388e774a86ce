"""What a run's samples say, device by device: means over time, the tensor estimate, what held the clock back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MEANS = ("power_w", "sm_mhz", "temperature_c", "busy", "memory_busy")
_GPM = ("sm", "tensor", "hmma", "dram", "fp32", "fp16")


@dataclass(frozen=True)
class DeviceSummary:
    """One GPU over the sampled time. A mean is None when no sample had the value.

    tensor_estimate_flop: occupancy-derived, beside the closed form and never instead of it; it speaks for
        `tensor_coverage` (0..1) of `sampled_s`. None when no sample had one.
    throttled: share of samples in which each reason held the clock back.
    """

    uuid: str
    name: str
    node: int
    samples: int
    sampled_s: float
    means: dict[str, float | None]
    gpm: dict[str, float | None]
    memory_peak_bytes: int | None
    tensor_estimate_flop: float | None
    tensor_coverage: float
    throttled: dict[str, float]
    lost_at_s: float | None
    missing: dict[str, str]


@dataclass
class _Mean:
    """A time-weighted mean of the values that are known."""

    total: float = 0.0
    seconds: float = 0.0

    def add(self, value: float | None, seconds: float) -> None:
        if value is not None:
            self.total += value * seconds
            self.seconds += seconds

    @property
    def mean(self) -> float | None:
        return self.total / self.seconds if self.seconds > 0 else None


@dataclass
class _Gathering:
    name: str = "unknown GPU"
    node: int = 0
    samples: int = 0
    last_s: float = 0.0
    seconds: float = 0.0
    memory: int | None = None
    lost_at_s: float | None = None
    means: dict[str, _Mean] = field(default_factory=lambda: {key: _Mean() for key in _MEANS})
    gpm: dict[str, _Mean] = field(default_factory=lambda: {key: _Mean() for key in _GPM})
    tensor: _Mean = field(default_factory=_Mean)
    throttled: Counter[str] = field(default_factory=Counter[str])
    missing: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, row: dict[str, Any]) -> None:
        # A sample speaks for the time since the one before it.
        lasted, self.last_s = max(0.0, row["t_s"] - self.last_s), row["t_s"]
        self.samples += 1
        self.seconds += lasted
        for key, mean in self.means.items():
            mean.add(row[key], lasted)
        gpm: dict[str, float | None] = row["gpm"] or {}
        for key, mean in self.gpm.items():
            mean.add(gpm.get(key), lasted)
        self.tensor.add(row["tensor_estimate_flop_s"], lasted)
        self.throttled.update(row["throttle"] or ())
        if row["memory_used_bytes"] is not None:
            self.memory = max(self.memory or 0, row["memory_used_bytes"])

    def summary(self, uuid: str) -> DeviceSummary:
        return DeviceSummary(
            uuid=uuid,
            name=self.name,
            node=self.node,
            samples=self.samples,
            sampled_s=self.seconds,
            means={key: mean.mean for key, mean in self.means.items()},
            gpm={key: mean.mean for key, mean in self.gpm.items()},
            memory_peak_bytes=self.memory,
            tensor_estimate_flop=self.tensor.total if self.tensor.seconds > 0 else None,
            tensor_coverage=self.tensor.seconds / self.seconds if self.seconds > 0 else 0.0,
            throttled={reason: count / self.samples for reason, count in sorted(self.throttled.items())},
            lost_at_s=self.lost_at_s,
            missing=self.missing,
        )


def summarise(paths: Iterable[Path]) -> list[DeviceSummary]:
    """One summary per device in these files, by node and UUID; a torn last line (kill -9) is passed over.

    A file that was continued after a resume counts on: each start begins with a "device" line.
    """
    devices: dict[str, _Gathering] = {}
    for path in paths:
        for row in _rows(path):
            kind, uuid = row["kind"], row.get("uuid", "")
            if kind == "device":
                gathering = devices.setdefault(uuid, _Gathering())
                gathering.name, gathering.node, gathering.last_s = row["name"], row["node"], 0.0
                gathering.missing = row["missing"]
            elif kind == "sample":
                devices[uuid].add(row)
            elif kind == "lost":
                devices[uuid].lost_at_s = row["t_s"]
                devices[uuid].missing = row["missing"]
    ordered = sorted(devices.items(), key=lambda item: (item[1].node, item[0]))
    return [gathering.summary(uuid) for uuid, gathering in ordered]


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
