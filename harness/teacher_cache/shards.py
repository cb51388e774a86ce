"""The cache on disk: shards of samples in the order of their first reading, each published whole and verified before use.

A shard is a folder of the data cache with one safetensors file and a manifest that seals it. Its name is a hash of all it
depends on, so nothing is ever updated: a killed writer leaves whole shards behind, and the next one makes those that
lack. More steps of the same data only add shards.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness import manifest
from harness.data.batch import Batch
from harness.data.cache import cache_root, cached_folder, folder_of
from harness.errors import DataError, IsoBudgetError, Preempted, refusals
from harness.models.signals import Signals
from harness.teacher_cache.content import Content, outside

if TYPE_CHECKING:
    from harness.data.stream import SampleStream
    from harness.models.teacher import Teacher
    from harness.ranks import Ranks

VERSION = 1
KIND = "teacher"
FILE = "signals.safetensors"
SHARD_BYTES, SHARD_SAMPLES = 1 << 26, 1024
# Sequences the teacher is asked about at a time while the cache is written.
ASKED_AT_ONCE = 16
# Files kept open at a time; a fifth epoch of shuffled samples touches any of them.
OPEN_FILES = 256
# Folders whose every byte this process has found to be as its manifest says.
_verified: set[Path] = set()


@dataclass(frozen=True)
class Shard:
    """Samples `first` to `last` (not included) of one source."""

    source: int
    first: int
    last: int


class Cache:
    """The signals of one teacher for the samples of one stream, as far as they have been written."""

    def __init__(
        self, content: Content, stream: SampleStream, *, teacher: str, dtype: torch.dtype, device: str,
        root: Path | None = None,
    ) -> None:  # fmt: skip
        """`stream` must be nobody else's: threads may not share its orders. `teacher` are its weights' fingerprint,
        `device` the hardware it computes on: device seconds of one kind cannot pay for another's. `root` is where it
        lies; None for the data cache."""
        self.content = content
        self.stream = stream
        self.dtype = dtype
        self.root = root or cache_root()
        self.row_bytes = content.row_bytes(dtype.itemsize)
        self.samples_per_shard = max(1, min(SHARD_SAMPLES, SHARD_BYTES // self.row_bytes))
        self._identity: dict[str, Any] = {
            "version": VERSION, "teacher": teacher, "dtype": str(dtype).removeprefix("torch."), "device": device,
            "corpus": stream.corpus.fingerprint, "seed": stream.seed, "cycle": stream.repeats.cycle,
            "masking": None if stream.causal else stream.masking.model_dump(mode="json"), **content.identity(),
        }  # fmt: skip

    def shards(self, samples: int | None) -> list[Shard]:
        """Those that hold the first so many samples of the stream; all there are with None."""
        capacities = self.stream.repeats.capacities
        wanted = capacities if samples is None else self.stream.repeats.distinct(samples)
        found = []
        for source, (count, capacity) in enumerate(zip(wanted, capacities, strict=True)):
            assert count is not None
            for first in range(0, count, self.samples_per_shard):
                last = first + self.samples_per_shard
                found.append(Shard(source, first, last if capacity is None else min(last, capacity)))
        return found

    def depends_on(self, shard: Shard) -> dict[str, Any]:
        label = self.stream.corpus.sources[shard.source]
        return {**self._identity, "source": label, "samples": [shard.first, shard.last]}

    def folder(self, shard: Shard) -> Path:
        return folder_of(KIND, self.depends_on(shard), root=self.root)

    def missing(self, shards: list[Shard]) -> list[Shard]:
        return [shard for shard in shards if not self.folder(shard).exists()]

    # -- writing -------------------------------------------------------------------------------------
    def write(
        self, shards: list[Shard], teacher: Callable[[], Teacher], *, ranks: Ranks, device: torch.device,
        stop: Callable[[], bool] = lambda: False, tell: Callable[[str], None] = lambda text: None,
        written: Callable[[int], None] = lambda there: None,
    ) -> None:  # fmt: skip
        """Write those that are not there; ranks of a node share the work and come back together.

        `written` is called on all ranks together behind every write, with how many of the shards, from the first, are there.

        Raises:
            Preempted: `stop` asked for it; what is written stays.
            DataError: no room, or a signal that half precision cannot hold.
        """
        asked: list[Teacher] = []
        # As many turns on every rank, or exchanges pair wrongly: machines may differ in their number of ranks.
        turns = max(ranks.gather(-(-len(shards) // ranks.local_world)))
        for turn in range(turns):
            number = turn * ranks.local_world
            place = f"{min(number + 1, len(shards))} of {len(shards)}"
            mine = self.missing(shards[number + ranks.local_rank :][:1])
            error: IsoBudgetError | None = None
            try:
                with refusals():
                    for shard in mine:
                        if not asked:
                            self._room(self.missing(shards))
                            asked.append(teacher())
                        cached_folder(
                            KIND, self.depends_on(shard), lambda into, s=shard: self._fill(into, s, asked[0], device),
                            root=self.root,
                        )  # fmt: skip
            except IsoBudgetError as found:
                error = found
            ranks.agree(error)
            tell(f"the teacher's cache, shard {place}")
            stopped, new = ranks.add([float(stop()), float(len(mine))])
            if new:
                written(min(number + ranks.local_world, len(shards)))
            if stopped:
                raise Preempted(
                    f"stopped by a signal while the teacher's cache was written ({place} shards)",
                    remedy="run again with --resume to continue",
                )

    def _room(self, shards: list[Shard]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        need = sum(shard.last - shard.first for shard in shards) * self.row_bytes
        free = shutil.disk_usage(self.root).free
        if need > free:
            raise DataError(
                f"a teacher's cache of {need / 1e9:.1f} GB", rule=f"{self.root} has {free / 1e9:.1f} GB left",
                remedy="keep fewer logits or half precision (speed.teacher_cache), or set ISOBUDGET_CACHE to a larger disk",
            )  # fmt: skip

    def _fill(self, into: Path, shard: Shard, teacher: Teacher, device: torch.device) -> None:
        begun = time.perf_counter()
        pieces: list[dict[str, torch.Tensor]] = []
        for first in range(shard.first, shard.last, ASKED_AT_ONCE):
            indices = np.arange(first, min(first + ASKED_AT_ONCE, shard.last), dtype=np.int64)
            batch = Batch.of(self.stream.blocks_at(shard.source, indices)).to(device)
            with torch.no_grad():
                pieces.append(self.content.pack(teacher(batch, self.content.needs)))
        tensors = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        facts = {"samples": shard.last - shard.first, "outside": self._outside(tensors)}
        facts["seconds"] = time.perf_counter() - begun
        save_file(tensors, into / FILE, metadata={"facts": json.dumps(facts), "of": json.dumps(self.depends_on(shard))})
        manifest.seal(into, manifest.describe(into, [FILE]))

    def _outside(self, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
        top = self.content.unpack(tensors, dtype=self.dtype).top
        return {} if top is None else {str(t): outside(top, t) for t in self.content.temperatures}

    # -- reading -------------------------------------------------------------------------------------
    def verify(self, shards: list[Shard], ranks: Ranks) -> None:
        """Read every byte once in this process, ranks of a node sharing the work.

        Raises:
            DataError: a shard is missing or is not what was written.
        """
        error: DataError | None = None
        for shard in shards[ranks.local_rank :: ranks.local_world]:
            folder = self.folder(shard)
            if folder in _verified or error is not None:
                continue
            wrong = manifest.fault(folder)
            if wrong is not None:
                error = DataError(
                    f"the teacher's cache {folder}", rule=wrong, remedy="delete that folder; it is written again"
                )
            _verified.add(folder)
        ranks.agree(error)

    def facts(self, shards: list[Shard]) -> dict[str, Any]:
        """What writing these took and what they leave out: samples, device seconds, mean mass outside the kept logits."""
        samples, seconds, outside_sum = 0, 0.0, dict.fromkeys(map(str, self.content.temperatures), 0.0)
        for shard in shards:
            with safe_open(self.folder(shard) / FILE, framework="pt") as file:
                told = json.loads(file.metadata()["facts"])
            samples += told["samples"]
            seconds += told["seconds"]
            for temperature, share in told["outside"].items():
                outside_sum[temperature] += share * told["samples"]
        return {
            "samples": samples, "seconds": seconds, "bytes": samples * self.row_bytes, "shards": len(shards),
            "outside_kept_logits": {t: total / max(1, samples) for t, total in outside_sum.items()},
        }  # fmt: skip


class RememberedTeacher:
    """Answers for the samples of its stream what a teacher answered when the cache was written."""

    placement = "read from a cache"

    def __init__(self, cache: Cache, shards: list[Shard], *, device: torch.device) -> None:
        self.cache = cache
        self.dtype = cache.dtype
        self.written = cache.facts(shards)
        self._device = device
        # Copies to a GPU go on behind the host only from pinned memory.
        self._pinned = device.type == "cuda"
        self._covered = set(shards)
        self._open: OrderedDict[Shard, dict[str, torch.Tensor]] = OrderedDict()

    @property
    def seconds_per_sample(self) -> float:
        """Device seconds that writing one took, on average."""
        return self.written["seconds"] / self.written["samples"]

    def __call__(self, batch: Batch, needs: Any) -> Signals:
        """Signals of a batch of the stream.

        Raises:
            DataError: the cache does not hold one of its samples.
        """
        if not needs:
            return Signals()
        assert needs == self.cache.content.needs
        assert batch.samples_B is not None
        tensors = {name: rows.to(self._device, non_blocking=True) for name, rows in self._rows(batch.samples_B).items()}
        return self.cache.content.unpack(tensors, dtype=self.dtype)

    def _rows(self, samples_B: np.ndarray) -> dict[str, torch.Tensor]:
        source_B, index_B = self.cache.stream.first_seen(samples_B)
        size = self.cache.samples_per_shard
        found: dict[str, torch.Tensor] = {}
        for source, number in sorted(set(zip(source_B.tolist(), (index_B // size).tolist(), strict=True))):
            chosen = np.flatnonzero((source_B == source) & (index_B // size == number))
            rows = torch.from_numpy(index_B[chosen] - number * size)
            for name, tensor in self._shard(source, number).items():
                if name not in found:
                    size_of_all = (len(samples_B), *tensor.shape[1:])
                    found[name] = torch.empty(size_of_all, dtype=tensor.dtype, pin_memory=self._pinned)
                found[name][torch.from_numpy(chosen)] = tensor[rows]
        return found

    def _shard(self, source: int, number: int) -> dict[str, torch.Tensor]:
        """The tensors of a shard, mapped into memory and not read."""
        first = number * self.cache.samples_per_shard
        capacity = self.cache.stream.repeats.capacities[source]
        last = first + self.cache.samples_per_shard
        shard = Shard(source, first, last if capacity is None else min(last, capacity))
        if shard not in self._covered:
            raise DataError(
                f"samples {shard.first} to {shard.last} of source {source}", rule="the teacher's cache does not hold them",
                remedy="run without speed.teacher_cache; please report this",
            )  # fmt: skip
        if shard not in self._open:
            with safe_open(self.cache.folder(shard) / FILE, framework="pt") as file:
                self._open[shard] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]
