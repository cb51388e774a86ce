"""What DeepSpeed says of a configuration before anything is built: whether it accepts it, and how much memory it takes."""

from __future__ import annotations

from pydantic import ValidationError

from harness.ds_config import DsConfig
from harness.engine.library import deepspeed_library
from harness.errors import ConfigError


def check(config: DsConfig, *, sequences: int, world: int) -> None:
    """Let DeepSpeed read the configuration before anything is built.

    Raises:
        ConfigError: a nested key or value it does not know.
    """
    deepspeed_library()
    from deepspeed.runtime.config import DeepSpeedConfig

    resolved = config.resolved(sequences=sequences, world=world, clip=None)
    try:
        DeepSpeedConfig(resolved)
    except Exception as error:  # pydantic's, DeepSpeed's own and plain assertions alike
        details = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(str(part) for part in details["loc"]) if details else ""
        said = details["msg"] if details else (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{where or 'a key'} in {config.path or 'the default ds_config'}",
            rule=f"DeepSpeed refuses it: {said}",
            remedy="correct it",
        ) from None


def zero_estimate(
    *, stage: int, weights: int, largest_layer: int, devices: int, offload_optimizer: bool, offload_param: bool
) -> int | None:
    """Bytes on one device for model states by DeepSpeed's own estimators (half precision); None for stage 0.

    They know neither the precision of this run, nor activations, buckets or a teacher.
    """
    if stage == 0:
        return None
    deepspeed_library()
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    per_node = min(devices, 8)
    nodes = max(1, devices // per_node)
    if stage == 3:
        return zero3(
            weights, largest_layer, num_gpus_per_node=per_node, num_nodes=nodes, cpu_offload=offload_optimizer,
            cpu_offload_params=offload_param,
        )[1]  # fmt: skip
    return zero2(weights, num_gpus_per_node=per_node, num_nodes=nodes, cpu_offload=offload_optimizer)[1]
