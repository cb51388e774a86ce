"""The sample stream: which blocks, in which order, with which masks, as a function of the step alone.

Shapes: B sequences of a micro-batch, T tokens, M masked positions per sequence, N = B·M.

Nothing is drawn and nothing is remembered: sample i of a seed is the same block with the same masks on
every rank, at any world size and micro-batch, before and after a resume, for every arm. A dearer arm,
which affords fewer steps, therefore sees a prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.data import mixture
from harness.data.batch import Batch
from harness.data.corpus import Corpus
from harness.data.hashing import permutation, text_word
from harness.data.masking import MaskedBlocks, mask_blocks
from harness.data.next_token import next_tokens, predicted_count
from harness.data.prefetch import Prefetcher, prefetched
from harness.data.repeats import Repeats
from harness.errors import ConfigError, DataError
from harness.study import MaskingSpec

__all__ = ["Batch", "Prefetcher", "SampleStream", "evaluation_batches", "prefetched"]

_EVALUATION = text_word("evaluation")
Shelf = OrderedDict[tuple[int, int], npt.NDArray[np.int64]]


class Drawn(NamedTuple):
    """Where samples come from: index of the source, epoch of that source, block within it."""

    source: npt.NDArray[np.int64]
    epoch: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]


class SampleStream:
    """This rank's view of the global sample stream of one seed."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        seed: int,
        sequences: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        masking: MaskingSpec | None = None,
        causal: bool = False,
        mask_epochs: int | None = None,
    ) -> None:
        """`causal` blocks are not masked: every position predicts the next token (harness/data/next_token.py).

        With `mask_epochs` the masks of that many epochs come again in turn; causal blocks are the same in every epoch.

        Raises:
            ConfigError: micro_batch × world does not divide the global batch.
        """
        if micro_batch < 1 or sequences % (micro_batch * world):
            raise ConfigError(
                f"batch.sequences {sequences}",
                rule=f"not a multiple of micro-batch {micro_batch} × world {world} (= {micro_batch * world})",
                remedy="change train_micro_batch_size_per_gpu in the ds_config, or the number of ranks",
            )
        self.corpus = corpus
        self.seed = seed
        self.sequences = sequences
        self.micro_batch = micro_batch
        self.rank, self.world = rank, world
        self.accumulation = sequences // (micro_batch * world)
        self.masking = masking or corpus.data.masking
        self.causal = causal
        length = corpus.block_length
        self.masked_per_sequence = predicted_count(length) if causal else self.masking.count(length)
        self._sources = corpus.sources
        self._words = [text_word(f"source:{label}") for label in self._sources]
        self._sizes = [len(corpus.blocks("train", label)) for label in self._sources]
        self._shares = mixture.shares([corpus.weights[label] for label in self._sources])
        self.repeats = Repeats(tuple(self._sizes), self._shares, 1 if causal else mask_epochs)
        self._orders: Shelf = OrderedDict()
        self._inverses: Shelf = OrderedDict()

    @property
    def tokens_per_step(self) -> int:
        return self.sequences * self.corpus.block_length

    def locate(self, samples: npt.NDArray[np.int64]) -> Drawn:
        """The source, epoch and block of global sample indices."""
        source, index = mixture.locate(samples, self._shares)
        size = np.asarray(self._sizes, dtype=np.int64)[source]
        epoch, place = index // size, index % size
        block = np.empty_like(place)
        for s in np.unique(source):
            for e in np.unique(epoch[source == s]):
                chosen = (source == s) & (epoch == e)
                block[chosen] = self._order(int(s), int(e))[place[chosen]]
        return Drawn(source, epoch, block)

    def samples_of(self, step: int) -> npt.NDArray[np.int64]:
        """[accumulation, micro_batch] global sample indices of this rank at this step."""
        of_step = np.arange(step * self.sequences, (step + 1) * self.sequences, dtype=np.int64)
        return of_step.reshape(self.accumulation, self.world, self.micro_batch)[:, self.rank]

    def masked(self, samples: npt.NDArray[np.int64]) -> MaskedBlocks:
        """The blocks of these global samples with their masks or next tokens, as numpy arrays."""
        return self.blocks_of(self.locate(samples))

    def first_seen(self, samples: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(source, index within it) of the first sample of the stream that has these tokens and masks."""
        drawn = self.locate(samples)
        source, index = mixture.locate(samples, self._shares)
        cycle = self.repeats.cycle
        if cycle is None:
            return source, index
        round_ = drawn.epoch % cycle
        again = np.flatnonzero(drawn.epoch >= cycle)
        for s, e in sorted(set(zip(source[again].tolist(), round_[again].tolist(), strict=True))):
            chosen = again[(source[again] == s) & (round_[again] == e)]
            index[chosen] = e * self._sizes[s] + self._places(s, e)[drawn.block[chosen]]
        return source, index

    def blocks_at(self, source: int, indices: npt.NDArray[np.int64]) -> MaskedBlocks:
        """The blocks of one source at these indices within it, as `masked` gives them."""
        epoch, place = indices // self._sizes[source], indices % self._sizes[source]
        block = np.empty_like(place)
        for e in np.unique(epoch):
            block[epoch == e] = self._order(source, int(e))[place[epoch == e]]
        return self.blocks_of(Drawn(np.full_like(place, source), epoch, block))

    def blocks_of(self, drawn: Drawn) -> MaskedBlocks:
        """These blocks with the masks of their epoch, or with their next tokens."""
        size = drawn.block.size
        ids_BT = np.empty((size, self.corpus.block_length), dtype=np.int64)
        word_B = np.empty(size, dtype=np.uint64)
        for s in np.unique(drawn.source):
            chosen = drawn.source == s
            ids_BT[chosen] = self.corpus.blocks("train", self._sources[s])[drawn.block[chosen]]
            word_B[chosen] = self._words[s]
        if self.causal:
            return next_tokens(ids_BT)
        # The mask belongs to the block in its epoch, and so is new whenever the block comes round again.
        epoch = drawn.epoch if self.repeats.cycle is None else drawn.epoch % self.repeats.cycle
        return self._mask(ids_BT, word_B ^ drawn.block.astype(np.uint64), epoch)

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of one optimizer step."""
        samples_AB = self.samples_of(step)
        blocks = self.masked(samples_AB.reshape(-1))
        b = self.micro_batch
        return [
            Batch.of(MaskedBlocks(*(x[a * b : (a + 1) * b] for x in blocks)), samples_B=samples_AB[a])
            for a in range(self.accumulation)
        ]

    def epochs(self, steps: int) -> dict[str, float]:
        """How often `steps` steps go through each source."""
        return {
            label: taken / size
            for label, taken, size in zip(
                self._sources, mixture.taken(steps * self.sequences, self._shares), self._sizes, strict=True
            )
        }

    def tokens_by_source(self, steps: int) -> dict[str, int]:
        """Tokens that `steps` steps take from each source."""
        drawn = mixture.taken(steps * self.sequences, self._shares)
        return {label: count * self.corpus.block_length for label, count in zip(self._sources, drawn, strict=True)}

    def unique_tokens(self, steps: int) -> int:
        """Distinct tokens seen in `steps` steps; less than steps × tokens_per_step once a source repeats."""
        return (
            sum(
                min(t, n) for t, n in zip(mixture.taken(steps * self.sequences, self._shares), self._sizes, strict=True)
            )
            * self.corpus.block_length
        )

    def _order(self, source: int, epoch: int) -> npt.NDArray[np.int64]:
        def make() -> npt.NDArray[np.int64]:
            return permutation(self._sizes[source], key=(self.seed, self._words[source], epoch))

        return self._kept(self._orders, (source, epoch), make)

    def _places(self, source: int, epoch: int) -> npt.NDArray[np.int64]:
        """Where each block lies in the order of this epoch."""

        def make() -> npt.NDArray[np.int64]:
            order = self._order(source, epoch)
            places = np.empty_like(order)
            places[order] = np.arange(order.size)
            return places

        return self._kept(self._inverses, (source, epoch), make)

    def _kept(
        self, shelf: Shelf, key: tuple[int, int], make: Callable[[], npt.NDArray[np.int64]]
    ) -> npt.NDArray[np.int64]:
        if key not in shelf:
            shelf[key] = make()
            # A batch may straddle two epochs of every source; older orders are never needed again.
            while len(shelf) > 2 * len(self._sources):
                shelf.popitem(last=False)
        return shelf[key]

    def _mask(
        self, ids_BT: npt.NDArray[np.int64], sample_B: npt.NDArray[np.uint64], epoch_B: npt.NDArray[np.int64]
    ) -> MaskedBlocks:
        corpus = self.corpus
        return mask_blocks(
            ids_BT,
            sample_B=sample_B,
            epoch_B=epoch_B,
            seed=self.seed,
            spec=self.masking,
            special_ids=corpus.special.all,
            mask_id=corpus.special.mask,
            vocab_size=corpus.vocab_size,
        )


def evaluation_choice(corpus: Corpus, split: str, blocks: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Which of a split's blocks are evaluated, in order: each source gives its share of the mixture.

    A source that has fewer gives all it has, and the others make up for it. Indices count through the sources in order.
    """
    sizes = [len(corpus.blocks(split, source)) for source in corpus.sources]
    table = mixture.shares([corpus.weights[source] for source in corpus.sources])
    counts = [min(taken, size) for taken, size in zip(mixture.taken(blocks, table), sizes, strict=True)]
    for place, size in enumerate(sizes):
        counts[place] += min(size - counts[place], blocks - sum(counts))
    offsets = np.cumsum([0, *sizes[:-1]])
    chosen = [
        offset + permutation(size, key=(_EVALUATION, seed))[:count]
        for offset, size, count in zip(offsets, sizes, counts, strict=True)
    ]
    return np.concatenate(chosen)


def evaluation_batches(
    corpus: Corpus,
    split: str,
    *,
    blocks: int,
    batch: int,
    masking: MaskingSpec | None = None,
    seed: int = 0,
    causal: bool = False,
) -> list[Batch]:
    """Held-out blocks with fixed masks: the same for every arm and seed; of one source, fewer are a prefix of more.

    `causal` blocks have no masks but next tokens.

    The counts of each batch are its own (the last may be smaller): add sums and counts over batches.

    Raises:
        DataError: the split has fewer blocks than asked for.
    """
    available = corpus.blocks(split)
    if blocks > len(available):
        raise DataError(
            f"{blocks} evaluation blocks",
            rule=f"the {split} split has {len(available)} of {corpus.block_length} tokens",
            remedy="lower evaluation.mlm_blocks or raise the split's fraction",
        )
    chosen = evaluation_choice(corpus, split, blocks, seed=seed)
    return _fixed(corpus, available, chosen, batch=batch, masking=masking, seed=seed, causal=causal)


def domain_batches(
    corpus: Corpus,
    available: npt.NDArray[np.unsignedinteger],
    *,
    blocks: int,
    batch: int,
    masking: MaskingSpec | None = None,
    causal: bool = False,
) -> list[Batch]:
    """At most `blocks` blocks [n, T] of one domain with fixed masks; of a study's only source, its evaluation batches."""
    chosen = permutation(len(available), key=(_EVALUATION, 0))[:blocks]
    return _fixed(corpus, available, chosen, batch=batch, masking=masking, seed=0, causal=causal)


def _fixed(
    corpus: Corpus,
    available: npt.NDArray[np.unsignedinteger],
    chosen: npt.NDArray[np.int64],
    *,
    batch: int,
    masking: MaskingSpec | None,
    seed: int,
    causal: bool,
) -> list[Batch]:
    masked = (
        next_tokens(available[chosen])
        if causal
        else mask_blocks(
            available[chosen],
            sample_B=chosen,
            epoch_B=np.zeros_like(chosen),
            seed=_EVALUATION ^ seed,
            spec=masking or corpus.data.masking,
            special_ids=corpus.special.all,
            mask_id=corpus.special.mask,
            vocab_size=corpus.vocab_size,
        )
    )
    return [Batch.of(MaskedBlocks(*(x[at : at + batch] for x in masked))) for at in range(0, len(chosen), batch)]
