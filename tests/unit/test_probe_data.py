"""Laws of the built-in probes: balanced, disjoint, the same every time, and true to what they ask."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.data import probe_tasks
from harness.data.corpus import Corpus
from harness.data.probe_tasks import TASKS, Example, Pool, Task, largest_labels
from harness.data.probes import PROBES, Examples, ProbeData, bag_of_words_accuracy, build_probe
from harness.data.sentences import by_frequency, sentences
from harness.data.tokenizer import load_tokenizer
from harness.errors import ConfigError, DataError

from .data_worlds import corpus_with_documents, document

LABELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_with_documents(tmp_path_factory.mktemp("labelled"), per_split=360, labels=LABELS)


@pytest.fixture(scope="module")
def pool(corpus: Corpus) -> Pool:
    documents = list(corpus.documents("validation"))
    return Pool("all", documents, by_frequency(d.text for d in documents), largest_labels(documents))


@pytest.fixture(scope="module")
def written(pool: Pool) -> dict[str, set[str]]:
    """{sentence: keys of the documents that have it}."""
    found: dict[str, set[str]] = {}
    for d in pool.documents:
        for paragraph in sentences(d.text):
            for s in paragraph:
                found.setdefault(s, set()).add(d.key)
    return found


def texts(part: Examples) -> list[bytes]:
    return [row[:length].tobytes() for row, length in zip(part.ids, part.lengths, strict=True)]


@pytest.mark.parametrize("task", PROBES)
def test_every_probe_is_balanced_disjoint_and_the_same_every_time(corpus: Corpus, task: str) -> None:
    tokenizer, _ = load_tokenizer()

    data, again = (
        build_probe(task, corpus, tokenizer, train_examples=96, test_examples=60, max_length=64) for _ in range(2)
    )
    classes = len(data.classes)
    assert classes == (3 if task == "package" else 2)
    assert data.description == PROBES[task]
    assert data.majority_accuracy == pytest.approx(1 / classes)
    seen: set[bytes] = set()
    for part, same, wanted in zip(
        (data.train, data.validation, data.test), (again.train, again.validation, again.test), (96, 24, 60), strict=True
    ):
        assert len(part) == wanted
        assert np.bincount(part.labels).tolist() == [wanted // classes] * classes
        assert all(
            np.array_equal(a, b)
            for a, b in ((part.ids, same.ids), (part.lengths, same.lengths), (part.labels, same.labels))
        )
        assert part.ids.shape[1] == part.lengths.max() <= 64
        for row, length in zip(part.ids, part.lengths, strict=True):
            assert row[0] == 2
            assert row[length - 1] == 3
            assert (row[length:] == 0).all()
            assert (row[1 : length - 1] != 0).all()
            assert int((row == 3).sum()) == (2 if task in ("order", "next") else 1)
        assert not seen & set(texts(part))
        seen |= set(texts(part))


def test_parts_are_made_from_different_documents(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: dict[str, set[str]] = {}

    def spy(pool: Pool) -> Iterator[Example]:
        pools[pool.name] = {d.key for d in pool.documents}
        return (Example(d.text.splitlines()[0][:60], None, i % 2, i) for i, d in enumerate(pool.documents))

    monkeypatch.setitem(TASKS, "spy", Task("?", spy, ("even", "odd")))
    build_probe("spy", corpus, load_tokenizer()[0], train_examples=20, test_examples=20, max_length=64)
    assert not pools["training"] & pools["selection"]
    assert pools["training"] | pools["selection"] == {f"validation{i}" for i in range(360)}
    assert pools["test"] == {f"test{i}" for i in range(360)}
    assert 0.15 < len(pools["selection"]) / 360 < 0.35


def test_order_swaps_neighbours(pool: Pool, written: dict[str, set[str]]) -> None:
    following = {a: b for d in pool.documents for p in sentences(d.text) for a, b in itertools.pairwise(p)}
    found = list(probe_tasks.order(pool))
    assert {e.label for e in found} == {0, 1}
    for e in found:
        assert following[e.first if e.label == 0 else e.second or ""] == (e.second if e.label == 0 else e.first)


def test_next_takes_strangers_from_other_documents_of_the_same_label(pool: Pool, written: dict[str, set[str]]) -> None:
    label = {d.key: d.label for d in pool.documents}
    found = list(probe_tasks.following(pool))
    used: Counter[str] = Counter()
    for e in found:
        assert e.second is not None
        first, second = written[e.first], written[e.second]
        used.update((e.first, e.second))
        assert bool(first & second) == (e.label == 0)
        assert {label[k] for k in first} == {label[k] for k in second}
    assert max(used.values()) == 1
    assert {e.label for e in found} == {0, 1}


def test_package_hides_the_classes_names(tmp_path: Path) -> None:
    corpus = corpus_with_documents(tmp_path, per_split=30, labels=("river", "city"))
    documents = list(corpus.documents("validation"))
    found = list(probe_tasks.package(Pool("all", documents, [], ("city", "river"))))
    assert found
    assert any("river" in d.text for d in documents)
    assert not any("river" in e.first.lower() or "city" in e.first.lower() for e in found)


def test_summary_knows_the_opening(pool: Pool) -> None:
    openings = {sentences(d.text)[0][0] for d in pool.documents}
    found = list(probe_tasks.summary(pool))
    assert Counter(e.label for e in found) == {0: len(pool.documents), 1: len(pool.documents)}
    assert all((e.first in openings) == (e.label == 0) for e in found)


def test_corrupted_replaces_some_words_by_words_as_frequent(pool: Pool, written: dict[str, set[str]]) -> None:
    rank = {w: r for r, w in enumerate(pool.vocabulary)}
    altered = [e for e in probe_tasks.corrupted(pool) if e.label == 1]
    by_length: dict[int, list[list[str]]] = {}
    for s in written:
        by_length.setdefault(len(s.split()), []).append(s.split())
    for e in altered[:40]:
        words = e.first.split()
        original = min(by_length[len(words)], key=lambda other: sum(a != b for a, b in zip(words, other, strict=True)))
        changed = [(a.strip(".").lower(), b.strip(".").lower()) for a, b in zip(words, original, strict=True) if a != b]
        assert 2 <= len(changed) <= max(2, len(words) // 5)
        for new, old in changed:
            assert int(rank[old] * 0.8) <= rank[new] <= rank[old] * 1.2 + 2
    assert all(e.first in written for e in probe_tasks.corrupted(pool) if e.label == 0)


def test_shuffled_keeps_the_words_and_moves_six(pool: Pool, written: dict[str, set[str]]) -> None:
    bags = {tuple(sorted(s.split())): s for s in written}
    for e in probe_tasks.shuffled(pool):
        original = bags[tuple(sorted(e.first.split()))]
        moved = [i for i, (a, b) in enumerate(zip(e.first.split(), original.split(), strict=True)) if a != b]
        assert bool(moved) == (e.label == 1)
        if moved:
            assert moved[-1] - moved[0] < 6


def test_agreement_leaves_a_bag_of_words_nothing(pool: Pool, written: dict[str, set[str]]) -> None:
    """Shown forms are as often right as wrong, so a form's presence at its site says nothing."""
    shown: dict[str, Counter[int]] = {}
    by_length: dict[int, list[list[str]]] = {}
    for s in written:
        by_length.setdefault(len(s.split()), []).append(s.split())
    found = list(probe_tasks.agreement(pool))
    assert len(found) > 100
    for e in found:
        if e.label == 0:
            assert e.first in written
            continue
        words = e.first.split()
        original = min(by_length[len(words)], key=lambda other: sum(a != b for a, b in zip(words, other, strict=True)))
        ((new, old),) = ((a, b) for a, b in zip(words, original, strict=True) if a != b)
        assert probe_tasks._OTHER[new.lower()] == old.lower()
        shown.setdefault(new.lower(), Counter())[1] += 1
        shown.setdefault(old.lower(), Counter())[0] += 1
    for one, other in probe_tasks._FORMS:
        if one in shown:
            assert shown[one] == shown[other]


