"""What must be the same for a resumed run to be the uninterrupted one, and what the user allowed to differ.

Pure Python. An identity is {kind: {key: value}}; the kinds are those a user may name in `--allow`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import CheckpointError, ConfigError

KINDS = ("study", "data", "code", "hardware", "world_size", "engine")
# How the optimizer's state is laid out in the files; no permission makes another layout readable.
LAYOUT = ("precision", "zero_stage")
# Follow from the number of ranks: where that may differ, so may these.
FOLLOWS_WORLD_SIZE = {
    ("engine", "world_size"),
    ("engine", "micro_batch"),
    ("engine", "accumulation"),
    ("hardware", "threads_per_rank"),
}
# Names of the same fact, for the reader; the hash beside them decides.
_LABELS = ("commit",)
# Parts of the program that read results or start jobs: no training step passes through them.
_NO_PART_IN_TRAINING = (
    "report",
    "sweep",
    "ladder",
    "commands",
    "chaos",
    "assets",
    "studies",
    "plan",
    "doctor",
    "bench",
    "submit",
    "runs.py",
    "refusal.py",
    "push.py",
    "fetch.py",
    "leaving.py",
    "cli.py",
)


@dataclass(frozen=True)
class Difference:
    """One fact that is not what it was."""

    kind: str
    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.kind}: {self.key} was {self.was}, is {self.now}"


def parse_kinds(text: str | None) -> frozenset[str]:
    """The kinds in "code,world_size"; ConfigError names one that is none."""
    kinds = [part.strip() for part in text.split(",")] if text else []
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"--allow {kind!r}", rule=f"it takes {', '.join(KINDS)}", remedy="name one of them")
    return frozenset(kinds)


@cache
def source_hash() -> str:
    """SHA-256 over the program files a training step passes through (16 hex digits), dirty tree or wheel alike."""
    return hash_of(Path(__file__).parent)


def hash_of(root: Path) -> str:
    """`source_hash` of the package in this folder."""
    # In a checkout kernels/ is a link, which the first walk does not enter; in a wheel it is a folder, which both walks see.
    found = {p.relative_to(root).as_posix(): p for folder in (root, root / "kernels") for p in folder.rglob("*.py")}
    digest = hashlib.sha256()
    for name, path in sorted(found.items()):
        if not name.startswith(_NO_PART_IN_TRAINING):
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every fact of `now` that was another in `then`, kind by kind; facts are named by their key's path."""
    found: list[Difference] = []
    for kind in now:
        was, facts = dict(_leaves(then.get(kind) or {})), dict(_leaves(now[kind]))
        label = f" (commit {was.get('commit')} → {facts.get('commit')})" if "commit" in facts else ""
        for key in sorted(was.keys() | facts.keys()):
            if key not in _LABELS and was.get(key) != facts.get(key):
                found.append(Difference(kind, key + (label if key == "source" else ""), was.get(key), facts.get(key)))
    if any(d.kind == "world_size" for d in found):
        found = [d for d in found if (d.kind, d.key) not in FOLLOWS_WORLD_SIZE]
    return found


def permit(
    then: Mapping[str, Any], now: Mapping[str, Any], allowed: frozenset[str], *, what: str
) -> list[dict[str, Any]]:
    """The differences, all of them allowed, as plain records.

    Raises:
        CheckpointError: one is not allowed; every difference is named.
    """
    found = differences(then, now)
    layout = [d for d in found if d.kind == "engine" and d.key in LAYOUT]
    if layout:
        raise CheckpointError(
            f"{what} ({'; '.join(map(str, layout))})", rule="its optimizer state has another layout",
            remedy="resume with the ds_config that wrote it",
        )  # fmt: skip
    refused = [d for d in found if d.kind not in allowed]
    if refused:
        kinds = ",".join(kind for kind in KINDS if any(d.kind == kind for d in found))
        raise CheckpointError(
            f"{what} ({'; '.join(map(str, refused))})", rule="a resumed run must be the uninterrupted one",
            remedy=f"undo the change, or accept it with --allow {kinds}: the report will say so",
        )  # fmt: skip
    return [asdict(difference) for difference in found]


def merge_overrides(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both lists in order, each override once."""
    return old + [override for override in new if override not in old]


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
