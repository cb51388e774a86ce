"""What a folder holds, byte for byte: names, sizes and hashes, sealed in one file written last.

A folder whose manifest does not match is worth nothing to a reader, and so is a folder without one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_READERS = 4


def files_of(folder: Path) -> list[str]:
    """Every file below a folder but its manifest, by path relative to it, in order."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def describe(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of these files, each flushed to the disk."""

    def one(name: str) -> dict[str, Any]:
        sync(folder / name)
        return {"bytes": (folder / name).stat().st_size, "sha256": _hash(folder / name)}

    names = list(names)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def seal(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Write the manifest and flush it with every folder that names a file."""
    body = json.dumps({"files": files, "seal": _seal_of(files)}, sort_keys=True)
    (folder / MANIFEST).write_text(body, encoding="utf-8")
    sync(folder / MANIFEST)
    for place in sorted({(folder / name).parent for name in files} | {folder}):
        sync(place)


def fault(folder: Path) -> str | None:
    """Why nothing in this folder may be read, or None when every byte is as its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if _seal_of(files) != manifest["seal"]:
            return "its manifest was altered"
        for name, facts in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != facts["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        with ThreadPoolExecutor(_READERS) as pool:
            hashes = pool.map(lambda name: _hash(folder / name), files)
            for (name, facts), found in zip(files.items(), hashes, strict=True):
                if found != facts["sha256"]:
                    return f"{name} was altered"
        unknown = set(files_of(folder)) - set(files)
        return f"{min(unknown)} is not in its manifest" if unknown else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no readable manifest ({type(error).__name__})"


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, each entered in the folder above it on the disk."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal_of(files: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps({"files": files}, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
