"""How a process ends: everything Python promises at exit, but not the taking apart of the interpreter.

Libraries leave C++ threads behind. The one in which gloo carries out an exchange lets go of its tensors only after it
has told the waiting rank that the exchange is done; on a busy machine that is later than the rank's exit. It then asks
for an interpreter that is being taken apart, and the process aborts ("terminate called without an active exception",
SIGABRT): a finished run, reported as failed. Nothing is left to do by then, so the process leaves at once instead.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn

# What the interpreter exits with when it cannot write out what was printed.
_UNWRITTEN = 120


def leave_with(command: Callable[[], int]) -> NoReturn:
    """Run `command` and end the process with the code it returns; call this first of all, once per process.

    Threads are joined, exit handlers run and streams are flushed as usual; an error's code is the interpreter's, 1.
    """
    code = 1

    def last() -> None:
        written = code
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # a closed pipe, a full disk
                written = written or _UNWRITTEN
        os._exit(written)

    atexit.register(last)  # handlers run in reverse order, so those of every library imported later come first
    try:
        code = command()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise
    sys.exit(code)
