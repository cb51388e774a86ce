"""Everything a study needs from elsewhere, fetched and built once, so that a run asks nobody.

On a cluster this is done on a login node; compute nodes then find tokenizer, teacher and data in the Hub's own
cache (HF_HOME) and the packed corpus in ours (ISOBUDGET_CACHE), both on a shared file system.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data import corpus as corpora
from harness.data import domains
from harness.data.cache import cache_root
from harness.data.tokenizer import load_tokenizer
from harness.ds_config import DsConfig
from harness.errors import DataError, TeacherError
from harness.models.teacher import resolve
from harness.setting import prepare
from harness.study import StudySpec

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Item:
    """One thing that a run will read: what it is, where it came from, where it lies, how large it is."""

    what: str
    source: str
    folder: str
    size_bytes: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return vars(self)


def teachers(study: StudySpec) -> list[str]:
    """Every teacher that some arm names, once, in the order of the arms; not what a sweep is still to train."""
    from harness.sweep.conduct import STAND_INS

    views = [study.for_arm(arm).teacher for arm in study.arms]
    paths = dict.fromkeys(view.path for view in views if view is not None)
    return [path for path in paths if f"{os.sep}{STAND_INS}" not in path]


def distinct(fetched: Iterable[list[Item]]) -> list[Item]:
    """What several studies need, each thing once."""
    found = {(item.what, item.folder): item for items in fetched for item in reversed(items)}
    return list(found.values())


def fetch(study: StudySpec, ds_config: DsConfig, *, tell: Callable[[str], None]) -> list[Item]:
    """Fetch and build what the study names, then check it as a run would.

    Raises:
        DataError, TeacherError: something can neither be found here nor fetched; what was fetched stays.
        ConfigError: as a run would refuse it.
    """
    items: list[Item] = []

    def keep(what: str, source: str, find: Callable[[], Path]) -> None:
        begun = time.monotonic()
        folder = find()
        items.append(Item(what, source, str(folder), size_of(folder), time.monotonic() - begun))

    keep("tokenizer", study.data.tokenizer, lambda: tokenizer_folder(study.data.tokenizer))
    for path in teachers(study):
        keep("teacher", path, lambda path=path: teacher_folder(path))
    if study.evaluation.glue is not None:
        from harness.data import glue_files

        glue = study.evaluation.glue
        keep("GLUE", glue.path, lambda: glue_files.locate(glue.path, glue.tasks))
    begun = time.monotonic()
    setting = prepare(study, ds_config, world=1, tell=tell)
    built = time.monotonic() - begun
    paths = {source.label: source.path for source in study.data.sources}
    items += [
        Item("corpus", paths[label], str(folder), size_of(folder), built / len(paths))
        for label, folder in setting.corpus.folders.items()
    ]
    beside = {domain.label: domain.path for domain in study.evaluation.domains}
    items += [
        Item("domain", beside[label], str(domain.folder), size_of(domain.folder), 0.0)
        for label, domain in setting.domains.items()
        if domain.folder is not None
    ]
    return items


def check(study: StudySpec, ds_config: DsConfig) -> None:
    """Raise where a run that may ask nobody would miss something; call it in a process whose environment is OFFLINE.

    Raises:
        DataError, TeacherError: something is not here, or the corpus would have to be built again.
        ConfigError: as a run would refuse it.
    """
    missing = [key for key, value in OFFLINE.items() if os.environ.get(key) != value]
    if missing:
        raise DataError("an offline check", rule=f"{missing[0]} is not 1", remedy="set it before the program starts")
    for path in teachers(study):
        teacher_folder(path)
    if not corpora.is_built(study.data):
        raise DataError(
            f"the corpus of study {study.name}", rule=f"it is not in {cache_root()}",
            remedy="run prefetch on this file system, with the same packages and ISOBUDGET_CACHE",
        )  # fmt: skip
    if not domains.is_built(study.evaluation, study.data):
        raise DataError(
            f"the domains of study {study.name}", rule=f"not all of them are in {cache_root()}",
            remedy="run prefetch on this file system, with the same packages and ISOBUDGET_CACHE",
        )  # fmt: skip
    prepare(study, ds_config, world=1)


def tokenizer_folder(name: str) -> Path:
    """Where a tokenizer lies, fetched if need be.

    Raises:
        DataError: it cannot be had, or lacks a special token.
    """
    load_tokenizer(name)
    from harness.data import tokenizer

    folder = tokenizer.BUILTIN if name == "builtin" else Path(name).expanduser()
    if folder.exists():
        return folder
    from huggingface_hub import try_to_load_from_cache

    for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return Path(found).parent
    raise DataError(f"tokenizer {name!r}", rule="it was loaded, but is not in the Hub's cache", remedy="set HF_HOME")


def teacher_folder(path: str) -> Path:
    """Where a teacher lies, fetched if need be, weights included.

    Raises:
        TeacherError: it cannot be had, or has no safetensors.
    """
    folder = resolve(path)
    if not any(folder.glob("*.safetensors")):
        raise TeacherError(
            f"teacher {path}", rule=f"no safetensors in {folder}", remedy="give a teacher whose weights are safetensors"
        )
    return folder


def size_of(folder: Path) -> int:
    """Bytes below a folder, links followed: the Hub's snapshots are links."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
