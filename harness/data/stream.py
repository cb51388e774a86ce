"""The sample stream: which blocks, in which order, with which masks, as a function of the step alone.

Shapes: B sequences of a micro-batch, T tokens, M masked positions per sequence, N = B·M.

Nothing is drawn and nothing is remembered: sample i of a seed is the same block with the same masks on
every rank, at any world size and micro-batch, before and after a resume, for every arm. A dearer arm,
which affords fewer steps, therefore sees a prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.data.corpus import Corpus
from harness.data.hashing import permutation, text_word
from harness.data.masking import MaskedBlocks, mask_blocks
from harness.errors import ConfigError, DataError
from harness.study import MaskingSpec

if TYPE_CHECKING:
    import torch

_EVALUATION = text_word("evaluation")


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one rank.

    A sum over this batch divided by the matching count (the global step's mean per micro-batch) and
    averaged over all micro-batches of all ranks is the global batch's mean, whatever the accumulation.
    """

    input_ids_BT: torch.Tensor
    positions_N: torch.Tensor  # int64, into the flattened B·T
    labels_N: torch.Tensor
    masked_count: float
    token_count: float
    sequence_count: float
    attention_mask_BT: torch.Tensor | None = None  # None: packed, nothing is padding

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        mask = self.attention_mask_BT
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device, non_blocking=non_blocking),
            positions_N=self.positions_N.to(device, non_blocking=non_blocking),
            labels_N=self.labels_N.to(device, non_blocking=non_blocking),
            attention_mask_BT=None if mask is None else mask.to(device, non_blocking=non_blocking),
        )


class Drawn(NamedTuple):
    """Where samples come from: index of the source, epoch of that source, block within it."""

    source: npt.NDArray[np.int64]
    epoch: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]


def shares(weights: list[float]) -> list[tuple[int, int]]:
    """For each source but the last, its share of what the earlier ones leave, as (numerator, denominator)."""
    exact = [Fraction(str(w)) for w in weights]
    table = []
    for index in range(len(exact) - 1):
        share = (exact[index] / sum(exact[index:])).limit_denominator(10**6)
        table.append((share.numerator, share.denominator))
    return table


def mixture(
    samples: npt.NDArray[np.int64], table: list[tuple[int, int]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(source, index within source) of each global sample index; integers only, no state.

    The first source takes sample i when floor((i+1)·p) > floor(i·p); what it leaves is renumbered and
    offered to the next. After n samples a source has its exact share to within one sample per source.
    Valid below 9·10**12 samples.
    """
    source = np.full(samples.shape, len(table), dtype=np.int64)
    index = samples.astype(np.int64).copy()
    open_ = np.ones(samples.shape, dtype=bool)
    for number, (p, q) in enumerate(table):
        before = index * p // q
        takes = open_ & ((index + 1) * p // q > before)
        source[takes] = number
        index = np.where(takes, before, np.where(open_, index - before, index))
        open_ &= ~takes
    return source, index


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
    ) -> None:
        """
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
        self.masked_per_sequence = self.masking.count(corpus.block_length)
        self._sources = corpus.sources
        self._words = [text_word(f"source:{label}") for label in self._sources]
        self._sizes = [len(corpus.blocks("train", label)) for label in self._sources]
        self._shares = shares([corpus.weights[label] for label in self._sources])
        self._orders: OrderedDict[tuple[int, int], npt.NDArray[np.int64]] = OrderedDict()

    @property
    def tokens_per_step(self) -> int:
        return self.sequences * self.corpus.block_length

    def locate(self, samples: npt.NDArray[np.int64]) -> Drawn:
        """The source, epoch and block of global sample indices."""
        source, index = mixture(samples, self._shares)
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
        """The blocks of these global samples with their masks, as numpy arrays."""
        drawn = self.locate(samples)
        ids_BT = np.empty((samples.size, self.corpus.block_length), dtype=np.int64)
        word_B = np.empty(samples.size, dtype=np.uint64)
        for s in np.unique(drawn.source):
            chosen = drawn.source == s
            ids_BT[chosen] = self.corpus.blocks("train", self._sources[s])[drawn.block[chosen]]
            word_B[chosen] = self._words[s]
        # The mask belongs to the block in its epoch, and so is new whenever the block comes round again.
        return self._mask(ids_BT, word_B ^ drawn.block.astype(np.uint64), drawn.epoch)

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of one optimizer step."""
        samples_AB = self.samples_of(step)
        blocks = self.masked(samples_AB.reshape(-1))
        b = self.micro_batch
        return [_to_batch(MaskedBlocks(*(x[a * b : (a + 1) * b] for x in blocks))) for a in range(self.accumulation)]

    def epochs(self, steps: int) -> dict[str, float]:
        """How often `steps` steps go through each source."""
        return {
            label: taken / size
            for label, taken, size in zip(self._sources, self._taken(steps), self._sizes, strict=True)
        }

    def unique_tokens(self, steps: int) -> int:
        """Distinct tokens seen in `steps` steps; less than steps × tokens_per_step once a source repeats."""
        return sum(min(t, n) for t, n in zip(self._taken(steps), self._sizes, strict=True)) * self.corpus.block_length

    def _taken(self, steps: int) -> list[int]:
        """Samples taken from each source by the first `steps` steps, in exact integers."""
        left = steps * self.sequences
        taken = []
        for p, q in self._shares:
            taken.append(left * p // q)
            left -= taken[-1]
        return [*taken, left]

    def _order(self, source: int, epoch: int) -> npt.NDArray[np.int64]:
        key = (source, epoch)
        if key not in self._orders:
            self._orders[key] = permutation(self._sizes[source], key=(self.seed, self._words[source], epoch))
            # A batch may straddle two epochs of every source; older orders are never needed again.
            while len(self._orders) > 2 * len(self._sources):
                self._orders.popitem(last=False)
        return self._orders[key]

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


def evaluation_batches(
    corpus: Corpus, split: str, *, blocks: int, batch: int, masking: MaskingSpec | None = None, seed: int = 0
) -> list[Batch]:
    """Held-out blocks with fixed masks: the same for every arm and seed; fewer blocks are a prefix of more.

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
    chosen = permutation(len(available), key=(_EVALUATION, seed))[:blocks]
    masked = mask_blocks(
        available[chosen],
        sample_B=chosen,
        epoch_B=np.zeros_like(chosen),
        seed=_EVALUATION ^ seed,
        spec=masking or corpus.data.masking,
        special_ids=corpus.special.all,
        mask_id=corpus.special.mask,
        vocab_size=corpus.vocab_size,
    )
    return [_to_batch(MaskedBlocks(*(x[at : at + batch] for x in masked))) for at in range(0, blocks, batch)]


def _to_batch(masked: MaskedBlocks) -> Batch:
    import torch

    count, length = masked.input_ids_BT.shape
    positions_BM = masked.positions_BM + np.arange(count, dtype=np.int64)[:, None] * length
    return Batch(
        input_ids_BT=torch.from_numpy(np.ascontiguousarray(masked.input_ids_BT)),
        positions_N=torch.from_numpy(positions_BM.reshape(-1)),
        labels_N=torch.from_numpy(np.ascontiguousarray(masked.labels_BM).reshape(-1)),
        masked_count=float(positions_BM.size),
        token_count=float(count * length),
        sequence_count=float(count),
    )
