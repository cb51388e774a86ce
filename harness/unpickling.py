"""Files of tensors are read without running anything they say.

A pickle is a program. Inside `tensors_only` every torch.load of this process, DeepSpeed's included,
accepts tensors, plain containers and the few classes named, and refuses the rest before it is called.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.errors import CheckpointError

# PyTorch's own switch: it outranks a weights_only=False written in somebody's call.
_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def tensors_only(allowed: Sequence[type]) -> Iterator[None]:
    """Restrict every torch.load inside to tensors and the `allowed` classes, and to nothing that a library has registered.

    May be nested: the innermost list is the one that counts.
    """
    before = {name: os.environ.pop(name, None) for name in (_ONLY, _NOT)}
    known = torch.serialization.get_safe_globals()
    os.environ[_ONLY] = "1"
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        # Not torch's own context manager: it adds to what is registered, and leaving an inner one would also forget
        # the outer one's classes.
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def refuse_programs(files: Iterable[Path], allowed: Sequence[type]) -> None:
    """Read the pickled part of each file, without its numbers and without running it.

    Raises:
        CheckpointError: a file wants something called that is neither a tensor nor allowed, or is no tensor file.
    """
    with tensors_only(allowed):
        for path in files:
            try:
                torch.load(path, map_location="meta", weights_only=True)
            except pickle.UnpicklingError as error:
                wanted = next(
                    (line for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line), ""
                )
                raise CheckpointError(
                    f"{path.parent.parent.name}/{path.parent.name}/{path.name}",
                    rule=f"it holds more than tensors ({wanted.strip()[:160] or 'an instruction that is not allowed'})",
                    remedy="nothing of it was run; find out who wrote it, and restore a checkpoint you trust",
                ) from None
            except Exception as error:  # torch.load raises whatever a malformed archive makes it meet
                raise CheckpointError(
                    f"{path.parent.parent.name}/{path.parent.name}/{path.name}",
                    rule=f"it is no file of tensors ({type(error).__name__})",
                    remedy="restore a checkpoint you trust",
                ) from None
