"""Energy of CPU packages and their memory from RAPL (running average power limit), through Linux powercap.

A package counter measures the whole socket, whoever uses it: on a shared machine that is other people's
work too. Reading needs root, or a permission that root gave, since CVE-2020-8694.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from harness.meters.energy_counter import CounterMeter

ROOT = Path("/sys/class/powercap")
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")  # not intel-rapl-mmio: the same package by another register
_LAG_S = 0.002  # the registers are updated about every millisecond
SOURCE = "RAPL counters"


class Zone:
    """One powercap zone as a rising counter that starts over at `max_energy_range_uj`."""

    lag_s = _LAG_S

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._energy = path / "energy_uj"
        self._reason = ""
        self.wrap_j: float | None = None
        try:
            # The counter runs to this value inclusive, then shows 0.
            self.wrap_j = (int((path / "max_energy_range_uj").read_text()) + 1) * 1e-6
        except (OSError, ValueError):
            self.wrap_j = None

    def read_j(self) -> float | None:
        try:
            return int(self._energy.read_text()) * 1e-6
        except PermissionError:
            self._reason = f"{self.name}: permission denied; as root: chmod a+r {self._energy}"
        except (OSError, ValueError) as error:
            self._reason = f"{self.name}: {error}"
        return None

    def reason(self) -> str:
        return self._reason

    def power_w(self) -> float | None:
        return None


def zones(root: Path = ROOT) -> list[Zone]:
    """Packages and their memory: the parts that add up. Cores and uncore lie inside the package, psys around it."""
    found: list[Zone] = []
    if not root.is_dir():
        return found
    names: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        if _ZONE.fullmatch(path.name):
            try:
                names[path.name] = (path / "name").read_text().strip()
            except OSError:
                continue
    for folder, name in names.items():
        parent = names.get(folder.rpartition(":")[0], "")
        if name.startswith("package"):
            found.append(Zone(root / folder, name))
        elif name == "dram" and parent.startswith("package"):
            found.append(Zone(root / folder, f"{parent} dram"))
    return found


def readable(root: Path = ROOT) -> tuple[list[Zone], str]:
    """(zones that can be read now, why the others — or all — cannot)."""
    present = zones(root)
    if not present:
        return (
            [],
            f"no RAPL zones under {root}: not Intel or AMD, a virtual machine, or the kernel module is not loaded",
        )
    good = [zone for zone in present if zone.read_j() is not None]
    return good, "; ".join(zone.reason() for zone in present if zone not in good)


def meter(found: list[Zone], *, clock: Callable[[], float] = time.monotonic) -> CounterMeter:
    """An EnergyMeter over these zones."""
    names = ", ".join(zone.name for zone in found)
    return CounterMeter(
        found,
        source=f"{SOURCE} ({names})",
        clock=clock,
        standing_notes=("whole CPU packages, whoever uses them",),
    )
