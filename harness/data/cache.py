"""The data cache: folders that appear whole, once, whoever asks for them at the same time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.errors import DataError


def cache_root() -> Path:
    """$ISOBUDGET_CACHE, else $XDG_CACHE_HOME/isobudget, else ~/.cache/isobudget."""
    own = os.environ.get("ISOBUDGET_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "isobudget"


def folder_of(kind: str, depends_on: dict[str, Any], *, root: Path | None = None) -> Path:
    """Where `cached_folder` puts what depends on this, under `root` or the cache; it exists once it is complete."""
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:20]
    return (root or cache_root()) / kind / key


def cached_folder(
    kind: str, depends_on: dict[str, Any], build: Callable[[Path], None], *, root: Path | None = None
) -> Path:
    """The folder that `build` fills, named by a hash of all it depends on; built at most once per cache.

    A file lock (released by the system if its holder dies) keeps ranks and processes from building
    twice; a rename publishes the folder, so nobody ever sees half of one.

    Raises:
        DataError: the cache cannot be written.
    """
    folder = folder_of(kind, depends_on, root=root)
    if folder.exists():
        return folder
    key = folder.name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if folder.exists():
                return folder
            for abandoned in folder.parent.glob(f".{key}-*"):
                shutil.rmtree(abandoned, ignore_errors=True)  # its builder was killed, or we would not hold the lock
            temporary = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=folder.parent))
            try:
                build(temporary)
                temporary.chmod(0o755)  # mkdtemp hides it from other users, who may share the cache
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"the data cache {folder.parent}",
            rule=f"cannot be written: {error}",
            remedy="free some space, or set ISOBUDGET_CACHE to a writable folder",
        ) from error
    return folder
