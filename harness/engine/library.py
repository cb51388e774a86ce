"""DeepSpeed itself, imported once it is told what it would otherwise guess, compile or print."""

from __future__ import annotations

import logging
import os
from typing import Any

from harness.hardware import has_cuda


def deepspeed_library() -> Any:
    """The package, quiet and without extensions that a first run would compile."""
    # DeepSpeed probes accelerators at import and warns when it finds none; say which one it is.
    if not has_cuda():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # init_distributed would compile a C++ shared-memory all-reduce that only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # Loading and writing a model in milliseconds needs no bar, and a rank's bars would mix with another's.
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return deepspeed
