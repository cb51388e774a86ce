"""GLUE ready to train on: tokenised once, cut to length, a part of train held out to choose by.

What is held out, and what `train_examples` keeps, is decided by a hash of each example's text: the same for every
arm, seed, machine and order of rows, and two equal texts always end on the same side.
Shapes: E examples; tokens of all examples lie behind one another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.data import glue_files
from harness.data.cache import cached_folder, folder_of
from harness.data.glue_tasks import TASKS, Task
from harness.data.hashing import combine, text_word
from harness.data.tokenizer import encode, special_ids
from harness.errors import DataError
from harness.study import GlueSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
FOLDER = "glue"
HELD_OUT_SHARE = 10  # at most one example in so many is held out
FEWEST = 20
_LIMIT_STREAM = 0x611E
_CHUNK = 8192


@dataclass(frozen=True)
class Part:
    """Examples as views into one array of tokens; `seconds_E` is where an example's second text begins."""

    tokens: npt.NDArray[np.int32]
    starts_E: npt.NDArray[np.int64]
    lengths_E: npt.NDArray[np.int64]
    seconds_E: npt.NDArray[np.int64]
    labels_E: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels_E)

    def take(self, chosen: npt.NDArray[Any]) -> Part:
        return replace(
            self, starts_E=self.starts_E[chosen], lengths_E=self.lengths_E[chosen], seconds_E=self.seconds_E[chosen],
            labels_E=self.labels_E[chosen],
        )  # fmt: skip


@dataclass(frozen=True)
class TaskData:
    """One task. `selection` is what the grid point is chosen by; None when the judged split itself is."""

    task: Task
    train: Part
    selection: Part | None
    judged: dict[str, Part]
    fingerprint: str
    available: int

    def facts(self) -> dict[str, Any]:
        """For the record: how many examples each part has, and how many train has to give."""
        return {
            "train": len(self.train), "train_available": self.available,
            "held_out": 0 if self.selection is None else len(self.selection),
            **{split: len(part) for split, part in self.judged.items()},
        }  # fmt: skip

    def majority(self) -> dict[str, float]:
        """{judged split: share of its most frequent class}; empty for the regression."""
        if not self.task.classes:
            return {}
        return {
            split: float(np.unique(part.labels_E, return_counts=True)[1].max()) / len(part)
            for split, part in self.judged.items()
        }


def prepare(
    spec: GlueSpec, tokenizer: PreTrainedTokenizerBase, *, tokenizer_fingerprint: str, longest: int
) -> dict[str, TaskData]:
    """Every task of the spec, tokenised (or found in the cache), in the spec's order.

    `longest` is what the shortest-sighted model reads; examples are cut at the smaller of it and `spec.length`.

    Raises:
        DataError: the data cannot be had or a task's splits, columns or labels are not as they must be.
    """
    folder = glue_files.locate(spec.path, spec.tasks)
    length = min(spec.length, longest)
    # Every task is found before the first is tokenised: a missing one is said at once.
    found = {name: glue_files.files(folder, TASKS[name]) for name in spec.tasks}
    return {
        name: _task(TASKS[name], found[name], spec, tokenizer, tokenizer_fingerprint, length) for name in spec.tasks
    }


def is_tokenised(spec: GlueSpec, folder: Path, *, tokenizer_fingerprint: str, longest: int) -> bool:
    """Whether `prepare` would find every task of this folder in the cache.

    Raises:
        DataError: as `harness.data.glue_files.files`.
    """
    tasks = [TASKS[name] for name in spec.tasks]
    length = min(spec.length, longest)
    keys = (_depends_on(task, glue_files.files(folder, task), tokenizer_fingerprint, length) for task in tasks)
    return all(folder_of(FOLDER, key).exists() for key in keys)


def _depends_on(task: Task, found: dict[str, list[Path]], tokenizer: str, length: int) -> dict[str, Any]:
    """All that a task's tokens are a function of."""
    return {
        "version": VERSION, "task": task.name, "length": length, "tokenizer": tokenizer,
        "files": {split: glue_files.digest(paths) for split, paths in found.items()},
    }  # fmt: skip


