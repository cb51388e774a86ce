"""Small corpora for the data tests: prose made by hash from English words, written where a test says."""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness.data.hashing import text_word
from harness.study import DataSpec, SourceSpec

WORDS = (  # noqa: SIM905 - a table of words reads better as text
    "the a of to and in is that for it with as on by at from this which or an are be has was not can "
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
