"""Built-in multiple-choice probes: which continuation of a held-out text is the likeliest?

Items come from test documents, so nothing here was in any pretraining batch, and are a function of the corpus
alone: every arm, seed and machine gets the same. A true continuation stands among three others.

  continuation  the true next words against next words from other documents of the same label
  word_order    the true next words against other orders of the same words, which no bag of words tells apart

Shapes: E items, C choices each, L tokens of the longest row; a row is [CLS], prompt, continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.data.corpus import Corpus
from harness.data.hashing import text_word
from harness.data.tokenizer import encode
from harness.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.data.sources import Document

CHOICES = 4
PROMPT_WORDS = 16
CONTINUATION_WORDS = 6
PER_DOCUMENT = 4  # items, so that no long document fills a probe

QUESTIONS = {
    "continuation": "Which of four passages goes on from this text, the others being from documents of the same kind?",
    "word_order": "Which of four orders of the next words is the one that was written?",
}


class Item(NamedTuple):
    """A prompt, CHOICES continuations in the order they are shown in, and which of them is true."""

    prompt: str
    continuations: list[str]
    label: int


@dataclass(frozen=True)
class ChoiceData:
    """One probe, ready to score: rows 0 … C−1 are the first item's choices, and so on."""

    task: str
    ids_NL: npt.NDArray[np.int64]
    prompts_N: npt.NDArray[np.int64]  # tokens before the continuation, [CLS] included
    lengths_N: npt.NDArray[np.int64]  # real tokens of the row
    bytes_N: npt.NDArray[np.int64]  # UTF-8 bytes of the continuation
    labels_E: npt.NDArray[np.int64]

    @property
    def description(self) -> str:
        return QUESTIONS[self.task]


class Span(NamedTuple):
    prompt: list[str]
    following: list[str]
    document: Document
    order: int


def build_choices(
    task: str, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, examples: int, max_length: int
) -> ChoiceData:
    """The first `examples` items in hash order whose rows fit into `max_length` tokens.

    Raises:
        DataError: the test documents give fewer.
    """
    spans = sorted(_spans(corpus, task), key=lambda span: span.order)
    rows: list[list[int]] = []
    prompts: list[int] = []
    sizes: list[int] = []
    labels: list[int] = []
    items = TASKS[task](spans)
    while len(labels) < examples and (batch := list(islice(items, 256))):
        heads = encode(tokenizer, [item.prompt for item in batch])
        # A word that follows another is written with its space: byte-level vocabularies tell the two apart.
        tails = encode(tokenizer, [f" {text}" for item in batch for text in item.continuations])
        for index, (item, head) in enumerate(zip(batch, heads, strict=True)):
            own = tails[index * CHOICES : (index + 1) * CHOICES]
            fits = 1 + len(head) + max(map(len, own)) <= max_length
            distinct = len({tuple(tail) for tail in own}) == CHOICES and all(own)
            if len(labels) == examples or not (fits and distinct):
                continue
            rows += [[corpus.special.cls, *head, *tail] for tail in own]
            prompts += [1 + len(head)] * CHOICES
            sizes += [len(text.encode("utf-8", "replace")) for text in item.continuations]
            labels.append(item.label)
    if len(labels) < examples:
        raise DataError(
            f"probe {task!r} wants {examples} test items", rule=f"the held-out documents give {len(labels)}",
            remedy="ask for fewer in evaluation.choices, or hold out more text (data.test_fraction)",
        )  # fmt: skip
    ids = np.full((len(rows), max(map(len, rows))), corpus.special.pad, dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return ChoiceData(task, ids, np.array(prompts), lengths, np.array(sizes), np.array(labels))


def _spans(corpus: Corpus, task: str) -> Iterator[Span]:
    """Disjoint runs of words of test documents, at most PER_DOCUMENT of each, chosen by hash."""
    size = PROMPT_WORDS + CONTINUATION_WORDS
    for document in corpus.documents("test"):
        words = document.text.split()
        starts = sorted(
            range(0, len(words) - size + 1, size), key=lambda at: text_word(f"{task}\x1f{document.key}\x1f{at}")
        )
        for at in starts[:PER_DOCUMENT]:
            run = words[at : at + size]
            order = text_word(f"{task}\x1f{' '.join(run)}")
            yield Span(run[:PROMPT_WORDS], run[PROMPT_WORDS:], document, order)


def _item(span: Span, others: list[list[str]]) -> Item:
    """The true continuation among the others, at a place its hash decides."""
    label = (span.order >> 8) % CHOICES
    shown = [" ".join(words) for words in others]
    return Item(" ".join(span.prompt), [*shown[:label], " ".join(span.following), *shown[label:]], label)


def continuation(spans: list[Span]) -> Iterator[Item]:
    """Others are the continuations of the next items of the same label, from other documents."""
    by_label: dict[str | None, list[Span]] = {}
    for span in spans:
        by_label.setdefault(span.document.label, []).append(span)
    place = {id(span): index for group in by_label.values() for index, span in enumerate(group)}
    for span in spans:
        group = by_label[span.document.label]
        at = place[id(span)]
        turned = (group[(at + step) % len(group)] for step in range(1, len(group)))
        others = list(islice((o for o in turned if o.document.key != span.document.key), CHOICES - 1))
        if len(others) == CHOICES - 1:
            yield _item(span, [other.following for other in others])


def word_order(spans: list[Span]) -> Iterator[Item]:
    """Others are the same words, sorted by three hashes."""
    for span in spans:
        words = span.following
        found: dict[tuple[str, ...], None] = {}
        for turn in range(4 * CHOICES):
            order = sorted(range(len(words)), key=lambda i: text_word(f"{turn}\x1f{i}\x1f{span.order}"))
            found[tuple(words[i] for i in order)] = None
        found.pop(tuple(words), None)
        if len(found) >= CHOICES - 1:
            yield _item(span, [list(other) for other in islice(found, CHOICES - 1)])


TASKS: dict[str, Callable[[list[Span]], Iterator[Item]]] = {"continuation": continuation, "word_order": word_order}


def picked(data: ChoiceData, log_likelihood_N: npt.NDArray[np.float64], *, normalise: str) -> float:
    """Share of items whose true continuation scores highest; n choices that tie for it share the point."""
    tokens = (data.lengths_N - data.prompts_N).astype(np.float64)
    divisor = {"tokens": tokens, "bytes": data.bytes_N.astype(np.float64), "none": np.ones_like(tokens)}[normalise]
    scores_EC = np.round(log_likelihood_N / divisor, 9).reshape(-1, CHOICES)
    best_EC = scores_EC == scores_EC.max(axis=1, keepdims=True)
    hit_E = best_EC[np.arange(len(data.labels_E)), data.labels_E]
    return float((hit_E / best_EC.sum(axis=1)).mean())


def unigram_accuracy(data: ChoiceData, corpus: Corpus, *, normalise: str) -> float:
    """What the training text's token frequencies alone pick: what needs no language model."""
    counts = np.ones(corpus.vocab_size)
    for source in corpus.sources:
        counts += np.bincount(np.asarray(corpus.blocks("train", source)).reshape(-1), minlength=corpus.vocab_size)
    log_frequency = np.log(counts / counts.sum())
    place = np.arange(data.ids_NL.shape[1])
    scored = (place >= data.prompts_N[:, None]) & (place < data.lengths_N[:, None])
    return picked(data, (log_frequency[data.ids_NL] * scored).sum(axis=1), normalise=normalise)