def _task(
    task: Task, found: dict[str, list[Path]], spec: GlueSpec, tokenizer: PreTrainedTokenizerBase, tokenizer_fingerprint: str,
    length: int,
) -> TaskData:  # fmt: skip
    depends_on = _depends_on(task, found, tokenizer_fingerprint, length)

    def build(folder: Path) -> None:
        frame = Frame.of(tokenizer, length)
        for split, paths in found.items():
            _write(folder / f"{split}.npz", glue_files.read(paths, task, split), frame)

    folder = cached_folder(FOLDER, depends_on, build)
    train, words = _load(folder / "train.npz")
    available = len(train)
    if spec.train_examples is not None and spec.train_examples < available:
        kept = np.sort(np.argsort(combine(_LIMIT_STREAM, words), kind="stable")[: spec.train_examples])
        train, words = train.take(kept), words[kept]
    wanted = held_out(spec, task, len(train))
    selection = None
    if wanted:
        aside = words <= np.sort(words)[wanted - 1]
        if aside.all():
            raise DataError(
                f"GLUE task {task.name}", rule="its training examples are all the same text", remedy="fetch it again"
            )
        train, selection = train.take(~aside), train.take(aside)
    parts = {"fewer": spec.train_examples, "held_out": spec.held_out if selection is not None else None}
    judged = {split: _load(folder / f"{split}.npz")[0] for split in task.judged}
    name = hashlib.sha256(json.dumps({**depends_on, **parts}, sort_keys=True).encode()).hexdigest()[:16]
    return TaskData(task, train, selection, judged, name, available)


def held_out(spec: GlueSpec, task: Task, examples: int) -> int:
    """How many of a task's training examples are held out to choose by; equal texts may add a few.

    Raises:
        DataError: there are too few to learn from.
    """
    if examples < FEWEST:
        raise DataError(
            f"GLUE task {task.name} has {examples} training examples", rule=f"{FEWEST} are the fewest to learn from",
            remedy="give the whole task",
        )  # fmt: skip
    return max(1, min(spec.held_out, examples // HELD_OUT_SHARE)) if spec.select_on == "train" else 0


@dataclass(frozen=True)
class Frame:
    """How texts become one sequence: [CLS] a [SEP], or [CLS] a [SEP] b [SEP] with the tokenizer's own middle."""

    tokenizer: Any
    length: int
    cls: int
    sep: int
    middle: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, length: int) -> Frame:
        special = special_ids(tokenizer)
        pair: Any = tokenizer("a", "a")["input_ids"]
        # RoBERTa's tokenizers put two separators between the texts of a pair.
        doubled = any(x == y == special.sep for x, y in pairwise(pair))
        return cls(tokenizer, length, special.cls, special.sep, (special.sep,) * (2 if doubled else 1))

    def sequences(self, texts: tuple[list[str], ...]) -> list[tuple[list[int], int]]:
        """(ids, where the second text begins) of every example; the longer of two texts is cut first."""
        encoded = [encode(self.tokenizer, part) for part in texts]
        rows = []
        for example in zip(*encoded, strict=True):
            if len(example) == 1:
                first = example[0][: self.length - 2]
                ids = [self.cls, *first, self.sep]
                rows.append((ids, len(ids)))
                continue
            first, second = cut(*example, room=self.length - 2 - len(self.middle))
            head = [self.cls, *first, *self.middle]
            rows.append(([*head, *second, self.sep], len(head)))
        return rows


def cut(first: list[int], second: list[int], *, room: int) -> tuple[list[int], list[int]]:
    """Both texts within `room` tokens, taking from the end of whichever is longer."""
    excess = max(0, len(first) + len(second) - room)
    gap = len(first) - len(second)
    from_longer = min(excess, abs(gap))
    rest = excess - from_longer
    lost = [from_longer if gap > 0 else 0, from_longer if gap < 0 else 0]
    lost[0] += rest // 2
    lost[1] += rest - rest // 2
    return first[: len(first) - lost[0]], second[: len(second) - lost[1]]


def _write(path: Path, split: glue_files.Split, frame: Frame) -> None:
    tokens: list[npt.NDArray[np.int32]] = []
    lengths: list[int] = []
    seconds: list[int] = []
    for begin in range(0, len(split.labels), _CHUNK):
        for ids, second in frame.sequences(tuple(part[begin : begin + _CHUNK] for part in split.texts)):
            tokens.append(np.asarray(ids, dtype=np.int32))
            lengths.append(len(ids))
            seconds.append(second)
    words = np.array([text_word("\x1f".join(texts)) for texts in zip(*split.texts, strict=True)], dtype=np.uint64)
    np.savez(
        path, tokens=np.concatenate(tokens), lengths=np.array(lengths, dtype=np.int64),
        seconds=np.array(seconds, dtype=np.int64), labels=split.labels, words=words,
    )  # fmt: skip


def _load(path: Path) -> tuple[Part, npt.NDArray[np.uint64]]:
    with np.load(path) as arrays:
        lengths = arrays["lengths"]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        return Part(arrays["tokens"], starts, lengths, arrays["seconds"], arrays["labels"]), arrays["words"]
