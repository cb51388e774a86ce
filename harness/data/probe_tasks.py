"""The probes' tasks: how each turns held-out documents into labelled examples, by hash and not by draw.

A task is a function of a `Pool`. Every sentence is used at most once per task, either as it stands or
altered, so that no pair of examples tells its own answer. Wherever a task alters words, the words
themselves are balanced between the classes, to leave a bag of words nothing to go by.

What the tasks can tell apart, with 1,200 training and 800 test examples of python-docs (accuracy after
fine-tuning a 4-layer, 192-wide model, pretrained at 37 % MLM accuracy / untrained / bag of words; the
standard error is 1.7 points): package .70/.62/.70, corrupted .59/.49/.54, shuffled .63/.51/.60,
agreement .62/.55/.59, summary .84/.81/.82. `next` (.51/.50/.50) is at chance at this size, and `order`
was not measured: they are for larger models, and believed only when some arm leaves chance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from harness.data.hashing import text_word
from harness.data.sentences import sentences
from harness.data.sources import Document

PER_DOCUMENT = 4  # examples, so that no long document fills a probe
PASSAGE_WORDS = 48
MAX_CLASSES = 6


class Example(NamedTuple):
    """One or two texts and the index of the class; `order` sorts examples into a fixed shuffle."""

    first: str
    second: str | None
    label: int
    order: int


@dataclass(frozen=True)
class Pool:
    """Documents a probe's part is made from. `vocabulary` is most frequent first; `classes` name labels."""

    name: str
    documents: list[Document]
    vocabulary: list[str]
    classes: tuple[str, ...]

    @cached_property
    def paragraphs(self) -> list[tuple[Document, list[list[str]]]]:
        return [(d, parts) for d in self.documents if (parts := sentences(d.text))]

    def sentences(self, task: str) -> Iterator[tuple[Document, str, int]]:
        """(document, sentence, hash) in the documents' order: at most PER_DOCUMENT of each, chosen by hash."""
        for document, paragraphs in self.paragraphs:
            ranked = sorted((word(task, s), s) for part in paragraphs for s in part)
            for order, sentence in ranked[:PER_DOCUMENT]:
                yield document, sentence, order


@dataclass(frozen=True)
class Task:
    """What a probe asks. `labelled` tasks need a corpus whose documents have labels."""

    question: str
    make: Callable[[Pool], Iterator[Example]]
    classes: tuple[str, ...] = ()
    labelled: bool = False


def word(*parts: str | int) -> int:
    """A 64-bit hash of what it is for."""
    return text_word("\x1f".join(map(str, parts)))


def package(pool: Pool) -> Iterator[Example]:
    """Passages of about PASSAGE_WORDS words that do not name any of the classes."""
    names = re.compile("|".join(re.escape(name) for name in pool.classes), re.IGNORECASE)
    for document in pool.documents:
        if document.label in pool.classes:
            lines = [line for line in document.text.splitlines() if not names.search(line)]
            for passage in sorted(_passages(lines), key=lambda text: word("package", text))[:PER_DOCUMENT]:
                yield Example(passage, None, pool.classes.index(document.label), word("package", passage))


def _passages(lines: list[str]) -> Iterator[str]:
    """Lines joined until they have PASSAGE_WORDS words; a rest of a quarter as many still counts."""
    words: list[str] = []
    for line in lines:
        words += line.split()
        if len(words) >= PASSAGE_WORDS:
            yield " ".join(words)
            words = []
    if 4 * len(words) >= PASSAGE_WORDS:
        yield " ".join(words)


def order(pool: Pool) -> Iterator[Example]:
    """Two consecutive sentences of one paragraph, as written or swapped."""
    for first, second, _ in _consecutive(pool, "order"):
        at = word("order", first, second)
        yield Example(second, first, 1, at) if at & 1 else Example(first, second, 0, at)


def following(pool: Pool) -> Iterator[Example]:
    """A sentence and its successor, or the successor of another sentence from a document of the same label."""
    parted: dict[str | None, list[tuple[str, str, Document]]] = {}
    for first, second, document in _consecutive(pool, "next"):
        at = word("next", first, second)
        if at & 1:
            parted.setdefault(document.label, []).append((first, second, document))
        else:
            yield Example(first, second, 0, at)
    for rows in parted.values():
        # Successors only change places, so both classes are made of sentences of the same kind.
        rows.sort(key=lambda row: word("parted", row[0], row[1]))
        for (first, own, document), (_, other, elsewhere) in zip(rows, [*rows[1:], rows[0]], strict=True):
            if elsewhere.key != document.key:
                yield Example(first, other, 1, word("next", first, own))


def summary(pool: Pool) -> Iterator[Example]:
    """A document's opening sentence, and one from after its first paragraph."""
    for document, paragraphs in pool.paragraphs:
        later = [s for part in paragraphs[1:] for s in part]
        if later and document.text.startswith(paragraphs[0][0]):
            chosen = min(later, key=lambda s: word("summary", s))
            yield Example(paragraphs[0][0], None, 0, word("opening", document.key))
            yield Example(chosen, None, 1, word("later", document.key))


