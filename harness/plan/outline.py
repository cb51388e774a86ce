"""A study as a plan needs it: checked arms, without weights, and without text where none is at hand.

Everything that a run would refuse for its numbers is refused here too. What only data can tell (epochs, the
length of probes) is told where the corpus is in the cache or small, and named as unknown elsewhere: a plan
never downloads a model and never builds a corpus for minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.sources import WHOLE_TRAIN
from harness.ds_config import DsConfig
from harness.errors import DataError, TeacherError
from harness.models.teacher import SHIPPED
from harness.plan.glue import GlueOutlook, outlook
from harness.plan.known_models import config_of_known, vocabulary_of_known
from harness.setting import ArmSetting, Setting, prepare
from harness.study import EMBEDDED, StudySpec

if TYPE_CHECKING:
    from harness.models.teacher import TeacherInfo

# A corpus of at most this many bytes is built while the user waits: a second or two.
SMALL_BYTES = 1_000_000
# The splits evaluation reads blocks from.
EVALUATED = (WHOLE_TRAIN, "validation", "test")


@dataclass(frozen=True)
class NoCorpus:
    """Stands where a corpus would: no teacher was trained on it."""

    fingerprint: str = "not built"


@dataclass
class Outline(Setting):
    """A setting whose corpus, tokenizer or teacher weights may be absent."""

    entries: int = 0

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return self.entries

    def teacher(self, study: StudySpec) -> TeacherInfo | None:
        if study.teacher is None:
            return None
        path = study.teacher.path
        if self.tokenizer is not None and (path in SHIPPED or Path(path).expanduser().is_dir()):
            return super().teacher(study)
        return teacher_facts(path)


@dataclass
class Sketch:
    """What a plan knows of a study.

    train_blocks: blocks by source, None where nobody knows them here; evaluation_blocks: what evaluation may
    read, blocks of validation and test and, under WHOLE_TRAIN, of train without `limit_tokens`.
    setting: what a run would use if `complete`, but for GLUE, of which `glue` is all that is known; otherwise an `Outline`.
    """

    study: StudySpec
    ds_config: DsConfig
    world: int
    arms: dict[str, ArmSetting]
    setting: Setting
    complete: bool
    train_blocks: dict[str, int | None]
    evaluation_blocks: dict[str, int | None]
    notes: list[str] = field(default_factory=list)
    glue: GlueOutlook | None = None


def sketch(study: StudySpec, ds_config: DsConfig, *, world: int, tell: Callable[[str], None]) -> Sketch:
    """Read and check a study for a plan.

    Raises:
        ConfigError, DataError, TeacherError: as a run would, for what can be known here.
    """
    labels = [source.label for source in study.data.sources]
    notes: list[str] = []
    reasons = _missing(study)
    if not reasons:
        setting = prepare(study, ds_config, world=world, tell=tell, glue=False)
        blocks = {label: len(setting.corpus.blocks("train", label)) for label in labels}
        held = {split: len(setting.corpus.blocks(split)) for split in EVALUATED}
        return Sketch(
            study, ds_config, world, setting.arms, setting, True, dict(blocks), dict(held), notes, outlook(setting)
        )
    notes += reasons
    entries, special, tokenizer, fingerprint, said = vocabulary(study.data.tokenizer)
    notes += said
    outline = Outline(
        study=study, ds_config=ds_config, tokenizer=tokenizer, tokenizer_fingerprint=fingerprint, special=special,
        corpus=NoCorpus(), world=world, entries=entries,  # type: ignore[arg-type]
    )  # fmt: skip
    arms = outline.arms
    notes += _from_the_table(study)
    train, evaluated, said = _cached_sizes(study, fingerprint)
    if None in train.values():
        said.append("epochs are unknown: how much text there is can only be told where the corpus has been built")
    return Sketch(study, ds_config, world, arms, outline, False, train, evaluated, notes + said, outlook(outline))


def _cached_sizes(study: StudySpec, tokenizer: str) -> tuple[dict[str, int | None], dict[str, int | None], list[str]]:
    """(train blocks by source, held-out blocks, notes) from the newest cached build of each source, or its limit.

    Whether a source has changed since cannot be asked without it, so the note says where the number is from.
    """
    import json

    from harness.data.cache import cache_root

    data, train, notes = study.data, {}, []
    held: dict[str, int | None] = dict.fromkeys(EVALUATED, 0)
    share = {source.label: source.weight / sum(s.weight for s in data.sources) for source in data.sources}
    manifests = sorted(
        (cache_root() / "corpora").glob("*/manifest.json"), key=lambda p: p.stat().st_mtime, reverse=True
    )
    known = [json.loads(path.read_text(encoding="utf-8")) for path in manifests]
    for source in data.sources:
        limit = None if data.limit_tokens is None else int(data.limit_tokens * share[source.label]) // data.block_length
        found = next(
            (
                m["shards"] for m in known
                if (m["source"], m["tokenizer"]) == (source.path, tokenizer)
                and m["shards"]["train"]["block_length"] == data.block_length
            ),
            None,
        )  # fmt: skip
        if found is None:
            train[source.label] = limit
            held = dict.fromkeys(held)
            if limit is not None:
                notes.append(f"epochs assume that {source.label} fills its share of data.limit_tokens")
            continue
        there = found["train"]["blocks"]
        train[source.label] = there if limit is None else min(there, limit)
        if limit is not None and limit > there:
            notes.append(
                f"{source.label} had {there * data.block_length:,} tokens of train text when its corpus was last built here, "
                f"and is to fill {limit * data.block_length:,} of data.limit_tokens: a run would refuse that"
            )
        held = {
            s: None if have is None else have + found["train" if s == WHOLE_TRAIN else s]["blocks"]
            for s, have in held.items()
        }
        notes.append(f"epochs are those of {source.label} as it was when its corpus was last built here")
    return train, held, notes


def _missing(study: StudySpec) -> list[str]:
    """Why the complete setting cannot be made within seconds; empty where it can."""
    from harness.data.corpus import is_built
    from harness.data.domains import is_built as is_built_of

    reasons = [
        f"teacher {path} is not on this machine: its weights and tokenizer are unchecked"
        for path in dict.fromkeys(view.teacher.path for view in _views(study) if view.teacher is not None)
        if not _teacher_is_here(path)
    ]
    if not _is_here(study.data.tokenizer):
        reasons.append(
            f"tokenizer {study.data.tokenizer} is not on this machine: whether it is the teacher's is unchecked"
        )
    for what, paths in (("data source", _sources(study)), ("domain", _domains(study))):
        reasons += [
            f"{what} {path} is not on this machine"
            for path in paths
            if path not in EMBEDDED and not Path(path).expanduser().exists()
        ]
    if not reasons and not is_built(study.data) and not _is_small(study):
        reasons.append("the corpus is not in the cache yet: a run, or prefetch, builds it once")
    elif not reasons and not is_built_of(study.evaluation, study.data) and not _is_small(study):
        reasons.append("a domain is not in the cache yet: a run, or prefetch, builds it once")
    return reasons


def _sources(study: StudySpec) -> list[str]:
    return [source.path for source in study.data.sources]


def _domains(study: StudySpec) -> list[str]:
    """The text that is evaluated on and not trained on; ConfigError where it can only be a path and is not there."""
    from harness.data.domains import untrained

    return [domain.path for domain in untrained(study.evaluation, study.data)]


def _is_small(study: StudySpec) -> bool:
    paths = [*_sources(study), *_domains(study)]
    return not set(EMBEDDED) & set(paths) and sum(_size(Path(path).expanduser()) for path in paths) <= SMALL_BYTES


def _teacher_is_here(path: str) -> bool:
    return path in SHIPPED or Path(path).expanduser().is_dir() or cached_folder_of(path, "config.json") is not None


def _views(study: StudySpec) -> list[StudySpec]:
    return [study.for_arm(arm) for arm in study.arms]


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def _is_here(tokenizer: str) -> bool:
    return tokenizer == "builtin" or Path(tokenizer).expanduser().exists() or bool(_cached_tokenizer(tokenizer))


def _cached_tokenizer(name: str) -> Path | None:
    return cached_folder_of(name, "tokenizer.json") or cached_folder_of(name, "vocab.txt")


def cached_folder_of(name: str, file: str) -> Path | None:
    """The snapshot of a Hub model that holds this file in the local Hub cache; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def vocabulary(name: str) -> tuple[int, dict[str, int], Any, str, list[str]]:
    """(entries, special ids, tokenizer or None, fingerprint, notes) of a tokenizer, from here or from the table.

    Raises:
        DataError: it is neither on this machine nor in the table, and the Hub does not give it.
    """
    from harness.data.tokenizer import load_tokenizer, special_ids

    known = None if _is_here(name) else vocabulary_of_known(name)
    if known is not None:
        return *known, None, "", []
    folder = None if name == "builtin" or Path(name).expanduser().exists() else _cached_tokenizer(name)
    tokenizer, fingerprint = load_tokenizer(str(folder or name))
    special = special_ids(tokenizer)
    ids = {"pad": special.pad, "cls": special.cls, "sep": special.sep, "mask": special.mask}
    return len(tokenizer), ids, tokenizer, fingerprint, []


