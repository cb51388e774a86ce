"""What forked ranks do to a teacher's cache of six shards: those of a machine write and verify it together."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from harness.data.stream import SampleStream
from harness.engine import connect
from harness.models.signals import Needs
from harness.models.teacher import Teacher, inspect
from harness.teacher_cache.content import Content
from harness.teacher_cache.shards import Cache
from tests.unit.data_worlds import corpus_of

SHARDS, SAMPLES = 6, 2
NEEDS = Needs(states=frozenset({2}))
LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")


def fill(path: str, folder: str, machines: list[tuple[str, dict[str, str]]]) -> int:
    """0 when this rank's machine has every shard; `machines` are, by rank, its folder and what a launcher says of places there."""
    machine, said = machines[int(os.environ["RANK"])]
    for name in LOCAL:
        os.environ.pop(name, None)
    os.environ.update(said)
    ranks = connect(timeout_s=60.0, control_s=60.0)
    teacher = Teacher(inspect(path), device=torch.device("cpu"), dtype=torch.float32)
    stream = SampleStream(corpus_of({"one": SHARDS * SAMPLES}), seed=3, sequences=6, micro_batch=2, mask_epochs=1)
    cache = Cache(
        Content(NEEDS, teacher.info.shape, 16, 2, 0, (), "computed"), stream, teacher="made up",
        dtype=torch.float32, device="cpu", root=Path(folder) / machine,
    )  # fmt: skip
    cache.samples_per_shard = SAMPLES
    shards, told = cache.shards(None), list[int]()
    assert len(shards) == SHARDS
    cache.write(shards, lambda: teacher, ranks=ranks, device=torch.device("cpu"), written=told.append)
    assert not cache.missing(shards)
    assert told == sorted(told)
    assert told[-1] == SHARDS
    cache.verify(shards, ranks)
    print(f"rank {ranks.rank} is {ranks.local_rank} of {ranks.local_world}", flush=True)
    return 0
