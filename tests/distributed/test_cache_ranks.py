"""A teacher's cache does not know how many ranks wrote it, nor how many read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness.chaos.trial_runs import brief_study, charged_steps, launch, losses, record

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
