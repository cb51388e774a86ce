"""Packed corpora: built once per machine, identical everywhere, cached under what they depend on.

Every source of a study becomes a folder of three token files, the held-out documents as text, and a
manifest. The folder's name is a hash of everything its contents depend on; it appears by one rename,
so no reader ever sees half of it, and a file lock makes ranks and processes build it once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.data import shards
from harness.data.cache import cached_folder, folder_of
from harness.data.hashing import permutation, text_word
from harness.data.sources import SPLITS, WHOLE_TRAIN, Document, identity, read_documents
from harness.data.tokenizer import SpecialIds, encode, load_tokenizer, special_ids, vocabulary_size
from harness.errors import DataError
from harness.study import DataSpec, SourceSpec

VERSION = 1
TELL_EVERY_S = 5.0
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """One source of a corpus: its manifest and its verified shards, opened."""

    label: str
    weight: float
    folder: Path
    manifest: dict[str, Any]
    blocks: dict[str, np.ndarray]


class Corpus:
    """The study's text as blocks of T tokens, by split and source. Reading it is free of side effects."""

    def __init__(
        self, parts: list[Part], *, data: DataSpec, special: SpecialIds, vocab_size: int, tokenizer_fingerprint: str
    ) -> None:
        self.data = data
        self.block_length = data.block_length
        self.special = special
        self.vocab_size = vocab_size
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self._parts = {part.label: part for part in parts}

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self._parts)

    @property
    def folders(self) -> dict[str, Path]:
        """{source: its folder in the cache}."""
        return {label: part.folder for label, part in self._parts.items()}

    @property
    def weights(self) -> dict[str, float]:
        """{source: its share of the training samples}; sums to 1."""
        whole = sum(p.weight for p in self._parts.values())
        return {label: part.weight / whole for label, part in self._parts.items()}

    def blocks(self, split: str, source: str | None = None) -> np.ndarray:
        """[n, T] unsigned ids; a memory map for one source, a concatenation when several are asked for at once.

        `split` is one of SPLITS, or WHOLE_TRAIN: the train split as it is without `limit_tokens`.
        """
        if source is not None:
            return self._parts[source].blocks[split]
        pieces = [part.blocks[split] for part in self._parts.values()]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def tokens(self, split: str) -> int:
        """Unique tokens of a split, [CLS] and [SEP] included; after `limit_tokens` for train."""
        return sum(part.blocks[split].size for part in self._parts.values())

    def documents(self, split: str) -> Iterator[Document]:
        """The raw documents of a held-out split, in order.

        Raises:
            DataError: training documents are not kept as text; the file is missing or damaged.
        """
        if split == "train":
            raise DataError(
                "documents of train", rule="only held-out documents are kept as text", remedy="ask for another split"
            )
        for part in self._parts.values():
            path = part.folder / f"{split}.jsonl"
            try:
                with path.open(encoding="utf-8") as lines:
                    for line in lines:
                        row = json.loads(line)
                        yield Document(row["text"], part.label, split, row["key"], row["label"])
            except (OSError, ValueError, KeyError) as error:
                raise DataError(
                    f"{path}", rule=f"damaged: {error}", remedy=f"delete {part.folder} and start again"
                ) from error

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (16 hex digits) of the tokens themselves, the tokenizer, the weights and the limit."""
        content = {
            "tokenizer": self.tokenizer_fingerprint,
            "block_length": self.block_length,
            "limit_tokens": self.data.limit_tokens,
            "sources": [
                [p.label, self.weights[p.label], *(p.manifest["shards"][s]["sha256"] for s in SPLITS)]
                for p in self._parts.values()
            ],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of training text per token, weighted as the sources are; turns nats per token into bits per byte."""
        return sum(self.weights[p.label] * p.manifest["bytes_per_token"] for p in self._parts.values())

    def describe(self) -> dict[str, Any]:
        """Everything the run record should say about the data."""
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer_fingerprint,
            "vocabulary": self.vocab_size,
            "block_length": self.block_length,
            "bytes_per_token": round(self.bytes_per_token, 4),
            "tokens": {split: self.tokens(split) for split in SPLITS},
            "limit_tokens": self.data.limit_tokens,
            "sources": {
                p.label: {
                    "weight": self.weights[p.label],
                    "blocks": {split: len(p.blocks[split]) for split in SPLITS},
                    "documents": p.manifest["documents"],
                    "tally": p.manifest["tally"],
                    "identity": short(p.manifest["identity"]),
                }
                for p in self._parts.values()
            },
        }


def prepare(data: DataSpec, *, vocab_limit: int | None = None, tell: Tell | None = None) -> Corpus:
    """Open the corpus of a study, building what the cache does not have.

    Args:
        vocab_limit: rows of the model's embedding; a larger tokenizer is refused.
        tell: hears a line when a source has to be built, and every few seconds while it is.

    Raises:
        DataError: anything about source, tokenizer or cache that cannot be used, or a source with less train text than
            its share of `data.limit_tokens` (exit code 3).
    """
    tokenizer, fingerprint = load_tokenizer(data.tokenizer)
    special, size = special_ids(tokenizer), vocabulary_size(tokenizer)
    if vocab_limit is not None and size > vocab_limit:
        raise DataError(
            f"tokenizer {data.tokenizer!r} has ids up to {size - 1}",
            rule=f"the model's vocabulary has {vocab_limit} entries",
            remedy="use the model's own tokenizer in data.tokenizer",
        )
    labels = [source.label for source in data.sources]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise DataError(f"data source {twice[0]!r}", rule="two sources share this label", remedy="give each a `name`")
    whole = sum(source.weight for source in data.sources)
    parts = []
    for source in data.sources:
        known = identity(source)
        key = depends_on(source, known, data, fingerprint)
        folder = cached_folder("corpora", key, partial(_build, source=source, known=known, data=data, tell=tell))
        parts.append(_open_part(folder, source, data, size, share=source.weight / whole))
    return Corpus(parts, data=data, special=special, vocab_size=size, tokenizer_fingerprint=fingerprint)


