"""What a reader of a plan should not miss, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.plan.evaluation import items
from harness.units import Unit, format_amount

if TYPE_CHECKING:
    from harness.plan.outline import Sketch

FEW_STEPS = 1000
# Muennighoff et al. 2023: up to four passes over the same text are worth about as much as new text.
MANY_EPOCHS = 4


def notes(table: dict[str, Any], found: Sketch) -> list[str]:
    """One line for each finding; `table` is the plan without its notes."""
    said: list[str] = []
    for arm in table["arms"]:
        if arm["steps"] == 0:
            said.append(f"{arm['name']}: the budget does not pay for a single step")
        elif arm["steps"] < FEW_STEPS:
            said.append(
                f"{arm['name']} gets {arm['steps']} steps; below {FEW_STEPS:,} a small difference is hard to see"
            )
        if (arm["epochs"] or 0) > MANY_EPOCHS:
            said.append(
                f"{arm['name']} reads its text {arm['epochs']:.1f} times; beyond {MANY_EPOCHS} passes it learns less"
            )
    said += _seeds(found)
    said += _memory(table, found)
    said += _evaluation(table, found)
    if table["speed"] is None:
        said.append(
            "no times: without a GPU these models are too large to try here within seconds; name a machine with --on"
        )
    elif table["watts_per_device"] is None:
        said.append("no energy: nobody knows what a device draws here; give --watts, the watts of one device")
    return said


def _seeds(found: Sketch) -> list[str]:
    """Too few seeds for an interval, or for one of use: Student's t on one degree of freedom, and on two."""
    seeds, study = len(found.study.seeds), found.study
    if len(study.arms) < 2 or seeds > 2:
        return []
    if seeds == 2:
        return [
            "two seeds give an interval of 12.7 standard errors to either side, three of 4.3: only a difference many times "
            "the noise will show"
        ]
    # Of GLUE its own note says so.
    return [] if found.glue is not None else ["one seed gives no interval: arms can be shown, not told apart"]


def _memory(table: dict[str, Any], found: Sketch) -> list[str]:
    said = []
    room = table["machine"]["memory_bytes"]
    for arm in table["arms"]:
        need = arm["memory"]["total_bytes"]
        if room is not None and need > room:
            stage = found.ds_config.stage
            way = f"raise the ZeRO stage above {stage}, or offload" if stage < 3 else "offload, or take more devices"
            said.append(
                f"{arm['name']} needs {need / 1e9:.1f} GB a device and there are {room / 1e9:.0f}: lower "
                f"train_micro_batch_size_per_gpu, {way}"
            )
    half = found.ds_config.precision
    if table["machine"]["source"] != "this machine" and half.startswith("bf16") and not _has_bf16(table):
        said.append(f"{half}: these devices have no bf16; use fp16, for example ds_configs/zero1_fp16.json")
    return said


def _has_bf16(table: dict[str, Any]) -> bool:
    from harness.plan.machines import PRESETS

    return any(preset.bf16 for preset in PRESETS.values() if preset.title in table["machine"]["name"])


def _evaluation(table: dict[str, Any], found: Sketch) -> list[str]:
    said = []
    training, judging = table["total"]["training_flop"], table["total"]["evaluation_flop"]
    if judging > training:
        dearest = max(
            (
                (item, cost.flop)
                for arm in found.arms.values()
                for item, cost in items(found, arm.shape, curve=True).items()
            ),
            key=lambda pair: pair[1],
        )
        said.append(
            f"evaluation ({format_amount(judging, Unit.FLOP)}) costs more than training ({format_amount(training, Unit.FLOP)}); "
            f"the dearest item is {dearest[0]} with {format_amount(dearest[1], Unit.FLOP)} a student"
        )
    return said
