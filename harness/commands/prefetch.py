"""`prefetch`: fetch what a study needs, so that compute nodes work offline."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from harness.commands._study import default_engine, engine_of, inputs, print_json, study_flags, sweep_of
from harness.errors import DataError

if TYPE_CHECKING:
    from harness.study import StudySpec

T = TypeVar("T")

HELP = "fetch data, tokenizer and teacher and build the corpus, so that compute nodes work offline"


def configure(parser: argparse.ArgumentParser) -> None:
    study_flags(parser)
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
        """For the study, or for every study of the sweep."""
        if sweep:
            return check(sweep, what)
        assert study is not None
        return [what(study)]

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
