"""The domains a study is evaluated on: each source of its mixture by itself, and text that no student learns from.

A source of the mixture is a domain by its own test blocks. Any other domain is held out whole: its own test (or
validation) split where it has one, else all of its text, of which a sample of at most `MAX_CHARACTERS` is kept, the
documents with the smallest hashes. What stands in the training text already is no new text: such documents are left
out and counted, and a source of which more than `MOST_OVERLAP` does is refused.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.data import corpus as corpora
from harness.data import shards
from harness.data.cache import cached_folder, folder_of
from harness.data.corpus import Corpus, Tell
from harness.data.files import is_local
from harness.data.hashing import text_word
from harness.data.overlap import overlaps, running_text
from harness.data.sources import identity, unsplit
from harness.data.tokenizer import encode, load_tokenizer
from harness.errors import ConfigError, DataError
from harness.study import DataSpec, DomainSpec, EvaluationSpec

VERSION = 1
MAX_CHARACTERS = 8_000_000
# A document overlaps when so much of it stands in the training text; a source, when so many of its documents do.
SAME_TEXT = 0.5
MOST_OVERLAP = 0.1


@dataclass(frozen=True)
class Domain:
    """Held-out blocks [n, T] of one kind of text. `folder` is the cache's, None for a source of the mixture."""

    label: str
    trained_on: bool
    blocks: np.ndarray
    facts: dict[str, Any]
    folder: Path | None = None

    @property
    def fingerprint(self) -> str:
        """sha256 (16 hex digits) of the tokens."""
        return hashlib.sha256(np.ascontiguousarray(self.blocks).tobytes()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What the run record says of it."""
        return {"trained_on": self.trained_on, "blocks": len(self.blocks), **self.facts}


def prepare(evaluation: EvaluationSpec, corpus: Corpus, *, tell: Tell | None = None) -> dict[str, Domain]:
    """Every domain by its label: the mixture's sources in their order, then the others; empty where none are listed.

    Raises:
        ConfigError: a domain does not exist, or has no held-out block.
        DataError: its text cannot be read, or is training text.
    """
    if not evaluation.domains:
        return {}
    found = {s: Domain(s, True, corpus.blocks("test", s), {}) for s in corpus.sources}
    for spec in untrained(evaluation, corpus.data):
        known = identity(spec)
        key = _depends_on(spec, known, corpus.data, corpus.tokenizer_fingerprint)
        build = partial(_build, spec=spec, known=known, corpus=corpus, tell=tell)
        found[spec.label] = _open(cached_folder("domains", key, build), spec, corpus.vocab_size)
    return found


def is_built(evaluation: EvaluationSpec, data: DataSpec) -> bool:
    """True when `prepare` would find every domain in the cache.

    Raises:
        ConfigError, DataError: a domain, a source or the tokenizer cannot be found.
    """
    _, tokenizer = load_tokenizer(data.tokenizer)
    return all(
        folder_of("domains", _depends_on(spec, identity(spec), data, tokenizer)).exists()
        for spec in untrained(evaluation, data)
    )


def untrained(evaluation: EvaluationSpec, data: DataSpec) -> list[DomainSpec]:
    """The domains that no student learns from.

    Raises:
        ConfigError: one can only be a path, and is not there.
    """
    found = evaluation.domains_beside(data.sources)
    for spec in found:
        if is_local(spec.path) and not Path(spec.path).expanduser().exists():
            raise ConfigError(
                f"evaluation.domains.{spec.label}: {spec.path!r}", rule="no such file or folder",
                remedy="correct the path, or give an embedded corpus or a Hub dataset",
            )  # fmt: skip
    return found


def _depends_on(spec: DomainSpec, known: dict[str, Any], data: DataSpec, tokenizer: str) -> dict[str, Any]:
    """All that a domain's folder is a function of, the training text that it must not repeat included."""
    training = [corpora.depends_on(source, identity(source), data, tokenizer) for source in data.sources]
    weights = [source.weight for source in data.sources] if data.limit_tokens is not None else None
    return {
        "domain": spec.path, "identity": known, "tokenizer": tokenizer, "block_length": data.block_length,
        "version": VERSION, "training": training, "limit_tokens": data.limit_tokens, "weights": weights,
    }  # fmt: skip


def _build(into: Path, *, spec: DomainSpec, known: dict[str, Any], corpus: Corpus, tell: Tell | None) -> None:
    say = tell or (lambda _line: None)
    say(f"reading domain {spec.label}")
    tokenizer, _ = load_tokenizer(corpus.data.tokenizer)
    texts = _sample(spec)
    documents = [ids for ids in encode(tokenizer, texts) if ids]
    say(f"looking for {spec.label} in the training text")
    share = overlaps(documents, (piece for s in corpus.sources for piece in running_text(corpus.blocks("train", s))))
    repeated = int((share >= SAME_TEXT).sum())
    if repeated > MOST_OVERLAP * len(documents):
        raise DataError(
            f"evaluation.domains.{spec.label}: {repeated} of {len(documents)} documents stand in the training text",
            rule=f"text out of domain is not trained on; at most {MOST_OVERLAP:.0%} may be found there, and is left out",
            remedy="take another source, or leave this one out of data.sources",
        )  # fmt: skip
    kept = [ids for ids, known_already in zip(documents, share >= SAME_TEXT, strict=True) if not known_already]
    shard = shards.write(
        into / "test.bin", kept, cls=corpus.special.cls, sep=corpus.special.sep, block_length=corpus.block_length,
        vocab_size=corpus.vocab_size,
    )  # fmt: skip
    if shard.blocks == 0:
        raise ConfigError(
            f"evaluation.domains.{spec.label}",
            rule=f"its {len(kept)} documents hold less than one block of {corpus.block_length} tokens",
            remedy="give more text, or leave it out",
        )
    facts = {"documents": len(kept), "in_training_text": repeated, "identity": corpora.short(known)}
    manifest = {"source": spec.path, "facts": facts, "shard": shard.to_json()}
    (into / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _sample(spec: DomainSpec) -> list[str]:
    """The documents with the smallest hashes, as many as fit MAX_CHARACTERS; in the order of their hashes."""
    kept: list[tuple[int, str]] = []  # a heap whose head has the largest hash
    size = 0
    for word, text in _hashed(spec):
        heapq.heappush(kept, (-word, text))
        size += len(text)
        while len(kept) > 1 and size > MAX_CHARACTERS:
            size -= len(heapq.heappop(kept)[1])
    if not kept:
        raise ConfigError(
            f"evaluation.domains.{spec.label}: {spec.path!r}", rule="it has no text, so no held-out block",
            remedy=f"check that column {spec.text_column!r} holds the text, or leave it out",
        )  # fmt: skip
    return [text for _, text in sorted(kept, key=lambda row: (-row[0], row[1]))]


def _hashed(spec: DomainSpec) -> Iterator[tuple[int, str]]:
    seen: set[int] = set()  # a text that occurs twice would count twice
    for document in unsplit(spec):
        word = text_word(f"domain:{document.text}")
        if word not in seen:
            seen.add(word)
            yield word, document.text


def _open(folder: Path, spec: DomainSpec, vocab_size: int) -> Domain:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        row = manifest["shard"]
        shard = shards.Shard(**{**row, "chunks": tuple(row["chunks"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / 'manifest.json'}", rule=f"damaged: {error}", remedy=f"delete {folder} and start again"
        ) from error
    return Domain(spec.label, False, shards.load(folder, shard, vocab_size=vocab_size), manifest["facts"], folder)
