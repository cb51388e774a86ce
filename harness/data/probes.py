"""Built-in probes: small classification tasks from the corpus's own held-out documents.

Training and selection examples come from disjoint documents of the validation split, test examples
from the test split; nothing here was in any pretraining batch. Classes are exactly balanced, and the
examples are a function of the corpus alone: every arm, seed and machine gets the same.

Shapes: E examples, L tokens of the longest example.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.data.corpus import Corpus
from harness.data.hashing import text_word
from harness.data.probe_tasks import TASKS, Example, Pool, Task, largest_labels
from harness.data.sentences import by_frequency
from harness.data.sources import Document
from harness.data.tokenizer import encode, special_ids
from harness.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES: dict[str, str] = {name: task.question for name, task in TASKS.items()}
SELECTION_SHARE = 4  # one selection example for so many training examples


@dataclass(frozen=True)
class Examples:
    """`ids_EL` start with [CLS], end with [SEP] at `lengths_E` and are padded from there on."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ProbeData:
    """One probe, ready to train on; `majority_accuracy` is what always answering one class scores on test."""

    task: str
    description: str
    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples

    @property
    def majority_accuracy(self) -> float:
        return float(np.bincount(self.test.labels, minlength=len(self.classes)).max() / len(self.test))


def build_probe(
    task: str,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_examples: int,
    test_examples: int,
    max_length: int,
) -> ProbeData:
    """Make one probe: `train_examples`, a quarter as many to select on, and `test_examples`.

    Each number is rounded down to a multiple of the classes. Passages are cut at `max_length` tokens;
    sentences that do not fit are left out.

    Raises:
        ConfigError: an unknown task.
        DataError: the corpus has no labels and the task needs them, or too few held-out sentences.
    """
    kind = find(task)
    validation, test = list(corpus.documents("validation")), list(corpus.documents("test"))
    classes = largest_labels(validation) if kind.labelled else kind.classes
    if len(classes) < 2:
        raise DataError(
            f"probe {task!r}",
            rule="it asks for a document's label, and these documents have none",
            remedy=f"choose among {', '.join(name for name, other in TASKS.items() if not other.labelled)}",
        )
    selecting = [d for d in validation if text_word(f"selection:{d.key}") % SELECTION_SHARE == 0]
    training = [d for d in validation if text_word(f"selection:{d.key}") % SELECTION_SHARE]
    vocabulary = by_frequency(d.text for d in validation)
    seen: set[str] = set()  # over all parts: a sentence that two documents share is used once

    def part(name: str, documents: list[Document], count: int) -> Examples:
        pool = Pool(name, documents, vocabulary, classes)
        return _select(kind.make(pool), tokenizer, task, name, len(classes), count, max_length, seen, cut=kind.labelled)

    return ProbeData(
        task=task,
        description=kind.question,
        classes=classes,
        train=part("training", training, train_examples),
        validation=part("selection", selecting, max(len(classes), train_examples // SELECTION_SHARE)),
        test=part("test", test, test_examples),
    )


def find(task: str) -> Task:
    """The task of this name; ConfigError names those there are."""
    if task not in TASKS:
        raise ConfigError(f"probe {task!r}", rule="unknown probe", remedy=f"known are {', '.join(TASKS)}")
    return TASKS[task]


def _select(
    found: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    part: str,
    classes: int,
    count: int,
    max_length: int,
    seen: set[str],
    *,
    cut: bool,
) -> Examples:
    """The first examples in hash order that fit, equally many of every class."""
    special = special_ids(tokenizer)
    quota = count // classes
    rows: list[list[int]] = []
    labels: list[int] = []
    taken = [0] * classes
    ordered = iter(sorted(found, key=lambda e: (e.order, e.first)))
    while min(taken) < quota and (batch := list(islice(ordered, 512))):
        # As many tokens as tell whether an example fits.
        firsts = encode(tokenizer, [e.first for e in batch], limit=max_length)
        seconds = encode(tokenizer, [e.second or "" for e in batch], limit=max_length)
        for example, first, second in zip(batch, firsts, seconds, strict=True):
            ids = [special.cls, *first, special.sep, *([*second, special.sep] if example.second else [])]
            if len(ids) > max_length and cut:
                ids = [*ids[: max_length - 1], special.sep]
            repeated = example.first in seen or (example.second is not None and example.second in seen)
            if taken[example.label] < quota and len(ids) <= max_length and not repeated:
                seen.update(text for text in (example.first, example.second) if text is not None)
                taken[example.label] += 1
                rows.append(ids)
                labels.append(example.label)
    if quota < 1 or min(taken) < quota:
        raise DataError(
            f"probe {task!r} wants {count} {part} examples",
            rule=f"the held-out documents give {min(taken) * classes}",
            remedy="ask for fewer in evaluation.probes, or hold out more text (data.validation_fraction, data.test_fraction)",
        )
    ids = np.full((len(rows), max(map(len, rows))), special.pad, dtype=np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return Examples(ids, np.array([len(r) for r in rows], dtype=np.int32), np.array(labels, dtype=np.int64))


def bag_of_words_accuracy(data: ProbeData) -> float:
    """Test accuracy of logistic regression on token and bigram counts: what needs no language model.

    The regularisation is selected on the selection examples.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    def texts(part: Examples) -> list[str]:
        return [" ".join(map(str, row[:length])) for row, length in zip(part.ids, part.lengths, strict=True)]

    vectorizer = CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), min_df=2, lowercase=False)
    train = vectorizer.fit_transform(texts(data.train))
    validation, test = vectorizer.transform(texts(data.validation)), vectorizer.transform(texts(data.test))
    models = [LogisticRegression(C=c, max_iter=500).fit(train, data.train.labels) for c in (0.01, 0.1, 1.0)]
    best = max(models, key=lambda m: m.score(validation, data.validation.labels))
    return float(best.score(test, data.test.labels))
