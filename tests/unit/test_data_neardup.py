"""Laws of near-duplicate groups: copies meet, strangers do not, spelling of case and spaces is nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import neardup

from .data_worlds import document, sentence

TEXT = st.text(alphabet="ab cAB.,\n-é中1", max_size=80)


def edited(text: str, every: int) -> str:
    words = text.split()
    words[::every] = [f"changed{i}" for i in range(len(words[::every]))]
    return " ".join(words)


def groups_of(*texts: str) -> list[int]:
    return neardup.groups(neardup.signatures(texts)).tolist()


def test_copies_with_few_edits_share_a_group_and_strangers_do_not() -> None:
    original, stranger = document("a", sentences=12), document("b", sentences=12)
    assert groups_of(original, stranger, edited(original, 60), original.upper()) == [0, 1, 0, 0]


def test_heavily_edited_text_is_another_document() -> None:
    original = document("a", sentences=12)
    assert groups_of(original, edited(original, 4)) == [0, 1]


def test_signature_agreement_estimates_jaccard() -> None:
    """48 minima: the standard error is at most 0.072, so four of them bound the difference."""
    text = document("estimate", sentences=20)
    other = edited(text, 25)

    def shingles(t: str) -> set[tuple[str, ...]]:
        words = "".join(c if c.isalnum() else " " for c in t.lower()).split()
        return {tuple(words[i : i + neardup.SHINGLE]) for i in range(len(words) - neardup.SHINGLE + 1)}

    a, b = shingles(text), shingles(other)
    estimate = (neardup.signature(text) == neardup.signature(other)).mean()
    assert 0.4 < len(a & b) / len(a | b) < 0.9
    assert abs(estimate - len(a & b) / len(a | b)) < 4 * 0.072


@settings(deadline=None)
@given(text=TEXT)
def test_case_punctuation_and_spacing_do_not_count(text: str) -> None:
    spaced = text.replace(" ", "  ").replace(",", " ,").replace("\n", " \n ")
    assert np.array_equal(neardup.word_hashes(text), neardup.word_hashes(spaced))
    # Only ASCII letters fold: É and é are different words to the shingles, which is harmless.
    ascii_upper = "".join(c.upper() if c.isascii() else c for c in text)
    assert np.array_equal(neardup.word_hashes(text), neardup.word_hashes(ascii_upper))


@settings(deadline=None)
@given(words=st.lists(st.sampled_from(["alpha", "beta", "a", "b", "ab", "ba"]), max_size=12))
def test_words_hash_alike_exactly_when_they_are_alike(words: list[str]) -> None:
    hashes = neardup.word_hashes(" ".join(words)).tolist()
    assert [hashes.index(h) for h in hashes] == [words.index(w) for w in words]


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(6)))
def test_groups_are_a_partition_whatever_the_order(order: list[int]) -> None:
    a, b = document("p", sentences=10), document("q", sentences=10)
    texts = [a, b, edited(a, 70), edited(b, 70), sentence("lone"), ""]
    found = groups_of(*(texts[i] for i in order))
    assert all(found[leader] == leader <= index for index, leader in enumerate(found))
    together = {frozenset(order[i] for i in range(6) if found[i] == leader) for leader in set(found)}
    assert together == {frozenset(s) for s in ({0, 2}, {1, 3}, {4}, {5})}
