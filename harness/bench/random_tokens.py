"""A study's steps on random tokens, for a machine without its text or its teacher: times, and nothing else.

Tokens follow Zipf's law over the vocabulary, so that a loop which learns shows it; blocks have the study's length, and
students their random weights as in a run. A teacher that is not on this machine gets random weights of its published size, written once into the cache.
How long a step takes depends on neither; what anything learns would, so nothing but `bench` uses this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.cache import cached_folder
from harness.data.corpus import Corpus, Part
from harness.data.hashing import below, combine, text_word
from harness.data.sources import WHOLE_TRAIN, Document
from harness.data.tokenizer import NO_MASK, SpecialIds
from harness.errors import TeacherError
from harness.models.teacher import SHIPPED, inspect
from harness.plan.known_models import config_of_known
from harness.plan.outline import Outline, cached_folder_of, vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.ds_config import DsConfig
    from harness.setting import ArmSetting
    from harness.study import ArmSpec, StudySpec

# More than the steps of a bench read before they come round again with other masks.
BLOCKS = {"train": 8192, "validation": 512, "test": 512}


class RandomCorpus(Corpus):
    """Blocks of random ordinary tokens, the n-th of the vocabulary with weight 1/n, between the ids that begin and end a text; no documents."""

    fingerprint = "random tokens"  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def __init__(self, study: StudySpec, *, vocab: int, special: SpecialIds) -> None:
        ordinary = np.setdiff1d(np.arange(vocab), np.asarray(special.all))
        parts = [
            Part(source.label, source.weight, Path(), {}, _blocks(source.label, study.data.block_length, ordinary, special))
            for source in study.data.sources
        ]  # fmt: skip
        super().__init__(parts, data=study.data, special=special, vocab_size=vocab, tokenizer_fingerprint="")

    def documents(self, split: str) -> Iterator[Document]:
        return iter(())


def _blocks(label: str, length: int, ordinary: np.ndarray, special: SpecialIds) -> dict[str, np.ndarray]:
    found, mass = {}, np.cumsum(1 / np.arange(1, len(ordinary) + 1))
    for split, count in BLOCKS.items():
        words_BT = combine(text_word(f"random {label} {split}"), np.arange(count * length).reshape(count, length))
        drawn_BT = below(words_BT, 1 << 32) / (1 << 32) * mass[-1]
        ids_BT = ordinary[np.searchsorted(mass, drawn_BT, side="right")].astype(np.uint32)
        ids_BT[:, 0], ids_BT[:, -1] = special.cls, special.sep
        found[split] = ids_BT
    return {**found, WHOLE_TRAIN: found["train"]}


@dataclass
class RandomSetting(Outline):
    """A setting for steps that are timed and never kept; `absent` are the teachers whose weights are random."""

    absent: set[str] = field(default_factory=set)

    def arm(self, arm: ArmSpec) -> ArmSetting:
        setting = super().arm(arm)
        if setting.teacher is not None and not _is_here(setting.teacher.path):
            self.absent.add(setting.teacher.path)
            setting.teacher = inspect(str(untrained(setting.teacher.path)))
        return setting

    @property
    def told(self) -> str:
        """What the figures are of: one line to stand beside them."""
        weights = f", untrained weights for {', '.join(sorted(self.absent))}" if self.absent else ""
        return f"random tokens{weights}: times only"


def _is_here(path: str) -> bool:
    return path in SHIPPED or Path(path).expanduser().is_dir()


def prepare(study: StudySpec, ds_config: DsConfig, *, world: int) -> RandomSetting:
    """The study's arms, ready to be timed; reads no text and asks no network for a model of known size.

    Raises:
        ConfigError, DataError, TeacherError: as a run would for its numbers; a tokenizer or teacher of unknown size.
    """
    entries, ids, tokenizer, fingerprint, _ = vocabulary(study.data.tokenizer)
    named = {ids[name] for name in ("cls", "sep", "pad", "mask")} - {NO_MASK}
    every = {*named, *(int(i) for i in tokenizer.all_special_ids)} if tokenizer is not None else named
    special = SpecialIds(ids["cls"], ids["sep"], ids["mask"], ids["pad"], all=tuple(sorted(every)))
    setting = RandomSetting(
        study=study, ds_config=ds_config, tokenizer=tokenizer, tokenizer_fingerprint=fingerprint, special=ids, world=world,
        corpus=RandomCorpus(study, vocab=entries, special=special), entries=entries,
    )  # fmt: skip
    _ = setting.arms
    return setting


def untrained(path: str) -> Path:
    """A folder with random weights of this model's size, built once on this machine.

    Raises:
        TeacherError: its size is known neither from the local Hub cache nor from the table of published configs.
    """
    folder = cached_folder_of(path, "config.json")
    config = config_of_known(path)
    if folder is not None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config is None:
        raise TeacherError(
            f"teacher {path}", rule="it is not on this machine, and its size is not in the table of known models",
            remedy="give a folder, or one of the models that `plan` knows",
        )  # fmt: skip
    return cached_folder("untrained", {"config": config}, partial(_write, config=config))


def _write(into: Path, *, config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig

    from harness.models.configs import auto_model

    complete = AutoConfig.for_model(**config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto_model(str(complete.model_type)).from_config(complete).save_pretrained(into)
