"""Laws of the sample stream: one order for all arms and machines, whatever the ranks and micro-batches."""

from __future__ import annotations

import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import mixture
from harness.data.stream import Batch, SampleStream, evaluation_batches, prefetched
from harness.errors import ConfigError, DataError

from .data_worlds import corpus_of

ONE = corpus_of({"one": 50})
TWO = corpus_of({"web": 37, "books": 11}, weights={"web": 3.0, "books": 1.0})


def rows(batches: list[Batch]) -> list[tuple[bytes, bytes, bytes]]:
    """Each sequence of the batches as (input, masked positions within it, labels)."""
    found = []
    for b in batches:
        count, length = b.input_ids_BT.shape
        positions = b.positions_N.reshape(count, -1) - torch.arange(count)[:, None] * length
        labels = b.labels_N.reshape(count, -1)
        found += [
            (b.input_ids_BT[i].numpy().tobytes(), positions[i].numpy().tobytes(), labels[i].numpy().tobytes())
            for i in range(count)
        ]
    return found


def global_rows(
    corpus_seed_step: tuple[object, int, int], *, sequences: int, micro: int, world: int
) -> list[tuple[bytes, ...]]:
    """The global batch as the law orders it: micro-batch a of rank r holds samples (a·world + r)·micro onwards."""
    corpus, seed, step = corpus_seed_step
    by_rank = [
        SampleStream(corpus, seed=seed, sequences=sequences, micro_batch=micro, rank=r, world=world).step(step)  # type: ignore[arg-type]
        for r in range(world)
    ]
    return [row for a in range(len(by_rank[0])) for r in range(world) for row in rows([by_rank[r][a]])]


@settings(max_examples=30, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3, 4, 6]),
    micro=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 40),
    seed=st.integers(0, 2**31 - 1),
    corpus=st.sampled_from([ONE, TWO]),
)
def test_samples_and_masks_are_the_same_at_any_world_size_and_micro_batch(
    world: int, micro: int, step: int, seed: int, corpus: object
) -> None:
    where = (corpus, seed, step)
    assert global_rows(where, sequences=48, micro=micro, world=world) == global_rows(
        where, sequences=48, micro=48, world=1
    )


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.integers(0, 60), min_size=1, max_size=5), seed=st.integers(0, 2**31 - 1))
def test_a_step_does_not_depend_on_the_steps_before_it(steps: list[int], seed: int) -> None:
    """Resuming needs no state, and an arm that affords fewer steps sees a prefix of the others' samples."""
    used = SampleStream(TWO, seed=seed, sequences=8, micro_batch=4)
    for step in steps:
        fresh = SampleStream(TWO, seed=seed, sequences=8, micro_batch=4)
        assert rows(used.step(step)) == rows(fresh.step(step))


@settings(max_examples=20, deadline=None)
@given(sequences=st.integers(1, 17), seed=st.integers(0, 99), epochs=st.integers(1, 3))
def test_every_epoch_is_a_permutation(sequences: int, seed: int, epochs: int) -> None:
    """Batches straddle epochs, yet each source's samples, in order, run through all its blocks before any repeats."""
    stream = SampleStream(TWO, seed=seed, sequences=sequences, micro_batch=1)
    drawn = stream.locate(np.arange(epochs * 4 * 48))
    for source, size in enumerate((37, 11)):
        mine = drawn.source == source
        whole = mine.sum() // size
        assert whole >= epochs
        by_epoch = drawn.block[mine][: whole * size].reshape(whole, size)
        assert (np.sort(by_epoch, axis=1) == np.arange(size)).all()
        assert np.array_equal(drawn.epoch[mine], np.arange(mine.sum()) // size)
        assert len({row.tobytes() for row in by_epoch}) == whole


def test_seeds_order_differently_and_a_repeated_block_gets_a_new_mask() -> None:
    orders = [
        SampleStream(ONE, seed=s, sequences=1, micro_batch=1).locate(np.arange(50)).block.tolist() for s in (1, 2)
    ]
    assert orders[0] != orders[1]
    stream = SampleStream(ONE, seed=1, sequences=1, micro_batch=1)
    drawn = stream.locate(np.arange(100))
    first, again = np.flatnonzero(drawn.block == 0)
    masks = stream.masked(np.array([first, again]))
    original = masks.input_ids_BT.copy()
    np.put_along_axis(original, masks.positions_BM, masks.labels_BM, axis=1)
    assert np.array_equal(original[0], original[1])
    assert not np.array_equal(masks.positions_BM[0], masks.positions_BM[1])


@settings(max_examples=80, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.1, 0.25, 1.0, 2.0, 3.0, 7.5]), min_size=1, max_size=5),
    count=st.integers(1, 3000),
)
def test_a_mixture_is_exact_in_every_prefix(weights: list[float], count: int) -> None:
    table = mixture.shares(weights)
    source, index = mixture.locate(np.arange(count), table)
    found = np.bincount(source, minlength=len(weights)).tolist()
    assert found == mixture.taken(count, table)
    whole = sum(map(Fraction, map(str, weights)))
    for number, weight in enumerate(weights):
        assert abs(found[number] - count * Fraction(str(weight)) / whole) <= len(weights)
        assert index[source == number].tolist() == list(range(found[number]))


