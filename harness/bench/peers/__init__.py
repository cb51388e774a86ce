"""Other ways to run the same step, one file each, timed beside ours on the same weights and batches.

A peer's module has `NAME`, `OBJECTIVES` (which of the contest's losses it computes), `REQUIRES` (distributions beyond the
project's own) and `build(contest, objective) -> Runner`. What is not installed is named.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType


def discover() -> list[ModuleType]:
    """Every peer; files whose name begins with an underscore are shared parts."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def missing(peer: ModuleType) -> list[str]:
    """The distributions this peer needs and the machine lacks."""
    found = []
    for distribution in peer.REQUIRES:
        try:
            version(distribution)
        except PackageNotFoundError:
            found.append(distribution)
    return found
