"""Laws of samples that come again: closed forms against looking at every sample, and the tokens themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.stream import SampleStream

from .data_worlds import corpus_of

ONE = corpus_of({"one": 50})
TWO = corpus_of({"web": 37, "books": 11}, weights={"web": 3.0, "books": 1.0})
CYCLES = st.sampled_from([None, 1, 2, 3])


def content(stream: SampleStream, samples: np.ndarray) -> list[bytes]:
    """Tokens, masked positions and labels of every sample."""
    return [b"".join(x[i].tobytes() for x in stream.masked(samples)) for i in range(samples.size)]


@settings(max_examples=30)
@given(seed=st.integers(0, 99), cycle=CYCLES, corpus=st.sampled_from([ONE, TWO]), steps=st.integers(1, 60))
def test_distinct_samples_are_those_that_differ(seed: int, cycle: int | None, corpus: object, steps: int) -> None:
    stream = SampleStream(corpus, seed=seed, sequences=4, micro_batch=4, mask_epochs=cycle)  # type: ignore[arg-type]
    # Named by what decides their tokens and masks; by chance two epochs may mask a short block alike.
    drawn = stream.locate(np.arange(4 * steps))
    rounds = drawn.epoch if cycle is None else drawn.epoch % cycle
    seen = list(zip(drawn.source.tolist(), rounds.tolist(), drawn.block.tolist(), strict=True))
    assert sum(stream.repeats.distinct(4 * steps)) == len(set(seen))
    fresh = [stream.repeats.fresh(step, sequences=4) for step in range(steps)]
    assert sum(fresh) == len(set(seen))
    last = set(seen[-4:]) - set(seen[:-4])
    assert fresh[-1] == len(last)


@settings(max_examples=30)
@given(seed=st.integers(0, 99), cycle=CYCLES, corpus=st.sampled_from([ONE, TWO]), start=st.integers(0, 400))
def test_a_sample_is_found_where_it_was_first_seen(seed: int, cycle: int | None, corpus: object, start: int) -> None:
    stream = SampleStream(corpus, seed=seed, sequences=4, micro_batch=4, mask_epochs=cycle)  # type: ignore[arg-type]
    samples = np.arange(start, start + 20)
    source, index = stream.first_seen(samples)
    expected = content(stream, samples)
    for number, (s, i) in enumerate(zip(source.tolist(), index.tolist(), strict=True)):
        blocks = stream.blocks_at(s, np.array([i]))
        assert b"".join(x[0].tobytes() for x in blocks) == expected[number]
        assert cycle is None or i < cycle * len(corpus.blocks("train", stream.corpus.sources[s]))  # type: ignore[attr-defined]


def test_without_a_cycle_masks_never_come_again_and_with_one_epoch_the_order_still_changes() -> None:
    free, fixed = (SampleStream(ONE, seed=1, sequences=1, micro_batch=1, mask_epochs=k) for k in (None, 1))
    first, second = (content(free, np.arange(50) + 50 * e) for e in (0, 1))
    assert len(set(first) & set(second)) < 5, "by chance alone: 91 ways to mask 2 of 14 tokens"
    first, second = (content(fixed, np.arange(50) + 50 * e) for e in (0, 1))
    assert set(first) == set(second)
    assert first != second


def test_causal_blocks_are_the_same_in_every_epoch() -> None:
    stream = SampleStream(ONE, seed=1, sequences=5, micro_batch=5, causal=True)
    assert stream.repeats.cycle == 1
    assert sum(stream.repeats.distinct(10_000)) == 50
    source, index = stream.first_seen(np.arange(500, 520))
    assert set(source) == {0}
    assert index.max() < 50


@pytest.mark.parametrize("world", [1, 2])
def test_a_batch_knows_its_samples(world: int) -> None:
    for rank in range(world):
        stream = SampleStream(ONE, seed=1, sequences=8, micro_batch=2, rank=rank, world=world)
        for number, batch in enumerate(stream.step(3)):
            assert batch.samples_B is not None
            assert batch.samples_B.tolist() == stream.samples_of(3)[number].tolist()
            assert batch.to("cpu").samples_B is batch.samples_B
