"""The training engine: DeepSpeed around one module that holds the student and its objective.

The only importer of deepspeed. Everything that differs between ZeRO stages and precisions ends here:
the loop sees forward, backward, step, and whether the step was applied.
"""

from harness.engine.configuration import check, zero_estimate
from harness.engine.engine import Engine, GuardedAdamW
from harness.engine.files import WEIGHTS
from harness.engine.library import deepspeed_library
from harness.engine.ranks import connect, device_of
from harness.engine.sharing import divided, must_divide

__all__ = [
    "WEIGHTS",
    "Engine",
    "GuardedAdamW",
    "check",
    "connect",
    "deepspeed_library",
    "device_of",
    "divided",
    "must_divide",
    "zero_estimate",
]