def test_a_bag_of_words_finds_a_telling_word_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(1)

    def part(count: int, telling: bool) -> Examples:
        labels = np.arange(count) % 2
        ids = rng.integers(5, 60, size=(count, 12))
        if telling:
            ids[:, 3] = 100 + labels
        return Examples(ids.astype(np.int32), np.full(count, 12, np.int32), labels.astype(np.int64))

    for telling, low, high in ((True, 0.99, 1.0), (False, 0.35, 0.65)):
        data = ProbeData("made", "?", ("a", "b"), part(200, telling), part(60, telling), part(200, telling))
        assert low <= bag_of_words_accuracy(data) <= high


@pytest.mark.parametrize(
    ("task", "error", "says"),
    [
        ("sentiment", ConfigError, "unknown probe.*known are package"),
        ("package", DataError, "these documents have none.*choose among summary"),
        ("order", DataError, "wants 5000 training examples: the held-out documents give"),
    ],
)
def test_impossible_probes_are_refused(tmp_path: Path, task: str, error: type[Exception], says: str) -> None:
    corpus = corpus_with_documents(tmp_path, per_split=20)
    with pytest.raises(error, match=says):
        build_probe(task, corpus, load_tokenizer()[0], train_examples=5000, test_examples=10, max_length=64)


def test_sentences_end_where_a_reader_would_end_them() -> None:
    text = "The first one is here, e.g. This part belongs to it. The second (see above) has seven words. Neither x_1 nor y_2 nor z_3 = 7 is plain.\nShort."
    assert sentences(text) == [
        ["The first one is here, e.g. This part belongs to it.", "The second (see above) has seven words."],
    ]
    assert len(sentences(document("x", sentences=6))) == 2
