"""The next steps' batches, made by a thread while the device works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from harness.data.batch import Batch

if TYPE_CHECKING:
    from harness.data.stream import SampleStream

DEPTH = 3


class Prefetcher(Iterator[list[Batch]]):
    """Yields `stream.step(start)`, `stream.step(start + 1)` … without end, on `device`.

    An error in the thread is raised by the `next` that would have returned its step. `close` ends the
    thread; it is a daemon, so an interpreter that forgets to close still exits.
    """

    def __init__(self, stream: SampleStream, start: int, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._ready: queue.Queue[list[Batch] | Exception] = queue.Queue(maxsize=DEPTH)
        self._stopping = threading.Event()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._work, args=(stream, start), name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> list[Batch]:
        if self._failed is not None:
            raise self._failed
        if self._stopping.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, Exception):
            self._failed = item
            raise item
        return [batch.to(self._device) for batch in item] if self._device.type != "cpu" else item

    def close(self) -> None:
        """Stop the thread and wait for it; calling it twice is fine."""
        self._stopping.set()
        while True:  # a full queue would keep the thread in put()
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        self._thread.join(timeout=10)

    def _work(self, stream: SampleStream, step: int) -> None:
        try:
            while not self._stopping.is_set():
                batches = stream.step(step)
                if self._device.type == "cuda":
                    batches = [batch.pin_memory() for batch in batches]
                self._put(batches)
                step += 1
        except Exception as error:
            self._put(error)

    def _put(self, item: list[Batch] | Exception) -> None:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


def prefetched(stream: SampleStream, start: int, device: torch.device | str) -> Prefetcher:
    """This rank's micro-batches from step `start` on; see `Prefetcher`."""
    return Prefetcher(stream, start, device)
