"""Requests to stop: heard in every thread's time, by every rank, and only once."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field

import pytest

from harness.errors import Preempted
from harness.ranks import Ranks
from harness.stopping import StopFlag, poll


@dataclass
class Store(Ranks):
    """A rank whose words to the others are kept here."""

    world: int = 2
    words: set[str] = field(default_factory=set)

    def tell_all(self, word: str) -> None:
        self.words.add(word)

    def was_told(self, word: str) -> bool:
        return word in self.words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_heard_whichever_thread_it_interrupts(number: signal.Signals) -> None:
    done = threading.Event()
    worker = threading.Thread(target=done.wait)
    worker.start()
    with StopFlag() as stop:
        assert not stop()
        signal.pthread_kill(worker.ident or 0, number)
        end = time.monotonic() + 10
        while not stop() and time.monotonic() < end:
            time.sleep(0.01)  # it is the worker that the system interrupts, when it next runs it
        assert stop()
    done.set()
    worker.join()


def test_the_handlers_of_before_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_rank_that_works_alone_hears_of_anothers_signal() -> None:
    ranks = Store()
    with StopFlag(ranks) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    assert ranks.words == {asked._word}
    with StopFlag(ranks) as mine:
        assert not mine(), "a later study of the same process is another one"
    with StopFlag(ranks) as hears:
        ranks.words.add(hears._word)
        with pytest.raises(Preempted, match="a probe"):
            poll("a probe")


def test_evaluation_goes_on_while_nobody_asked() -> None:
    with StopFlag(Store()) as stop:
        poll("a probe")  # raises where somebody asked
        assert not stop()
    poll("outside any run")
