"""`prefetch`: fetch what a study needs, so that compute nodes work offline."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from harness.commands._study import (
    default_engine,
    engine_of,
    inputs,
    print_json,
    study_flags,
    sweep_of,
    taught_by,
    teacher_flag,
)
from harness.errors import ConfigError, DataError

if TYPE_CHECKING:
    from harness.study import StudySpec

T = TypeVar("T")

HELP = "fetch data, tokenizer and teacher and build the corpus, so that compute nodes work offline"


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
    teacher_flag(parser, help="the study whose arm will be the teacher: what its training needs too")
    parser.add_argument(
        "--check", action="store_true", help="fetch nothing: say whether a run would find everything offline"
    )


def execute(options: argparse.Namespace, given: list[str]) -> int:
    if options.check:
        # The Hub's client reads these once, when it is imported: they are set before anything imports it.
        os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    sweep = sweep_of(options)
    ds_config = engine_of(options)
    study = None if sweep else inputs(options)[0]
    from harness import fetch
    from harness.progress import reporter
    from harness.sweep import check

    ds_config = ds_config or default_engine()
    name = (sweep or study).name  # type: ignore[union-attr]

    def each(what: Callable[[StudySpec], T]) -> list[T]:
        """For the study, and its teacher's where one is given; or for every study of the sweep."""
        if sweep and options.teacher_study:
            raise ConfigError(
                "--teacher-study", rule=f"{sweep.name} is a sweep", remedy="list its teachers in sweep.teachers"
            )
        if sweep:
            return check(sweep, what)
        assert study is not None
        return both(study, options.teacher_study, what) if options.teacher_study else [what(study)]

    if options.check:
        each(lambda one: fetch.check(one, ds_config))
        if not options.json:
            print(f"{name}: a run finds everything offline")
        return 0
    tell = reporter(is_main=True, json=options.json)
    items = fetch.distinct(each(lambda one: fetch.fetch(one, ds_config, tell=tell.say)))
    verify(given)
    if options.json:
        print_json({"study": name, "items": [item.as_json() for item in items], "offline": True})
        return 0
    for item in items:
        print(f"{item.what}: {item.source}, {item.size_bytes / 1e6:,.1f} MB, {item.seconds:.1f} s, in {item.folder}")
    print(f"{name}: {sum(item.size_bytes for item in items) / 1e6:,.1f} MB; a run finds everything offline (checked)")
    return 0


def both(study: StudySpec, name: str, what: Callable[[StudySpec], T]) -> list[T]:
    """For the study that trains a teacher, and for the study beside a stand-in of that teacher."""
    import tempfile
    from pathlib import Path

    from harness.study import load
    from harness.submit.graph import only_trial
    from harness.sweep import TeacherRun, stand_in
    from harness.sweep.conduct import STAND_INS

    spec = load(name)
    arm, _ = only_trial(spec)
    with tempfile.TemporaryDirectory(prefix=STAND_INS) as folder:
        stand_in.write(TeacherRun(arm, "", spec.for_arm(spec.arms[0])), Path(folder), complete=True)
        return [what(spec), what(taught_by(study, path=folder, weights=None))]


def verify(given: list[str]) -> None:
    """Check in a fresh process that may ask nobody, because this one has already asked.

    Raises:
        DataError: it missed something, in its own words.
    """
    import subprocess

    from harness.submit.scripts import entry

    words = [word for word in given if word != "--json"]
    result = subprocess.run([*entry(), *words, "--check"], capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DataError(
            "the check offline", rule=said.removeprefix("isobudget: "),
            remedy="report this if the fetch itself succeeded: a run without network would fail alike",
        )  # fmt: skip
