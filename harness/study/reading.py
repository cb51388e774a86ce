"""Reading studies: by name or file, with the command line's changes, validated before anything is spent."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError
from harness.study.keys import assign, number, numbers
from harness.study.spec import NAME
from harness.study.study import StudySpec, validated

STUDIES = Path(__file__).parents[1] / "studies"
# The key that turns a study file into a family of studies; see harness.sweep.
SWEEP = "sweep"
NAMED = re.compile(NAME)


def names() -> list[str]:
    """The studies that ship with the harness, sweeps not among them."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml") if not _is_sweep(path))


def sweeps() -> list[str]:
    """The sweeps that ship with the harness."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml") if _is_sweep(path))


def _is_sweep(path: Path) -> bool:
    return any(line.startswith(f"{SWEEP}:") for line in path.read_text(encoding="utf-8").splitlines())


def load(
    study: str,
    *,
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
    budget: str | None = None,
    assignments: list[str] | None = None,
) -> StudySpec:
    """Read a named study or a YAML file, apply the command line's changes, and validate the result.

    Raises:
        ConfigError: unknown study, arm, key or unit; malformed YAML; a value outside its range; a sweep.
    """
    tree = read(study, seeds=seeds, budget=budget, assignments=assignments)
    if SWEEP in tree:
        raise ConfigError(
            f"study {study!r} is a sweep, a family of studies", rule="this command takes one study",
            remedy="run, plan, report and status take a sweep; each of its points is a study of its own",
        )  # fmt: skip
    spec = validate(tree, where=study)
    return spec if arms is None else only_arms(spec, arms, where=study)


def read(
    study: str, *, seeds: list[int] | None = None, budget: str | None = None, assignments: list[str] | None = None
) -> dict[str, Any]:
    """The tree of a named study or a YAML file with the command line's changes, not yet validated.

    Raises:
        ConfigError: unknown study, malformed YAML, an assignment that is none.
    """
    tree = _read(study)
    if not isinstance(tree, dict):
        raise ConfigError(
            f"study {study}", rule="a study file is a mapping of keys", remedy="see harness/studies/quickstart.yaml"
        )
    apply(tree, assignments)
    if budget is not None:
        tree["budget"] = budget
    if seeds is not None:
        tree["seeds"] = seeds
    return tree


def apply(tree: dict[str, Any], assignments: list[str] | None) -> None:
    """Carry out the command line's --set KEY=VALUE, in their order.

    Raises:
        ConfigError: an assignment that is none, a value that is no YAML, a key that leads nowhere.
    """
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set {assignment}", rule="an assignment is KEY=VALUE", remedy="for example --set optimizer.lr=1e-3"
            )
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {assignment}", rule="the value is not YAML", remedy="quote it") from error
        assign(tree, key, number(value))


def only_arms(spec: StudySpec, arms: list[str], *, where: str) -> StudySpec:
    """The study with these of its arms, in this order."""
    known = {arm.name: arm for arm in spec.arms}
    for name in arms:
        if name not in known:
            raise ConfigError(
                f"arm {name!r}", rule=f"{where} has the arms {', '.join(known)}", remedy="pick from those"
            )
    baseline = spec.baseline if spec.baseline in arms else None
    return validate(
        {
            **spec.model_dump(mode="json"),
            "arms": [known[n].model_dump(mode="json") for n in arms],
            "baseline": baseline,
        },
        where=where,
    )


def validate(tree: Any, *, where: str) -> StudySpec:
    """Turn plain YAML into a StudySpec, every arm's own view included; the first offending key is named."""
    spec = validated(tree, where=where)
    for arm in spec.arms:
        spec.for_arm(arm)
    return spec


def read_yaml(path: Path, *, name: str = "") -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: it cannot be read, is no text, or no YAML; it is called `name`, or by its path.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(name or str(path), rule=f"malformed YAML: {error}", remedy="correct the file") from None
    except OSError as error:
        raise ConfigError(name or str(path), rule=f"it cannot be read ({error.strerror})") from None


def _read(study: str) -> Any:
    path = Path(study)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"study {study!r}", rule="no such file", remedy="give a path that exists")
    else:
        path = STUDIES / f"{study}.yaml"
        if not (NAMED.fullmatch(study) and path.is_file()):
            known = ", ".join([*names(), *sweeps()])
            raise ConfigError(
                f"study {study!r}", rule="unknown study", remedy=f"known are {known}, or a path to a .yaml"
            )
    tree = read_yaml(path, name=f"study {study!r}")
    return numbers(copy.deepcopy(tree))
