"""What each technique buys: the same step with one of them taken away, or one more put in, timed in turns.

Every variation starts from the same weights, hears the trial's own teacher as its start settled it, and sees the same
batches in a bare loop. Before anything is timed its loss and its gradient are held against the definition's, and one
that is wrong, or does not run here, says so instead of a time. `taken away` shows what the shipped step saves; `put in`
what an option would save here. A variation that changes nothing for an arm, or that a study of it may not ask for, is
left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch._dynamo

from harness.bench.check import LOSS, Distance, Step, allowed, distance
from harness.bench.stepper import Stepper, obstacle, shipped
from harness.bench.timing import WARM_UP, percentiles
from harness.bench.variation import DEFINITION, SHIPPED, Variation, variations
from harness.kernels.backend import prefer

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting

# Another teacher than the definition's, in half precision or fp8: its logits are off by some hundredths (see
# harness/teacher_backends.py), and the soft loss's gradient, a difference of two probabilities, by a larger share.
OTHER_TEACHER = Distance(LOSS["half"], 0.15)
# Variations of a compiled teacher are as many versions of one function; PyTorch's limit of 8 would run the rest uncompiled
# and say nothing.
COMPILING = {"recompile_limit": 64, "fail_on_recompile_limit_hit": True}


def ablate(conductor: Conductor, *, steps: int) -> dict[str, Any]:
    """Time `steps` steps of every arm in every variation that changes it.

    Returns {arm: [row, …]} and the rule; a row has the variation's name, how far its first step was from the definition's,
    p20/50/80 and its time over the shipped step's, or `why` instead of times. `pads` is the share of padding without packing.
    """
    share = pads_without_packing(conductor)
    return {
        "rule": f"{WARM_UP} warm-up rounds, then {steps} timed, variations in turns; bare loops, no engine",
        "pads": share,
        "arms": {name: _arm(conductor, arm, steps=steps, pads=share) for name, arm in conductor.setting.arms.items()},
    }


def pads_without_packing(conductor: Conductor) -> float:
    """The share of padding if every document, cut to blocks, had blocks of its own: of this corpus's held-out text.

    0 where there is no text but random tokens.
    """
    setting = conductor.setting
    length = setting.corpus.block_length
    real = blocks = 0
    for document in setting.corpus.documents("validation"):
        tokens = len(setting.tokenizer(document.text, add_special_tokens=False)["input_ids"])
        own = max(1, -(-tokens // (length - 2)))
        real, blocks = real + tokens + 2 * own, blocks + own
    return 1 - real / (blocks * length) if blocks else 0.0


def _arm(conductor: Conductor, arm: ArmSetting, *, steps: int, pads: float) -> list[dict[str, Any]]:
    half = conductor.setting.ds_config.precision != "fp32"
    with tempfile.TemporaryDirectory() as folder, torch._dynamo.config.patch(COMPILING):
        trial = conductor.trial(arm, 0, Path(folder), lambda: False)
        kernels, against = arm.study.speed.kernels, shipped(trial)
        wanted = [v for v in variations() if v == SHIPPED or v.changes(against)]
        wanted = [v for v in wanted if pads or not v.padded]
        rows: dict[str, dict[str, Any]] = {v.name: {"variation": v.name} for v in wanted}
        rows[SHIPPED.name]["teacher_backend"] = against.backend
        steppers: dict[str, Stepper] = {}
        expected: Step | None = None
        try:
            made = [
                [batch.to(trial.engine.device) for batch in trial.stream.step(n)] for n in range(WARM_UP + steps + 1)
            ]
            # The definition first: the others are held against it.
            for variation in sorted(wanted, key=lambda v: v.name != DEFINITION):

                def begin(variation: Variation = variation) -> tuple[Stepper, Step] | None:
                    if why := obstacle(variation, conductor, arm, steps=steps):
                        rows[variation.name]["why"] = why
                        return None
                    cache = Path(folder) / "cache"
                    stepper = Stepper(conductor, arm, trial, variation, steps=steps, pads=pads, cache=cache)
                    return stepper, stepper.first(made[0])

                begun = _attempt(rows[variation.name], begin)
                if begun is None:
                    continue
                stepper, first = begun
                expected = first if variation.name == DEFINITION else expected
                otherwise = variation.teaches_otherwise(against)
                most = OTHER_TEACHER if otherwise else allowed(half=half, layers=arm.shape.layers)
                if _judge(rows[variation.name], first, expected, most):
                    steppers[variation.name] = stepper
            times: dict[str, list[float]] = {name: [] for name in steppers}
            for number in range(WARM_UP + steps):
                for name, stepper in list(steppers.items()):
                    seconds = _attempt(rows[name], partial(stepper, made[number : number + 2], number))
                    if seconds is None:
                        del steppers[name], times[name]
                    elif number >= WARM_UP:
                        times[name].append(seconds)
        finally:
            prefer(kernels)
            trial.engine.close()
    return _rows(rows, times)


T = TypeVar("T")


def _attempt(row: dict[str, Any], action: Callable[[], T]) -> T | None:
    """What the action returns; what it raises becomes its row's reason: one option that fails here must not cost the rest."""
    try:
        return action()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        row["why"] = f"failed: {type(error).__name__}: {lines[0][:160]}"
        return None


def _judge(row: dict[str, Any], first: Step, expected: Step | None, most: Distance) -> bool:
    """Note how far a first step is from the definition's; False, with the reason, where that is too far or unknown."""
    if expected is None:
        row["why"] = f"nothing to hold it against: {DEFINITION} did not run"
        return False
    away = distance(first, expected)
    row |= {"loss": first.loss, "check": {"loss": away.loss, "gradient": away.gradient}}
    if why := away.why(most):
        row["why"] = why
    return "why" not in row


def _rows(rows: dict[str, dict[str, Any]], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Each variation with its times, and with their ratio to the shipped step's where that has some."""
    for name, seen in times.items():
        rows[name]["step"] = percentiles(seen)
    shipped = rows[SHIPPED.name].get("step")
    for row in rows.values():
        if shipped and "step" in row:
            row["over_shipped"] = row["step"]["p50_ms"] / shipped["p50_ms"]
    return list(rows.values())


def show_ablation(table: dict[str, Any]) -> None:
    """Print every arm's lines."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for arm, rows in table["arms"].items():
        backend = next((row["teacher_backend"] for row in rows if row.get("teacher_backend")), None)
        view = Table(title=f"{arm}, shipped teacher: {backend}" if backend else arm, title_justify="left")
        for heading in ("step", "p50, ms", "p20–p80", "over shipped"):
            view.add_column(heading, justify="left" if heading == "step" else "right")
        for row in rows:
            if "step" in row:
                times = row["step"]
                spread = f"{times['p20_ms']:.1f}–{times['p80_ms']:.1f}"
                over = f"{row['over_shipped']:.2f}×" if "over_shipped" in row else "–"
                view.add_row(row["variation"], f"{times['p50_ms']:.1f}", spread, over)
        console.print(view)
        for row in rows:
            if "why" in row:
                console.print(f"{row['variation']}: {row['why']}", highlight=False, markup=False)
    console.print(table["rule"], highlight=False)