def is_built(data: DataSpec) -> bool:
    """True when `prepare` would find every source in the cache and read nothing.

    Raises:
        DataError: a source or the tokenizer cannot be found.
    """
    _, fingerprint = load_tokenizer(data.tokenizer)
    wanted = (depends_on(source, identity(source), data, fingerprint) for source in data.sources)
    return all(folder_of("corpora", key).exists() for key in wanted)


def depends_on(source: SourceSpec, known: dict[str, Any], data: DataSpec, tokenizer: str) -> dict[str, Any]:
    """All that a source's folder is a function of; `known` is the source's identity."""
    return {
        "source": source.path,
        "identity": known,
        "tokenizer": tokenizer,
        "block_length": data.block_length,
        "fractions": [data.validation_fraction, data.test_fraction],
        "packing": VERSION,
    }


def _build(into: Path, *, source: SourceSpec, known: dict[str, Any], data: DataSpec, tell: Tell | None) -> None:
    """Read, tokenise and pack one source into the empty folder `into`."""
    tokenizer, fingerprint = load_tokenizer(data.tokenizer)
    special, size = special_ids(tokenizer), vocabulary_size(tokenizer)
    tally: dict[str, int] = {}
    counts = dict.fromkeys(SPLITS, 0)
    text_bytes = dict.fromkeys(SPLITS, 0)
    say = _seldom(tell or (lambda _line: None))
    say(f"reading {source.label}")

    # One pass over the documents: texts are sorted into one file per split first, then each is packed.
    files = {split: (into / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
    try:
        for document in read_documents(source, data, tally=tally):
            counts[document.split] += 1
            text_bytes[document.split] += len(document.text.encode("utf-8", "replace"))
            row = {"text": document.text, "key": document.key, "label": document.label}
            files[document.split].write(json.dumps(row) + "\n")
    finally:
        for file in files.values():
            file.close()

    written = {}
    for split in SPLITS:

        def ids(split: str = split) -> Iterator[list[int]]:
            with (into / f"{split}.jsonl").open(encoding="utf-8") as lines:
                done = 0
                while batch := [json.loads(line)["text"] for line in islice(lines, 1024)]:
                    yield from (row for row in encode(tokenizer, batch) if row)
                    done += len(batch)
                    say(f"tokenising {source.label}, {split}: {done:,} of {counts[split]:,} documents")

        written[split] = shards.write(
            into / f"{split}.bin",
            ids(),
            cls=special.cls,
            sep=special.sep,
            block_length=data.block_length,
            vocab_size=size,
        )
        if written[split].blocks == 0:
            raise DataError(
                f"source {source.path!r}",
                rule=f"its {split} split has fewer tokens than one block of {data.block_length}",
                remedy="give more text, raise data.validation_fraction or data.test_fraction, or shorten data.block_length",
            )
    (into / "train.jsonl").unlink()
    manifest = {
        "source": source.path,
        "identity": known,
        "tokenizer": fingerprint,
        "documents": counts,
        "text_bytes": text_bytes,
        "bytes_per_token": text_bytes["train"] / (written["train"].blocks * (data.block_length - 2)),
        "tally": tally,
        "shards": {split: shard.to_json() for split, shard in written.items()},
    }
    (into / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _seldom(tell: Tell) -> Tell:
    """Pass on the first line and then at most one every TELL_EVERY_S seconds."""
    last = [-TELL_EVERY_S]

    def say(line: str) -> None:
        now = time.monotonic()
        if now - last[0] >= TELL_EVERY_S:
            last[0] = now
            tell(line)

    return say


def _open_part(folder: Path, source: SourceSpec, data: DataSpec, vocab_size: int, *, share: float) -> Part:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        described = {
            split: shards.Shard(**{**row, "chunks": tuple(row["chunks"])}) for split, row in manifest["shards"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / 'manifest.json'}", rule=f"damaged: {error}", remedy=f"delete {folder} and start again"
        ) from error
    blocks: dict[str, np.ndarray] = {s: shards.load(folder, described[s], vocab_size=vocab_size) for s in SPLITS}
    blocks[WHOLE_TRAIN] = blocks["train"]
    if data.limit_tokens is not None:
        # A prefix of one fixed permutation, so that a larger limit contains the smaller, block for block.
        limit, there = int(data.limit_tokens * share), blocks["train"].size
        if limit // data.block_length > len(blocks["train"]):  # less than a block more asks for the same blocks
            of = "it" if share == 1 else f"{limit:,} of it"
            raise DataError(
                f"data.limit_tokens {data.limit_tokens:,}",
                rule=f"{source.label} is to fill {of}, and its train text has {there:,} tokens",
                remedy="lower the limit, or give more text",
            )
        wanted = max(1, limit // data.block_length)
        order = permutation(len(blocks["train"]), key=(text_word("limit_tokens"),))
        blocks["train"] = blocks["train"][np.sort(order[:wanted])]
    return Part(source.label, source.weight, folder, manifest, blocks)


def short(identity: dict[str, Any]) -> dict[str, Any]:
    """File lists by their hash: a record should not carry ten thousand names."""
    files = identity.get("files")
    if files is None:
        return identity
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return {**identity, "files": {"count": len(files), "sha256": digest}}
