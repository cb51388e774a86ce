"""What the operating system says about memory, processor time and lock files; None where it says nothing."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def memory_bytes(proc: Path = Path("/proc"), cgroup: Path = _CGROUP) -> tuple[int | None, int | None]:
    """(total, free) bytes that this process may use: the machine's, or its container's when that is less."""
    facts: dict[str, int] = {}
    try:
        for row in (proc / "meminfo").read_text(encoding="utf-8").splitlines():
            key, _, rest = row.partition(":")
            facts[key] = int(rest.split()[0]) * 1024
        total, free = facts["MemTotal"], facts["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return None, None
    # version 2, then version 1 of the interface
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit, used = int((cgroup / limit_name).read_text()), int((cgroup / used_name).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
        if limit < total:
            return limit, min(free, max(0, limit - used))
    return total, free


def thread_limit(cgroup: Path = _CGROUP) -> float | None:
    """Cores' worth of time that a container may use; None when it is not limited."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def stale_locks(root: Path, proc: Path = Path("/proc")) -> tuple[list[Path], list[Path]]:
    """(locks that no process holds, locks that one does) below torch's extension folder.

    torch's builder creates the file `lock`, keeps it open while it compiles and deletes it afterwards; a
    killed builder leaves it. Processes of other users cannot be looked into, so a lock of theirs is left out.
    """
    locks = sorted({*root.glob("*/lock"), *root.glob("*/*/lock")})
    if not locks:
        return [], []
    open_files: set[Path] = set()
    for descriptor in proc.glob("[0-9]*/fd/*"):
        try:
            open_files.add(Path(os.readlink(descriptor)))
        except OSError:
            continue  # the process ended, or is somebody else's
    mine = [lock for lock in locks if _owner(lock) == os.getuid()]
    held = [lock for lock in mine if lock.resolve() in open_files]
    return [lock for lock in mine if lock not in held], held


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None
