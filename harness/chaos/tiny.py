"""A study small enough to break many times: 2-layer students of width 32 beside a random 4-layer teacher.

A made corpus, made weights, the shipped tokenizer: nothing is fetched and one arm trains in about a second.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

WORDS = (
    "the model returns a tensor of shape batch and length when given tokens otherwise it raises an error because"
    " every layer needs its own weights and the optimizer keeps two moments for each parameter in the group"
).split()


def write_corpus(folder: Path, *, documents: int = 400, seed: int = 0) -> Path:
    """A folder of jsonl with train, validation and test splits of made sentences."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", documents), ("validation", documents // 4), ("test", documents // 4)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                sentences = [
                    " ".join(generator.choices(WORDS, k=generator.randint(5, 14))).capitalize()
                    + f" {split} {number} {i}."
                    for i in range(6)
                ]
                file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return folder


def write_teacher(
    folder: Path, *, layers: int = 4, hidden: int = 64, heads: int = 4, family: str = "bert", extra_vocab: int = 0
) -> Path:
    """A random teacher in Hugging Face layout with the shipped tokenizer; `training_flop` is made up.

    `extra_vocab` outputs have no word in the tokenizer.
    """
    from harness.data.tokenizer import load_tokenizer, special_ids
    from harness.models.student import build_student, export, student_config
    from harness.study import ModelSpec

    tokenizer, _ = load_tokenizer("builtin")
    special = special_ids(tokenizer)
    ids = {"pad": special.pad, "cls": special.cls, "sep": special.sep, "mask": special.mask}
    spec = ModelSpec.model_validate({"family": family, "layers": layers, "hidden": hidden, "heads": heads})
    config = student_config(spec, vocab=len(tokenizer) + extra_vocab, special=ids, block_length=32)
    model = build_student(config, seed=99)
    folder.mkdir(parents=True, exist_ok=True)
    export(config, model.state_dict(), folder, tokenizer=tokenizer, card={"training_flop": 1e9, "tokens": 1000})
    return folder


@dataclass
class TinyStudy:
    """Paths of the made parts, and the study file that uses them."""

    folder: Path
    corpus: Path
    teacher: Path
    file: Path

    @classmethod
    def make(cls, folder: Path) -> TinyStudy:
        corpus = write_corpus(folder / "corpus")
        teacher = write_teacher(folder / "teacher")
        tiny = cls(folder, corpus, teacher, folder / "tiny.yaml")
        tiny.file.write_text(yaml.safe_dump(tiny.tree(), sort_keys=False), encoding="utf-8")
        return tiny

    def tree(self, **changes: Any) -> dict[str, Any]:
        """The study as a mapping; `changes` replace top-level keys."""
        tree: dict[str, Any] = {
            "name": "tiny",
            "budget": "2 Gflop",
            "data": {"sources": [{"path": str(self.corpus)}], "block_length": 32},
            "student": {"family": "bert", "layers": 2, "hidden": 32, "heads": 4},
            "teacher": {
                "path": str(self.teacher),
                "trained_on": "unknown",
                "allow_worse": True,
            },  # its weights are random
            "batch": {"sequences": 8},
            "optimizer": {"lr": 1.0e-3},
            "arms": [
                {"name": "no_kd", "objective": "mlm"},
                {"name": "soft_targets", "objective": "soft_targets"},
                {"name": "minilmv2", "objective": {"name": "minilmv2", "relation_heads": 8}},
                {"name": "tinybert", "objective": "tinybert"},
            ],
            "seeds": [1],
            "evaluation": {"curve_points": 1, "mlm_blocks": 16, "readout": {"steps": 5, "positions": 64, "blocks": 32}},
            "checkpoints": 1,
        }
        return {**tree, **changes}

    def write(self, path: Path, **changes: Any) -> Path:
        path.write_text(yaml.safe_dump(self.tree(**changes), sort_keys=False), encoding="utf-8")
        return path