def test_a_mixture_far_along_is_still_exact() -> None:
    table = mixture.shares([0.7, 0.2, 0.1])
    far = 10**12
    source, index = mixture.locate(np.arange(far, far + 1000), table)
    before, after = mixture.taken(far, table), mixture.taken(far + 1000, table)
    for number in range(3):
        assert index[source == number].tolist() == list(range(before[number], after[number]))


def test_epochs_and_unique_tokens_count_what_was_drawn() -> None:
    stream = SampleStream(TWO, seed=3, sequences=8, micro_batch=8)
    drawn = stream.locate(np.arange(8 * 7))
    counts = {"web": int((drawn.source == 0).sum()), "books": int((drawn.source == 1).sum())}
    assert stream.epochs(7) == {"web": counts["web"] / 37, "books": counts["books"] / 11}
    distinct = {(int(s), int(b)) for s, b in zip(drawn.source, drawn.block, strict=True)}
    assert stream.unique_tokens(7) == len(distinct) * 16
    assert stream.unique_tokens(10_000) == (37 + 11) * 16


def test_normalisers_make_accumulation_irrelevant() -> None:
    """The mean over micro-batches of sum / count is the global mean of any per-element quantity."""
    means = []
    for micro, world in ((24, 1), (4, 3), (1, 6), (2, 4)):
        parts = [
            batch.labels_N.double().sum() / batch.masked_count
            for rank in range(world)
            for batch in SampleStream(ONE, seed=5, sequences=24, micro_batch=micro, rank=rank, world=world).step(2)
        ]
        means.append(float(sum(parts) / len(parts)))
    assert means == pytest.approx([means[0]] * 4, rel=1e-12)
    (batch,) = SampleStream(ONE, seed=5, sequences=24, micro_batch=24).step(2)
    assert (batch.token_count, batch.sequence_count, batch.masked_count) == (24 * 16, 24, len(batch.labels_N))
    assert batch.attention_mask_BT is None


@pytest.mark.parametrize(("sequences", "micro", "world"), [(10, 4, 1), (8, 4, 3), (4, 8, 1), (8, 0, 1)])
def test_a_batch_that_does_not_divide_is_refused(sequences: int, micro: int, world: int) -> None:
    with pytest.raises(ConfigError, match=f"batch.sequences {sequences}.*micro-batch {micro}"):
        SampleStream(ONE, seed=1, sequences=sequences, micro_batch=micro, world=world)


# -- evaluation ------------------------------------------------------------------------------------
def test_evaluation_blocks_are_fixed_and_nested() -> None:
    few = evaluation_batches(ONE, "validation", blocks=10, batch=4)
    assert [b.sequence_count for b in few] == [4, 4, 2]
    assert rows(few) == rows(evaluation_batches(ONE, "validation", blocks=10, batch=3))
    assert rows(few) == rows(evaluation_batches(ONE, "validation", blocks=30, batch=7))[:10]
    assert rows(few) != rows(evaluation_batches(ONE, "validation", blocks=10, batch=4, seed=1))
    assert not {r[0] for r in rows(few)} & {r[0] for r in rows(evaluation_batches(ONE, "test", blocks=10, batch=4))}


def test_more_evaluation_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="51 evaluation blocks: the validation split has 50"):
        evaluation_batches(ONE, "validation", blocks=51, batch=8)


# -- prefetching -----------------------------------------------------------------------------------
def test_prefetching_yields_the_steps_in_order() -> None:
    stream = SampleStream(ONE, seed=1, sequences=8, micro_batch=4)
    batches = prefetched(stream, 5, "cpu")
    assert [rows(next(batches)) for _ in range(6)] == [rows(stream.step(k)) for k in range(5, 11)]
    batches.close()
    batches.close()
    assert not any(t.name == "prefetch" and t.is_alive() for t in threading.enumerate())
    with pytest.raises(StopIteration):
        next(batches)


def test_an_error_while_prefetching_reaches_the_loop_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SampleStream(ONE, seed=1, sequences=8, micro_batch=4)
    step = stream.step

    def failing(k: int) -> list[Batch]:
        if k == 2:
            raise DataError("block 7 is unreadable")
        return step(k)

    monkeypatch.setattr(stream, "step", failing)
    batches = prefetched(stream, 0, "cpu")
    next(batches), next(batches)
    for _ in range(2):
        with pytest.raises(DataError, match="block 7"):
            next(batches)
    batches.close()


def test_a_batch_moves_whole() -> None:
    (batch,) = SampleStream(ONE, seed=1, sequences=4, micro_batch=4).step(0)
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.input_ids_BT, moved.positions_N, moved.labels_N)} == {"meta"}
    assert moved.masked_count == batch.masked_count
