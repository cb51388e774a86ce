"""How a process ends: with its code, its output and its handlers, and never by a library's left-over thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.ranks import free_port


def left(root: Path, code: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    script = f"from harness.leaving import leave_with\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        **popen,
    )


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("lambda: 0", 0, ""),
        ("lambda: 75", 75, ""),
        ("lambda: exit(3)", 3, ""),
        ("lambda: exit('a reason')", 1, "a reason\n"),
        ("lambda: exit(None)", 0, ""),
        ("lambda: 1 // 0", 1, "ZeroDivisionError"),
    ],
)
def test_the_exit_code_is_what_the_interpreter_would_have_given(root: Path, command: str, code: int, said: str) -> None:
    result = left(root, f"leave_with({command})", capture_output=True)
    assert result.returncode == code
    assert said in result.stderr
    assert bool(result.stderr) == bool(said)


def test_output_is_written_threads_are_joined_and_later_handlers_run_before_a_process_leaves(root: Path) -> None:
    code = """
import atexit, sys, threading, time
class Torn:
    def __del__(self): print("taken apart", file=sys.stderr)
torn = Torn()
def command():
    atexit.register(lambda: print("handled"))
    threading.Thread(target=lambda: (time.sleep(0.3), print("joined"))).start()
    print("said")
    return 0
leave_with(command)
"""
    result = left(root, code, capture_output=True)
    assert result.stdout == "said\njoined\nhandled\n"
    assert result.stderr == ""  # the interpreter was not taken apart


def test_output_that_cannot_be_written_is_not_a_success(root: Path) -> None:
    with open("/dev/full", "w") as full:
        assert left(root, "leave_with(lambda: print('x') or 0)", stdout=full).returncode == 120
        assert left(root, "leave_with(lambda: print('x') or 5)", stdout=full).returncode == 5


def test_nothing_that_cleans_up_at_exit_is_imported_before_the_command(root: Path) -> None:
    """Its handler would be registered before ours, and so never run."""
    code = "import sys, harness.cli; sys.exit(bool({'torch', 'multiprocessing.util', 'deepspeed'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0


LATE = """
import atexit, os, sys, time
class Slow:
    def __del__(self, sleep=time.sleep):  # being taken apart, the interpreter waits here and gloo's thread gets its turn
        sleep(0.5)
slow = Slow()
def exchange():  # the last thing before that; gloo's thread needs the interpreter while this one computes
    dist.barrier()
    if dist.get_rank() == 1:
        time.sleep(0.3)
        dist.all_reduce(torch.ones(10))
        os._exit(0)
    dist.all_reduce(torch.ones(10), async_op=True)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        pass
def command():
    global dist, torch
    sys.setswitchinterval(1e6)
    atexit.register(exchange)
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    return 0
if sys.argv[1] == "ours":
    from harness.leaving import leave_with
    leave_with(command)
sys.exit(command())
"""


def exit_code(root: Path, how: str) -> int:
    """Of rank 0 of two, whose last exchange ends while it leaves."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", LATE, how], cwd=root, env={**os.environ, **place, "RANK": str(rank)})
        for rank in range(2)
    ]
    codes = [rank.wait(timeout=120) for rank in ranks]
    return codes[0]


def test_a_finished_rank_never_aborts_in_a_thread_of_gloos(root: Path) -> None:
    assert exit_code(root, "ours") == 0
    # The fault is there to be met: the interpreter's own way out aborts.
    assert any(exit_code(root, "interpreter's") == -signal.SIGABRT for _ in range(3))
