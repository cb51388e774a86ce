"""A gradient that is no number on one rank: skipped everywhere, paid for, and given up on when it stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.chaos import workers
from harness.chaos.faults import Fault, allow_fp16, only_train, poison_gradient
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, enter_each, last_words, logs, record, run_arguments, status

NUMBER = 13
FAULT = "NaN gradient on one rank (every ZeRO stage and precision); forced overflow"
PASSES_WHEN = "update skipped on all ranks, step charged; too many in a row → exit 5, weights finite"

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "bf16-autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    # A start this low overflows by no fault of ours in no step; the forced one is `fp16, overflowing`.
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 4, "hysteresis": 1}},
}
# 2^32 times a loss of nine: no fp16 gradient survives the first steps, until the scaler has come down.
OVERFLOWING = {"fp16": {"enabled": True, "initial_scale_power": 32, "hysteresis": 1, "loss_scale_window": 1000}}
POISONED_STEP = 3
GIVE_UP = "25 steps in a row"


def engines(folder: Path, *, short: bool) -> dict[str, Path]:
    """A ds_config file of every stage and precision there is; in the short form, a few of them."""
    wanted = [(stage, name) for stage in range(4) for name in PRECISIONS if (stage, name) != (0, "fp16")]  # refused
    if short:
        wanted = [(0, "fp32"), (1, "fp16"), (3, "bf16")]
    found = {}
    for stage, name in wanted:
        path = folder / f"zero{stage}_{name}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}, **PRECISIONS[name]}), encoding="utf-8")
        found[f"ZeRO-{stage} {name}"] = path
    return found


def run(seed: int, short: bool, folder: Path) -> Outcome:
    file = brief_study(folder, budget="700 Mflop", checkpoints=0)
    configs = engines(folder, short=short)
    wrong = [*one_step(file, configs, folder), *for_ever(folder, configs)]
    if not short:
        wrong += overflow(folder)
    saw = f"{len(configs)} engines: one NaN step skipped by both ranks and charged, weights equal on both; "
    saw += "NaN for ever left with exit 5 and finite weights"
    saw += "" if short else "; 2^32 as fp16 loss scale: skipped until it fits, charged"
    return Outcome(not wrong, "; ".join(wrong) if wrong else saw)


def play(file: Path, configs: dict[str, Path], folder: Path, last: int) -> tuple[dict[str, Path], str]:
    """One run per engine, poisoned from POISONED_STEP to `last` on rank 1; where each is, and all that was said."""
    outs = {name: folder / path.stem for name, path in configs.items()}
    several = [run_arguments(file, outs[name], "--ds_config", str(path)) for name, path in configs.items()]
    faults = [Fault(only_train), Fault(allow_fp16), Fault(poison_gradient, (1, POISONED_STEP, last, "weights"))]
    started = workers.start(enter_each, several, faults, folder=logs(folder))
    started.wait(timeout_s=120.0 + 60.0 * len(configs))
    return outs, started.outputs()


def facts(out: Path) -> dict[str, Any]:
    """What both ranks said at the end; where they do not agree, `finite` is False and both are told."""
    place = out / "arms" / "no_kd" / "seed-1"
    mine, theirs = (json.loads((place / f"weights-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    return mine if mine == theirs else {"finite": False, "rank 0": mine, "rank 1": theirs}


def one_step(file: Path, configs: dict[str, Path], folder: Path) -> list[str]:
    """What went wrong when one step was poisoned."""
    place = folder / "once"
    place.mkdir()
    outs, said = play(file, configs, place, POISONED_STEP)
    wrong = []
    for name, out in outs.items():
        if status(out)["state"] != "done":
            wrong.append(f"{name}: {status(out)['message'] or last_words(said)}")
            continue
        row = record(out)
        paid = row["charged"] == row["steps"] * row["step_price"]
        if row["skipped_steps"] != 1 or not facts(out)["finite"] or not paid:
            wrong.append(f"{name}: skipped {row['skipped_steps']}, {facts(out)}, charged for every step: {paid}")
    return wrong


def for_ever(folder: Path, configs: dict[str, Path]) -> list[str]:
    """What went wrong when every step from one on was poisoned."""
    place = folder / "ever"
    place.mkdir()
    file = brief_study(place, budget="3 Gflop", checkpoints=0)
    outs, said = play(file, configs, place, 10**9)
    wrong = []
    for name, out in outs.items():
        end = status(out)
        if end["exit_code"] != 5 or GIVE_UP not in end["message"] or not facts(out)["finite"]:
            wrong.append(f"{name}: exit {end['exit_code']} ({end['message'] or last_words(said)})")
    return wrong


def overflow(folder: Path) -> list[str]:
    """What went wrong when fp16's loss scale began far too high."""
    (folder / "longer").mkdir()
    path, out = folder / "overflowing.json", folder / "longer" / "overflowing"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, **OVERFLOWING}), encoding="utf-8")
    longer = brief_study(out.parent, budget="3 Gflop", checkpoints=0)
    several = [run_arguments(longer, out, "--ds_config", str(path))]
    workers.start(enter_each, several, [Fault(only_train), Fault(allow_fp16)], folder=logs(out)).wait()
    if status(out)["state"] != "done":
        return [f"overflow: {status(out)['message']}"]
    row = record(out)
    paid = row["charged"] == row["steps"] * row["step_price"]
    return [] if 0 < row["skipped_steps"] < row["steps"] and paid else [f"overflow: skipped {row['skipped_steps']}"]