def corrupted(pool: Pool) -> Iterator[Example]:
    """A sentence as written, or with a fifth of its words replaced by words about as frequent."""
    ranks = {w: rank for rank, w in enumerate(pool.vocabulary)}
    for _, sentence, at in pool.sentences("corrupted"):
        words = sentence.split()
        places = sorted(
            (i for i in range(1, len(words)) if ranks.get(words[i].strip(".,;:").lower(), 0) >= 10),
            key=lambda i: word("corrupted", sentence, i),
        )[: max(2, len(words) // 5)]
        if len(places) < 2:
            continue
        if at & 1:
            for i in places:
                bare = words[i].strip(".,;:")
                words[i] = words[i].replace(bare, _neighbour(pool.vocabulary, ranks[bare.lower()], word(sentence, i)))
        yield Example(" ".join(words), None, at & 1, at)


def shuffled(pool: Pool) -> Iterator[Example]:
    """A sentence as written, or with six consecutive words in another order."""
    for _, sentence, at in pool.sentences("shuffled"):
        words = sentence.split()
        if len(words) < 9:
            continue
        if at & 1:
            start = 1 + word("start", sentence) % (len(words) - 7)
            span = words[start : start + 6]
            mixed = sorted(span, key=lambda w: word("span", sentence, w))
            if mixed == span:
                mixed = span[::-1]
            words[start : start + 6] = mixed
        yield Example(" ".join(words), None, at & 1, at)


_FORMS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("does", "do"),
    ("this", "these"),
    ("that", "those"),
    ("a", "an"),
)
_OTHER = {form: pair[1 - index] for pair in _FORMS for index, form in enumerate(pair)}
_FORM = re.compile(rf"\b({'|'.join(sorted(_OTHER, key=len, reverse=True))})\b(?=\s[a-z])", re.IGNORECASE)


def agreement(pool: Pool) -> Iterator[Example]:
    """A sentence as written, or with one function word put in its other form: is/are, this/these, a/an …"""
    sites: dict[str, list[tuple[int, str, re.Match[str]]]] = {form: [] for form in _OTHER}
    for _, sentence, at in pool.sentences("agreement"):
        found = list(_FORM.finditer(sentence))
        if found:
            # The rarest form present is taken, or a/an would be nearly all there is.
            scarce = min(
                found, key=lambda m: (m.group().lower() in ("a", "an", "is"), word("site", sentence, m.start()))
            )
            sites[scarce.group().lower()].append((at, sentence, scarce))
    for one, other in _FORMS:
        # As many sites of either form, half of each altered: then a form's presence says nothing.
        count = min(len(sites[one]), len(sites[other])) // 2 * 2
        for form in (one, other):
            for index, (at, sentence, site) in enumerate(sorted(sites[form], key=lambda row: row[:2])[:count]):
                text = sentence
                if index % 2:
                    changed = _OTHER[form].capitalize() if site.group()[0].isupper() else _OTHER[form]
                    text = sentence[: site.start()] + changed + sentence[site.end() :]
                yield Example(text, None, index % 2, at)


def _consecutive(pool: Pool, task: str) -> Iterator[tuple[str, str, Document]]:
    """Disjoint pairs of neighbouring sentences, at most PER_DOCUMENT from a document."""
    for document, paragraphs in pool.paragraphs:
        pairs = [(p[i], p[i + 1]) for p in paragraphs for i in range(0, len(p) - 1, 2)]
        for first, second in sorted(pairs, key=lambda pair: word(task, *pair))[:PER_DOCUMENT]:
            yield first, second, document


def _neighbour(vocabulary: list[str], rank: int, at: int) -> str:
    """Another word whose frequency rank is within a fifth of `rank`."""
    low, high = int(rank * 0.8), min(len(vocabulary), int(rank * 1.2) + 2)
    chosen = low + at % (high - low)
    return vocabulary[chosen if chosen != rank else (chosen + 1 if chosen + 1 < high else low)]


def largest_labels(documents: list[Document]) -> tuple[str, ...]:
    """The labels with the most documents, MAX_CLASSES at most, ties by name."""
    counts = Counter(d.label for d in documents if d.label is not None)
    return tuple(sorted(sorted(counts, key=lambda name: (-counts[name], name))[:MAX_CLASSES]))


TASKS: dict[str, Task] = {
    "package": Task("Which package's documentation is this passage from?", package, labelled=True),
    "summary": Task("Does this sentence open its document, or come later?", summary, ("opening", "later")),
    "order": Task("Are these two sentences in the order they were written in?", order, ("in order", "swapped")),
    "next": Task("Does the second sentence follow the first?", following, ("follows", "from elsewhere")),
    "corrupted": Task("Were some words replaced by others as frequent?", corrupted, ("real", "corrupted")),
    "shuffled": Task("Were six consecutive words put in another order?", shuffled, ("real", "shuffled")),
    "agreement": Task(
        "Is one function word in the wrong form (is/are, this/these, a/an)?", agreement, ("right", "wrong")
    ),
}
