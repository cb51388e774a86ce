"""Which updates were applied: known at once where the host decides, read once in a while where the device does.

A flag that is read at once makes the host wait until the device has finished the step. Flags are therefore kept, in their
order, and read together about as often as device time is drained, before a checkpoint, and at the end of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.meters.measured import POSTING_STEPS

if TYPE_CHECKING:
    from harness.train import Progress

# A diverged run skips every step; a healthy fp16 run skips a few while its loss scale settles.
MAX_SKIPPED_IN_A_ROW = 25
# A run that has diverged learns it at most this many steps less one too late.
READ_STEPS = POSTING_STEPS


class Updates:
    """The flags of updates not counted yet."""

    def __init__(self) -> None:
        self._unread: list[torch.Tensor] = []

    def note(self, applied: bool | torch.Tensor, progress: Progress) -> None:
        """Take the flag of one update; it is counted now if the host knows it, or when READ_STEPS are waiting."""
        if isinstance(applied, torch.Tensor):
            self._unread.append(applied)
            if len(self._unread) < READ_STEPS:
                return
        self.read(progress)
        if isinstance(applied, bool):
            _count(applied, progress)

    def read(self, progress: Progress) -> None:
        """Count what is waiting, in order: one wait for the device, or none where nothing waits."""
        if not self._unread:
            return
        flags, self._unread = torch.stack(self._unread).tolist(), []
        for applied in flags:
            _count(applied, progress)


def diverged(progress: Progress) -> bool:
    """Whether MAX_SKIPPED_IN_A_ROW updates in a row were skipped, be it followed by one that was applied."""
    return progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW


def _count(applied: bool, progress: Progress) -> None:
    if not applied:
        progress.skipped += 1
        progress.skipped_in_a_row += 1
    elif not diverged(progress):  # a verdict stands, however late it is read
        progress.skipped_in_a_row = 0
