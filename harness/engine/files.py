"""DeepSpeed's files in a checkpoint: written durably, read as tensors only, converted for another number of ranks."""

from __future__ import annotations

import argparse
import copy
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from harness.errors import CheckpointError
from harness.manifest import sync
from harness.unpickling import tensors_only

# Where DeepSpeed's files lie below a checkpoint, and the weights for every other program beside them.
TAG = "engine"
WEIGHTS = "weights.safetensors"


def state_classes() -> list[type]:
    """The classes of DeepSpeed that its optimizer files name; everything else in them is tensors and numbers."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, fragment_address]


def plain(tree: Any) -> Any:
    """The same state with enumerations as their values: Python before 3.11.4 pickles them through `getattr`."""
    if isinstance(tree, Enum):
        return tree.value
    if isinstance(tree, dict):
        found = {key: value for key, old in tree.items() if (value := plain(old)) is not old}
        if not found:
            return tree
        changed = copy.copy(tree)
        changed.update(found)
        return changed
    if type(tree) in (list, tuple):
        parts = [plain(part) for part in tree]
        return tree if all(a is b for a, b in zip(parts, tree, strict=True)) else type(tree)(parts)
    return tree


def durable_files() -> Any:
    """DeepSpeed's own plug for its files: what is written is on the disk, what is read is only tensors."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class DurableFiles(TorchCheckpointEngine):
        failure: Exception | None = None

        def save(self, state_dict: Any, path: str) -> None:
            # Not raised here: DeepSpeed's other ranks would wait for this one in a barrier of theirs.
            try:
                torch.save(plain(state_dict), path)
                sync(Path(path))
            except Exception as error:
                self.failure = self.failure or error

        def raise_failure(self) -> None:
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure

        def load(self, path: str, map_location: Any = None) -> Any:
            with tensors_only(state_classes()):
                return torch.load(path, map_location=map_location, weights_only=True)

    return DurableFiles()


def make_universal(source: Path, target: Path, *, stage: int) -> None:
    """Rewrite one checkpoint of DeepSpeed's in the form that any number of ranks can read.

    Raises:
        CheckpointError: it cannot be converted; the source is as it was.
    """
    from deepspeed.checkpoint import ds_to_universal

    wanted = argparse.Namespace(
        input_folder=str(source), output_folder=str(target), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=stage in (1, 2),
    )  # fmt: skip
    talk = io.StringIO()
    try:
        shutil.rmtree(target.parent, ignore_errors=True)  # of a run that was killed while it converted
        target.mkdir(parents=True)
        with tensors_only(state_classes()), redirect_stdout(talk), redirect_stderr(talk):
            ds_to_universal.main(wanted)
    except Exception as error:  # the converter asserts, indexes and unpickles; whatever failed, nothing was restored
        raise CheckpointError(
            f"checkpoint {source.parent.name}", rule=f"DeepSpeed cannot convert it ({type(error).__name__}: {error})",
            remedy="resume with the number of ranks that wrote it",
        ) from None  # fmt: skip
