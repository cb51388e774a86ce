"""Small corpora for the data tests: prose made by hash from English words, written where a test says."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.data.corpus import Corpus, Part
from harness.data.hashing import combine, text_word
from harness.data.tokenizer import SpecialIds
from harness.study import DataSpec, SourceSpec

WORDS = (
    "the a of to and in is that for it with as on by at from this which or an are be has was not can these those have were "
    "value list array model return number function matrix layer weight input output shape error file path "
    "name column index order first last new old small large given when each every between after before over "
    "token sentence language student teacher budget loss train test step block length batch mask order river "
    "city history people country music water animal plant stone bridge winter summer king queen army war peace"
).split()


def sentence(*key: object, words: int = 12) -> str:
    chosen = [WORDS[text_word(f"{key}:{i}") % len(WORDS)] for i in range(words)]
    return " ".join(chosen).capitalize() + "."


def document(*key: object, sentences: int = 6) -> str:
    """Two paragraphs of sentences that share few shingles with any other key's."""
    made = [sentence(*key, i, words=8 + text_word(f"{key}{i}") % 9) for i in range(sentences)]
    half = max(1, sentences // 2)
    return "\n".join(filter(None, (" ".join(made[:half]), " ".join(made[half:]))))


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def spec(*paths: Path, weights: tuple[float, ...] = (), block_length: int = 32, **more: object) -> DataSpec:
    weights = weights or (1.0,) * len(paths)
    sources = [SourceSpec(path=str(p), name=p.stem, weight=w) for p, w in zip(paths, weights, strict=True)]
    return DataSpec.model_validate({"sources": sources, "block_length": block_length, **more})


def shared_data(*parts: str) -> Path | None:
    """A folder of real data if this machine has it: $ISOBUDGET_TEST_DATA, else ../shared/data beside the repository."""
    root = os.environ.get("ISOBUDGET_TEST_DATA")
    base = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    path = base.joinpath(*parts)
    return path if path.exists() else None


def corpus_with_documents(folder: Path, *, per_split: int, labels: tuple[str | None, ...] = (None,)) -> Corpus:
    """A corpus whose held-out documents can be read, labelled in turn; its blocks are made up."""
    for split in ("validation", "test"):
        rows = [
            {"text": document(split, i, sentences=12), "key": f"{split}{i}", "label": labels[i % len(labels)]}
            for i in range(per_split)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = corpus_of({"docs": 4})
    part = replace(made._parts["docs"], folder=folder)
    return Corpus([part], data=made.data, special=made.special, vocab_size=4096, tokenizer_fingerprint="made up")


def corpus_of(sizes: dict[str, int], *, weights: dict[str, float] | None = None, block_length: int = 16) -> Corpus:
    """A corpus in memory: every source's blocks are told apart by their tokens. 120 ids, 0–4 special."""
    parts = []
    for number, (label, size) in enumerate(sizes.items()):
        ids = 5 + combine(number, np.arange(size * 4 * block_length)).reshape(-1, block_length) % np.uint64(115)
        ids[:, 0], ids[:, -1] = 2, 3
        blocks = {"train": ids[:size], "validation": ids[size : 2 * size], "test": ids[2 * size : 3 * size]}
        blocks = {split: block.astype("<u2") for split, block in blocks.items()}
        manifest = {"shards": {s: {"sha256": hashlib.sha256(b.tobytes()).hexdigest()} for s, b in blocks.items()}}
        parts.append(Part(label, (weights or {}).get(label, 1.0), Path(), manifest, blocks))
    special = SpecialIds(cls=2, sep=3, mask=4, pad=0, all=(0, 1, 2, 3, 4))
    data = DataSpec(block_length=block_length)
    return Corpus(parts, data=data, special=special, vocab_size=120, tokenizer_fingerprint="made up")
