"""Everything that measures one trial, opened and closed together; one process per node reads the node's instruments."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.hardware import has_cuda
from harness.meters.device_time import DeviceClock
from harness.meters.energy import open_energy_meter
from harness.meters.energy_reading import NullMeter
from harness.meters.energy_run import RunEnergy
from harness.meters.measured import Measured
from harness.meters.node import Node
from harness.meters.sampler import Sampler, open_sampler
from harness.meters.samples import DeviceSummary, summarise
from harness.meters.wall_time import WallClock
from harness.ranks import Ranks
from harness.units import Unit

SAMPLES = "samples-*.jsonl"
ESTIMATE = "estimate: tensor-pipe utilisation × peak at the current clock; an upper estimate of executed FLOPs"


def settle_device() -> None:
    """Wait until the GPU has done what it was given; nothing to wait for without one."""
    if has_cuda():
        import torch

        torch.cuda.synchronize()


class Instruments:
    """The instruments of one trial; a context manager. `measured` is the meter the loop uses."""

    def __init__(self, ranks: Ranks, node: Node, folder: Path, *, unit: Unit, started: float) -> None:
        """`started` is when the trial began, on the monotonic clock."""
        self._ranks = ranks
        self._folder = folder
        self._node = node
        self._sampler: Sampler | None = None
        meter = open_energy_meter(node.uuids) if node.reads else None
        self.measured = Measured(
            ranks,
            unit=unit,
            device=DeviceClock(cuda=has_cuda()),
            wall=WallClock(counts=ranks.is_main, held=ranks.world, started=started),
            energy=RunEnergy(meter, budgeted=unit is Unit.JOULE),
            started=started,
            settle=settle_device,
        )
        if node.reads:
            polls = [] if meter is None or isinstance(meter, NullMeter) else [meter.poll]
            file = folder / f"samples-{node.index}.jsonl"
            self._sampler = open_sampler(node.uuids, file, node=node.index, also=polls)
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        self.measured.energy.start()
        if self._sampler is not None:
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The sampler polls the energy meter: it ends first.
        if self._sampler is not None:
            self._sampler.stop()
        self.measured.energy.close()

    # -- for the record, after the end: every rank calls these together ------------------------------------
    def facts(self, *, grid_g_per_kwh: float | None) -> dict[str, Any]:
        """The record's blocks `energy`, `utilisation` and `overhead`."""
        return {
            "energy": self.energy(grid_g_per_kwh=grid_g_per_kwh),
            "utilisation": self.utilisation(),
            "overhead": self.overhead,
        }

    def energy(self, *, grid_g_per_kwh: float | None) -> dict[str, Any]:
        """The trial's energy over all nodes; what nobody measured is None."""
        run = self.measured.energy
        told = self._ranks.gather((run.source, run.notes))
        tally = run.tally
        sources = [source for source, _ in told if source not in (None, "none")]
        notes = list(dict.fromkeys(note for _, notes in told for note in notes))
        joules = tally.joules
        carbon = None if joules is None or grid_g_per_kwh is None else joules / 3.6e6 * grid_g_per_kwh
        if run.blind:
            notes.append("a budget in joules could not be followed: the run stopped as soon as that was known")
        return {
            "joule": joules,
            "by_account": {account.value: amount for account, amount in sorted(tally.by_account.items())},
            "source": " and ".join(dict.fromkeys(sources)) or None,
            "coverage": tally.coverage,
            "uncertainty_j": tally.uncertainty_j,
            "nodes": sum(source is not None for source, _ in told),
            "notes": notes,
            "carbon_g": carbon,
            "grid_g_per_kwh": grid_g_per_kwh,
        }

    def utilisation(self) -> dict[str, Any]:
        """What the sampler saw on every node, and the tensor-pipe estimate summed over devices."""
        mine: list[DeviceSummary] = []
        facts: dict[str, Any] | None = None
        if self._sampler is not None:
            files = sorted(self._folder.glob(f"samples-{self._node.index}.jsonl"))
            mine = summarise(files)
            facts = {"core_share": self._sampler.overhead, "error": self._sampler.error}
        told = self._ranks.gather((mine, facts))
        devices = [device for found, _ in told for device in found]
        estimates = [d.tensor_estimate_flop for d in devices if d.tensor_estimate_flop is not None]
        return {
            "devices": [asdict(device) for device in devices],
            "tensor_estimate_flop": sum(estimates) if estimates else None,
            "tensor_estimate_is": ESTIMATE,
            "sampler": [facts for _, facts in told if facts is not None],
            "files": SAMPLES,
        }

    @property
    def overhead(self) -> dict[str, float]:
        """Seconds in this rank's meter calls and their share of the trial so far; apart, its waiting for other ranks."""
        lasted = max(1e-9, time.monotonic() - self._begun)
        own = self.measured.own_s - self.measured.waited_s
        return {"seconds": own, "share": own / lasted, "waited_seconds": self.measured.waited_s}


def bare(ranks: Ranks, *, unit: Unit) -> Measured:
    """Clocks without a node's instruments: for steps that are timed and not kept."""
    now = time.monotonic()
    return Measured(
        ranks,
        unit=unit,
        device=DeviceClock(cuda=has_cuda()),
        wall=WallClock(counts=ranks.is_main, held=ranks.world, started=now),
        energy=RunEnergy(None, budgeted=False),
        started=now,
    )
