"""Notes, in every rank, which samples its batches were made of."""

from __future__ import annotations

import json
import os
from pathlib import Path


def note_samples(folder: str) -> None:
    """A fault: every look into the sample stream becomes a line of `folder`/rank-<n>.jsonl: [step, samples]."""
    from harness.data.stream import SampleStream

    samples_of = SampleStream.samples_of
    file = Path(folder) / f"rank-{os.environ['RANK']}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)

    def noted(self: SampleStream, step: int) -> object:
        found = samples_of(self, step)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([step, found.ravel().tolist()]) + "\n")
        return found

    SampleStream.samples_of = noted  # type: ignore[method-assign, assignment]  # pyright: ignore[reportAttributeAccessIssue]


def seen(folder: Path, *, steps: int) -> list[list[int]]:
    """The samples of each of the first `steps` steps over all ranks, sorted; a batch may be looked up more than once."""
    of_step: list[list[int]] = [[] for _ in range(steps)]
    for file in sorted(folder.glob("rank-*.jsonl")):
        mine = dict(map(json.loads, file.read_text().splitlines()))
        for step in range(steps):
            of_step[step] += mine[step]
    return [sorted(samples) for samples in of_step]
