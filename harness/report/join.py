"""Several run directories of one study as one: what must be the same is checked, and nothing is counted twice.

Runs are joined when seeds or arms of a study ran in different places. Their science must be the same, and whatever
scores depend on besides: the evaluation, the tasks and the recipe of GLUE, the corpus, an arm's definition; under a measured budget the hardware too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.report.nesting import NAMES, tasks_of
from harness.report.noise import hardware_of
from harness.report.source import Json, Source, mapping, read
from harness.rundir import load_study
from harness.study import StudySpec
from harness.study.glue import unlike

# Evaluation keys that change no score: how often a curve is sampled. Of GLUE the records say more than the study: what was
# done, and by which recipe in the end.
_NO_PART_IN_SCORES = ("curve_points", "glue")


def join(directories: Sequence[Path]) -> Source:
    """One source out of several directories, in their order.

    Raises:
        ConfigError: a directory holds no study; science, evaluation, GLUE, corpus, an arm's definition or, under a measured
            budget, the hardware differ; or an arm has one seed twice. The difference is named.
    """
    sources = [read(directory) for directory in directories]
    studies = [load_study(directory) for directory in directories]
    first = studies[0]
    for directory, study in zip(directories[1:], studies[1:], strict=True):
        where = f"{directories[0]} and {directory}"
        _same(first.science(), study.science(), where, "science")
        _same(_scoring(first), _scoring(study), where, "evaluation")
    arms = _arms(studies, directories)
    _once(sources)
    _same_corpus(sources)
    _same_glue(sources)
    if not first.limit.unit.deterministic:
        _same_hardware(sources)
    seeds = list(dict.fromkeys(seed for study in studies for seed in study.seeds))
    tree = {**sources[0].study, "arms": arms, "seeds": seeds}
    tree["baseline"] = next((s.study.get("baseline") for s in sources if s.study.get("baseline")), None)
    block = next((b for s in studies if (b := s.evaluation.glue) is not None), None)
    if block is not None:
        tree["evaluation"] = {**mapping(tree.get("evaluation")), "glue": block.model_dump(mode="json")}
    order = {arm["name"]: i for i, arm in enumerate(arms)}
    runs = [run for source in sources for run in source.runs]
    return replace(
        sources[0],
        study=tree,
        environment=_environment(sources),
        status=next((s.status for s in sources if s.status.get("state") != "done"), sources[0].status),
        references=next((s.references for s in sources if s.references), {}),
        runs=sorted(runs, key=lambda run: (order.get(run.arm, len(order)), run.arm, run.seed)),
        controls=[run for source in sources for run in source.controls],
        parts=sources,
        problems=[f"{source.directory.name}: {text}" for source in sources for text in source.problems],
    )


def _scoring(study: StudySpec) -> Json:
    tree = study.evaluation.model_dump(mode="json")
    return {key: value for key, value in tree.items() if key not in _NO_PART_IN_SCORES}


def _same(one: Json, other: Json, where: str, what: str) -> None:
    """Raise with the first differing key and both its values."""
    for key, was, now in _differences(one, other):
        raise ConfigError(
            f"{where}: {what} differs in {key} ({was!r} and {now!r})",
            rule="only runs of one study can be joined",
            remedy="report them apart, or repeat one with the other's study.yaml",
        )


def _differences(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        found = (_differences(one.get(k), other.get(k), f"{path}.{k}".strip(".")) for k in keys)
        return [difference for differences in found for difference in differences]
    return [] if one == other else [(path, one, other)]


def _arms(studies: Sequence[StudySpec], directories: Sequence[Path]) -> list[Json]:
    """Every arm of every study once; an arm keeps its definition."""
    found: dict[str, tuple[Json, Path]] = {}
    for study, directory in zip(studies, directories, strict=True):
        for arm in study.arms:
            tree = arm.model_dump(mode="json")
            before, where = found.setdefault(arm.name, (tree, directory))
            _same(before, tree, f"{where} and {directory}", f"arm {arm.name}")
    return [tree for tree, _ in found.values()]


def _once(sources: Sequence[Source]) -> None:
    seen: dict[tuple[str, str, int], Path] = {}
    for source in sources:
        for run in (*source.runs, *source.controls):
            place = (run.arm, str(mapping(run.control).get("of") or ""), run.seed)
            if place in seen:
                raise ConfigError(
                    f"{seen[place]} and {source.directory}",
                    rule=f"both hold {run.arm}, seed {run.seed}, and a run counts once",
                    remedy="leave one of them out",
                )
            seen[place] = source.directory


def _same_corpus(sources: Sequence[Source]) -> None:
    found = {str(run.record["corpus"]): s.directory for s in sources for run in s.runs if run.record.get("corpus")}
    if len(found) > 1:
        (first, here), (second, there) = list(found.items())[:2]
        raise ConfigError(
            f"{here} and {there}: the corpus differs ({first} and {second})",
            rule="only runs on the same text can be joined",
            remedy="repeat one of them where the data is the same",
        )


def _same_glue(sources: Sequence[Source]) -> None:
    """Raise where `glue.mean` would be of other tasks, or by another recipe, in one directory than in another."""
    found: list[tuple[Path, set[str], Json]] = []
    for source in sources:
        runs = [run for run in source.runs if tasks_of(run)]
        if runs:
            recipe = mapping(mapping(runs[0].record.get("glue")).get("recipe"))
            found.append((source.directory, set.intersection(*(set(tasks_of(run)) for run in runs)), recipe))
    for there, tasks, recipe in found[1:]:
        here, expected, first = found[0]
        if differs := unlike(first, recipe):
            key = differs[0]
            raise ConfigError(
                f"{here} and {there}: GLUE's recipe differs in {key} ({first.get(key)!r} and {recipe.get(key)!r})",
                rule="fine-tuned by two recipes, arms cannot be compared",
                remedy="evaluate one again by the other's recipe, or report them apart",
            )
        for one, other, lacks in ((here, there, expected - tasks), (there, here, tasks - expected)):
            if lacks:
                names = ",".join(task for task in NAMES if task in lacks)
                raise ConfigError(
                    f"{one} and {other}: only the students of the first were evaluated on {names}",
                    rule="glue.mean must be of the same tasks for every arm",
                    remedy=f"first: evaluate {other} --tasks {names}",
                )


def _same_hardware(sources: Sequence[Source]) -> None:
    found = {text: s.directory for s in sources for run in s.runs if (text := hardware_of(run))}
    if len(found) > 1:
        (first, here), (second, there) = list(found.items())[:2]
        raise ConfigError(
            f"{here} and {there}: a measured budget on {first} and on {second}",
            rule="measured units are comparable on the same hardware only",
            remedy="use a budget in flop, or run both on one kind of machine",
        )


def _environment(sources: Sequence[Source]) -> Json:
    """The first environment; the others where they differ, so that no difference is lost, and every command."""
    first = sources[0].environment
    others = {
        source.directory.name: {key: value for key, value in source.environment.items() if first.get(key) != value}
        for source in sources[1:]
    }
    commands = [str(s.environment.get("command")) for s in sources if s.environment.get("command")]
    joined = [str(source.directory) for source in sources]
    return {**first, "command": " && ".join(dict.fromkeys(commands)), "joined": joined, "elsewhere": others}