def teacher_facts(path: str) -> TeacherInfo:
    """A teacher's shape: from its folder, the local Hub cache, the table of known models, or its config on the Hub.

    Raises:
        TeacherError: none of them has it.
    """
    from harness.models.shapes import shape_of
    from harness.models.teacher import TeacherInfo, inspect

    if path in SHIPPED or Path(path).expanduser().is_dir():
        return inspect(path)
    folder = cached_folder_of(path, "config.json")
    if folder is None:
        known = config_of_known(path)
        if known is not None:
            return TeacherInfo(path=path, shape=shape_of(known))
        folder = _config_from_hub(path)
    found = inspect(str(folder))
    return TeacherInfo(path=path, shape=found.shape, provenance=found.provenance)


def _config_from_hub(path: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(path, "config.json", etag_timeout=3)).parent
    except (OSError, HFValidationError, ValueError) as error:
        raise TeacherError(
            f"teacher {path}",
            rule=f"neither a local folder, nor a model whose sizes are known, nor on the Hub ({type(error).__name__})",
            remedy="give a local folder with its config.json, or check the name and the network",
        ) from None


def _from_the_table(study: StudySpec) -> list[str]:
    """Which models' sizes were looked up instead of read."""
    names = {study.data.tokenizer: _is_here(study.data.tokenizer)}
    for view in _views(study):
        if view.teacher is not None and view.teacher.path not in SHIPPED:
            names[view.teacher.path] = _teacher_is_here(view.teacher.path)
    looked_up = [name for name, here in names.items() if not here and vocabulary_of_known(name) is not None]
    return [f"sizes of {name} are from a table of published configs" for name in looked_up]


def epochs(found: Sketch, sequences: int, steps: int) -> float | None:
    """Passes over the most repeated source, the number a run's record gives; None where its size is unknown.

    Raises:
        DataError: a source is empty.
    """
    from harness.data import mixture

    sources = found.study.data.sources
    sizes = [found.train_blocks[source.label] for source in sources]
    if any(size is None for size in sizes):
        return None
    if 0 in sizes:
        raise DataError("a data source", rule="its train split is empty", remedy="give more text")
    whole = sum(source.weight for source in sources)
    taken = mixture.taken(steps * sequences, mixture.shares([source.weight / whole for source in sources]))
    return max(count / size for count, size in zip(taken, sizes, strict=True) if size)
