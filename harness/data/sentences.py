"""Sentences of running prose, by rule: enough for probes, the same on every machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

MIN_WORDS = 6
MAX_WORDS = 40

_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z])")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|cf|vs|al|Dr|Mr|Mrs|St|No|Fig|Eq|eq|[A-Z])\.$")
_PLAIN = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*[.,;:!?)\"']*|\d+[.,;:]?")


def sentences(text: str) -> list[list[str]]:
    """Paragraphs (lines) of sentences, in order; whatever is not a plain sentence is left out."""
    paragraphs = []
    for line in text.splitlines():
        pieces: list[str] = []
        for piece in _END.split(line.strip()):
            if pieces and _ABBREVIATION.search(pieces[-1]):
                pieces[-1] += f" {piece}"
            else:
                pieces.append(piece)
        paragraphs.append([p for p in pieces if is_sentence(p)])
    return [p for p in paragraphs if p]


def is_sentence(text: str) -> bool:
    """Starts with a capital, ends with a stop, MIN_WORDS to MAX_WORDS words, four in five of them plain."""
    words = text.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or not text[0].isupper() or text[-1] not in ".!?":
        return False
    return 5 * sum(_PLAIN.fullmatch(w) is not None for w in words) >= 4 * len(words)


def by_frequency(texts: Iterable[str]) -> list[str]:
    """The lower-case words of the texts that occur twice or more, most frequent first, ties by spelling."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r"[a-z]+", text.lower()))
    return sorted((w for w, n in counts.items() if n > 1), key=lambda w: (-counts[w], w))
