"""Documents from wherever they are, each assigned to one split.

A source is embedded (`python-docs`, `python-code`, `python-comments`), a local file or folder (parquet, jsonl or text;
a clone of a Hub dataset is such a folder), or a Hub dataset. Its own train/validation/test are kept when it has them; what is
missing is carved from train by the hash of a document's near-duplicate group. Either way no two
near-duplicates are in different splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from harness.data import files, neardup, python_code, python_docs
from harness.data.hashing import U64, text_word
from harness.errors import DataError
from harness.study import EMBEDDED, DataSpec, SourceSpec, TextSpec

SPLITS: tuple[str, ...] = ("train", "validation", "test")
# In place of a split: train as it is, without `data.limit_tokens`.
WHOLE_TRAIN = "whole train"
_PYTHON_DOCS = EMBEDDED[0]


@dataclass(frozen=True, slots=True)
class Document:
    """One text of one split. `key` names it stably, `label` is its class where the source knows one."""

    text: str
    source: str
    split: str
    key: str
    label: str | None = None


class Opened(NamedTuple):
    """What a source is a function of, the splits it has, and a way to read one split from the start."""

    identity: dict[str, Any]
    splits: tuple[str, ...]
    texts: Callable[[str], Iterator[str]]


def identity(source: TextSpec) -> dict[str, Any]:
    """What the source's documents are a function of, without reading them: versions, file sizes and dates.

    Raises:
        DataError: a missing path, a folder without text, or a Hub that does not answer.
    """
    if source.path in EMBEDDED:
        return python_docs.identity() if source.path == _PYTHON_DOCS else python_code.identity()
    return {**_open(source).identity, "column": source.text_column, "near_duplicates": neardup.VERSION}


def read_documents(source: SourceSpec, data: DataSpec, *, tally: dict[str, int] | None = None) -> Iterator[Document]:
    """Every document of the source, in a fixed order; each split's documents in the source's order.

    Args:
        tally: counts `empty` texts skipped and `near_duplicates` dropped from train because held-out data has them.

    Raises:
        DataError: missing or corrupt files, a missing column, nothing but empty documents, or a split without any.
    """
    tally = {} if tally is None else tally
    seen: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for document in _embedded(source, data) if source.path in EMBEDDED else _generic(source, data, tally):
        seen[document.split] += 1
        yield document
    if not any(seen.values()):
        raise DataError(
            f"source {source.path!r}",
            rule="every document is empty",
            remedy=f"check that column {source.text_column!r} holds the text, or set data.sources.0.text_column",
        )
    missing = [split for split in SPLITS if not seen[split]]
    if missing:
        raise DataError(
            f"source {source.path!r}",
            rule=f"{sum(seen.values())} documents leave {' and '.join(missing)} empty",
            remedy="give more documents, or raise data.validation_fraction and data.test_fraction",
        )


def split_of(key: str, data: DataSpec) -> str:
    """The split a key's hash falls into; the same on every machine."""
    share = text_word(f"split:{key}") / 2**64
    if share < data.test_fraction:
        return "test"
    return "validation" if share < data.test_fraction + data.validation_fraction else "train"


def unsplit(source: TextSpec) -> Iterator[Document]:
    """All that may be held out of a source that nothing is trained on: its own test or validation split, else every text.

    Documents come in a fixed order, without empty ones; near-duplicates among them are kept.

    Raises:
        DataError: missing or corrupt files, or a missing column.
    """
    if source.path in EMBEDDED:
        for passage in _passages(source.path):
            yield Document(passage.text, source.label, "test", passage.key)
        return
    opened = _open(source)
    splits = next(([own] for own in ("test", "validation") if own in opened.splits), list(opened.splits))
    for split in splits:
        for text in opened.texts(split):
            if text.strip():
                yield Document(text, source.label, "test", f"{text_word(text):016x}")


def _passages(path: str) -> Iterator[python_docs.Passage]:
    return python_docs.passages() if path == _PYTHON_DOCS else python_code.passages(path)


def _embedded(source: SourceSpec, data: DataSpec) -> Iterator[Document]:
    """Documentation is labelled by its package, the others by what they are."""
    for passage in _passages(source.path):
        label = passage.label if source.path == _PYTHON_DOCS else source.path
        yield Document(passage.text, source.label, split_of(passage.key, data), passage.key, label)


def _open(source: TextSpec) -> Opened:
    """Find the source on disk, or on the Hub when no such path exists."""
    if files.is_local(source.path):
        found = files.find(source.path)
        return Opened(
            files.identity(source.path, found),
            tuple(split for split in SPLITS if found[split]),
            lambda split: files.texts(found[split], source.text_column),
        )
    from harness.data import hub  # `datasets` takes seconds to import

    return Opened(*hub.open_dataset(source))


def _generic(source: SourceSpec, data: DataSpec, tally: dict[str, int]) -> Iterator[Document]:
    """Two passes over the texts: one to group near-duplicates across all splits, one to yield."""
    opened = _open(source)
    keys: list[str] = []
    given: list[str] = []
    signatures: list[U64] = []
    for split, text in _nonempty(opened, tally):
        keys.append(f"{text_word(text):016x}")
        # Without a train split there is nothing to hold out from: everything is one pool.
        given.append(split if "train" in opened.splits else "train")
        signatures.append(neardup.signature(text))
    if not keys:
        return
    assigned = assign(keys, given, neardup.groups(np.stack(signatures)).tolist(), data)
    for (_, text), key, split in zip(_nonempty(opened, {}), keys, assigned, strict=True):
        if split is None:
            tally["near_duplicates"] = tally.get("near_duplicates", 0) + 1
        else:
            yield Document(text, source.label, split, key)


def _nonempty(opened: Opened, tally: dict[str, int]) -> Iterator[tuple[str, str]]:
    for split in opened.splits:
        for text in opened.texts(split):
            if text.strip():
                yield split, text
            else:
                tally["empty"] = tally.get("empty", 0) + 1


def assign(keys: list[str], given: list[str], leaders: list[int], data: DataSpec) -> list[str | None]:
    """Each document's split; None for one dropped because a held-out split has its near-duplicate.

    A group with members the source itself holds out stays there (test before validation) and leaves
    the other splits. A group of training documents goes, whole, where its smallest key's hash says,
    unless the source already has that held-out split.
    """
    groups: dict[int, list[int]] = {}
    for index, leader in enumerate(leaders):
        groups.setdefault(leader, []).append(index)
    own = set(given)
    assigned: list[str | None] = [None] * len(keys)
    for members in groups.values():
        held = [split for split in ("test", "validation") if any(given[m] == split for m in members)]
        if held:
            for m in members:
                assigned[m] = held[0] if given[m] == held[0] else None
            continue
        carved = split_of(min(keys[m] for m in members), data)
        for m in members:
            assigned[m] = "train" if carved in own else carved
    return assigned
