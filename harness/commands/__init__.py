"""The commands of the command line, one file each.

A command's module has `HELP` (one line), `configure(parser)` and `execute(options, given) -> exit code`. Modules are
imported for every `--help`, so heavy libraries are imported inside `execute`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def discover() -> dict[str, ModuleType]:
    """Every command by name; a file whose name begins with an underscore is a helper, not a command."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}") for name in names}
