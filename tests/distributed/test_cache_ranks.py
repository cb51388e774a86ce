"""A teacher's cache does not know how many ranks wrote it, nor how many read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.chaos import workers
from harness.chaos.trial_runs import brief_study, charged_steps, launch, losses, record
from tests.support import cache_ranks
from tests.support.tiny import write_teacher

ARM, TOKENS, LENGTH = "soft_targets", 768, 32


def test_two_ranks_write_what_one_rank_writes_and_each_reads_the_others(tmp_path: Path) -> None:
    """Two ranks with a cache of their own, one rank with its own, and one that reads what the two wrote.

    The text comes again, so that the later passes read what the first one wrote. One ledger, one curve.
    """
    data = yaml.safe_load(brief_study(tmp_path).read_text(encoding="utf-8"))["data"]
    study = brief_study(
        tmp_path, arms=[{"name": ARM, "objective": ARM}], speed={"teacher_cache": True}, checkpoints=0,
        data={**data, "limit_tokens": TOKENS, "mask_epochs": 1},
    )  # fmt: skip
    outs = []
    for name, ranks, place in (("two", 2, "a"), ("one", 1, "b"), ("reader", 1, "a")):
        out = tmp_path / name
        run = launch(study, out, ranks=ranks, environment={"ISOBUDGET_CACHE": str(tmp_path / place)})
        assert run.wait(timeout_s=300.0) == [0] * ranks, run.outputs()[-3000:]
        outs.append(out)
    two, one, reader = (charged_steps(out, ARM) for out in outs)
    assert two == one == reader
    written = [record(out, ARM)["teacher_cache"] for out in outs]
    assert written[0]["samples"] == written[1]["samples"] == TOKENS // LENGTH
    assert len(two) * 8 > 2 * written[0]["samples"], "most of it is read"
    assert written[2]["seconds"] == written[0]["seconds"], "the reader wrote nothing"
    curves = [losses(out, ARM) for out in outs]
    for step, loss in curves[0].items():
        assert [curve[step] for curve in curves[1:]] == pytest.approx([loss, loss], rel=1e-5)


def place(rank: int, world: int) -> dict[str, str]:
    return dict(zip(cache_ranks.LOCAL, (str(rank), str(world)), strict=True))


@pytest.mark.parametrize(
    ("machines", "found"),
    [
        ([("a", place(0, 2)), ("a", place(1, 2)), ("b", place(0, 1))], [(0, 2), (1, 2), (0, 1)]),
        ([("a", {}), ("a", {})], [(0, 2), (1, 2)]),
    ],
    ids=["a machine of two and one of one", "a launcher that says no places"],
)
def test_every_machine_writes_all_shards_however_many_ranks_it_has(
    machines: list[tuple[str, dict[str, str]]], found: list[tuple[int, int]], tmp_path: Path
) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    launch = workers.start(
        cache_ranks.fill, str(teacher), str(tmp_path), machines, folder=tmp_path / "logs", ranks=len(machines)
    )
    assert launch.wait(timeout_s=90.0) == [0] * len(machines), launch.outputs()[-3000:]
    for rank, (local, on_machine) in enumerate(found):
        assert f"rank {rank} is {local} of {on_machine}" in launch.output(rank)
