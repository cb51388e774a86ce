"""What a step of every arm takes: engine, bare PyTorch and their parts, arms taking turns.

All arms step in rounds, and in each round the engine's step and a bare PyTorch step of the same student, objective
and batches follow each other, so a machine whose speed drifts drifts for all alike. What comes in bursts (stalls, the
posting of what was measured) is timed afterwards, over consecutive steps of one arm at a time, as means.
An arm whose first step is not the definition's gets no figure.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.bench.bare import Bare, incomparable
from harness.bench.breakdown import breakdown
from harness.bench.check import Distance
from harness.bench.peak import measured_link, measured_peak, memory_in_use, product_dtype
from harness.bench.timing import WARM_UP, percentiles, wait
from harness.budget import Account, Charge, Ledger
from harness.data.prefetch import DEPTH
from harness.data.stream import prefetched
from harness.environment import versions
from harness.hardware import describe
from harness.kernels.backend import choices, forget
from harness.meters.measured import POSTING_STEPS
from harness.models.teacher import Teacher
from harness.units import Unit

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting

BREAKDOWN_STEPS = 5
# Whole periods of posting; before them, what was prefetched while the arm stood still is used up.
STEADY_STEPS = 2 * POSTING_STEPS


class Contender:
    """One arm, its trial and its bare twin, with the times seen so far."""

    def __init__(self, conductor: Conductor, arm: ArmSetting, folder: Path, cleanup: ExitStack) -> None:
        self.arm = arm
        folder.mkdir()
        self.trial = conductor.trial(arm, 0, folder, lambda: False)
        cleanup.callback(self.trial.engine.close)
        self.trial.ledger = _larger(self.trial.ledger, folder / "bench.jsonl" if conductor.ranks.is_main else None)
        cleanup.callback(self.trial.ledger.close)
        self.trial.engine.set_learning_rate(1e-6, active=self.trial.groups.active[0])
        bare = Bare(conductor, arm, self.trial)
        self.away, found = bare.check(self.trial.stream.step(0)[0].to(self.trial.engine.device))
        self.why: str | None = next(filter(None, conductor.ranks.gather(found)), None)
        self.alone = incomparable(conductor.setting.ds_config.precision, world=conductor.ranks.world)
        self.bare = bare if self.alone is None else None
        self.batches = prefetched(self.trial.stream, 0, self.trial.engine.device)
        cleanup.callback(self.batches.close)
        self.times: dict[str, list[float]] = {"step": [], "bare": []}

    def round(self, *, keep: bool) -> None:
        """One engine step and one bare step on the same batches."""
        device = self.trial.engine.device
        wait(device)
        begun = time.perf_counter()
        batches = next(self.batches)
        self.trial._step(batches, 0)
        wait(device)
        elapsed = time.perf_counter() - begun
        self._book()
        bare = self.bare.step(batches) if self.bare else 0.0
        if keep:
            self.times["step"].append(elapsed)
            self.times["bare"].append(bare)

    def steady(self) -> dict[str, float]:
        """Shares of the time of consecutive steps that went into waiting for batches and into meters and ledger."""
        waited = booked = total = 0.0
        for number in range(DEPTH + STEADY_STEPS):
            begun = time.perf_counter()
            batches = next(self.batches)
            got = time.perf_counter()
            self.trial._step(batches, 0)
            wait(self.trial.engine.device)
            stepped = time.perf_counter()
            self._book()
            if number >= DEPTH:
                ended = time.perf_counter()
                waited, booked, total = waited + got - begun, booked + ended - stepped, total + ended - begun
        return {"input_stall": waited / total, "bookkeeping": booked / total}

    def _book(self) -> None:
        """What the loop does beside the step: predict, ask the ledger, post and write."""
        trial = self.trial
        expected = self.expected()
        trial.ledger.affords(expected)
        trial.ledger.price(expected)
        trial.ledger.post((c for meter in trial.meters for c in meter.drain(0)), step=0)

    def expected(self) -> list[Charge]:
        """What the meters say the next step will cost."""
        return [charge for meter in self.trial.meters for charge in meter.next_step(0)]

    def tokens_per_run(self) -> int | None:
        """What the budget buys of this arm; None where it is measured and nobody can know."""
        ledger = self.arm.ledger()
        if not ledger.budget.unit.deterministic:
            return None
        left = ledger.budget.limit - ledger.price(self.arm.upfront())
        return int(left // ledger.price(self.expected())) * self.trial.stream.tokens_per_step


def measure(conductor: Conductor, *, steps: int) -> dict[str, Any]:
    """Time `steps` steps of every arm.

    Returns one JSON object: machine, versions, the measured peak of a matrix product in the engine's type and in the
    teachers', and per arm the step's percentiles, tokens/s, algorithmic FLOP/s, MFU, its parts, the engine's step over
    the bare one (or why there is none), and the step's time over the from-scratch arm's against the same ratio in
    FLOPs; `check` says how far its first step was from the definition's, and an arm for which that is too far has
    `why` and nothing else.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as cleanup:
        contenders = [
            Contender(conductor, arm, Path(folder) / name, cleanup) for name, arm in conductor.setting.arms.items()
        ]
        device = contenders[0].trial.engine.device
        right = [contender for contender in contenders if contender.why is None]
        forget()  # the definitions, which ran for the check
        for step in range(WARM_UP + steps):
            for contender in right:
                contender.round(keep=step >= WARM_UP)
        dtype = product_dtype(conductor.setting.ds_config.precision)
        theirs = {c.trial.teacher.dtype for c in right if c.trial.teacher is not None}
        peaks = {each: measured_peak(device, each) for each in (dtype, *sorted(theirs - {dtype}, key=str))}
        whole = {each: peak["flop_per_s"] * conductor.ranks.world for each, peak in peaks.items()}
        arms = [_row(c, whole, dtype) if c.why is None else _red(c) for c in contenders]
        memory = memory_in_use(device)
        link = measured_link(device, ranks=conductor.ranks.world)
    _over_scratch(arms, {name: arm.plan().needs_teacher for name, arm in conductor.setting.arms.items()})
    return {
        "study": conductor.setting.study.name,
        "hardware": describe(),
        "versions": versions(),
        "world_size": conductor.ranks.world,
        "precision": conductor.setting.ds_config.precision,
        "zero_stage": conductor.setting.ds_config.stage,
        "rule": f"{WARM_UP} warm-up rounds, then {steps} timed; arms, and in each the engine and a bare loop, take turns; "
        f"stalls and meters are means over {STEADY_STEPS} consecutive steps",
        "peak": peaks[dtype],
        "teacher_peaks": [peaks[each] for each in peaks if each != dtype],
        "memory": memory,
        "link": link,
        "kernels": choices(),
        "arms": arms,
    }


def _larger(ledger: Ledger, path: Path | None) -> Ledger:
    """A ledger of the same kind for as many steps as are timed, which a small budget may not pay."""
    return Ledger(replace(ledger.budget, limit=1_000_000 * ledger.budget.limit), charged=ledger.charged, path=path)


def _red(contender: Contender) -> dict[str, Any]:
    return {"name": contender.arm.arm.name, "check": _told(contender.away), "why": contender.why}


def _told(away: Distance) -> dict[str, float]:
    return {"loss": away.loss, "gradient": away.gradient}


def utilisation(
    *, seconds: float, student_flop: float, student_peak: float, teacher_flop: float, teacher_peak: float
) -> float:
    """The share of these seconds that the products take at the peaks of the types they are made in."""
    return (student_flop / student_peak + teacher_flop / teacher_peak) / seconds


def _row(contender: Contender, peaks: dict[torch.dtype, float], dtype: torch.dtype) -> dict[str, Any]:
    """`peaks` are all ranks' FLOP/s by type; `dtype` is what the engine multiplies in."""
    trial, times = contender.trial, contender.times
    peak, teacher_peak = peaks[dtype], peaks[trial.teacher.dtype if trial.teacher is not None else dtype]
    charges = [c for c in contender.expected() if c.unit is Unit.FLOP]
    flop = sum(c.amount for c in charges)
    step = percentiles(times["step"])
    seconds = step["p50_ms"] * 1e-3
    start = len(times["step"]) + WARM_UP
    parts = breakdown(trial, range(start, start + BREAKDOWN_STEPS))
    asked = sum(c.amount for c in charges if c.account is Account.TEACHER_FORWARD)
    alone = sum(ms for part, ms in parts.items() if part not in ("data", "teacher"))
    row = {
        "name": contender.arm.arm.name,
        "check": _told(contender.away),
        "parameters": sum(p.numel() for p in trial.trainee.student.parameters()),
        "step": step,
        "breakdown_ms": parts,
        "tokens_per_s": trial.stream.tokens_per_step / seconds,
        "flop_per_step": flop,
        "flop_per_s": flop / seconds,
        "mfu": utilisation(
            seconds=seconds, student_flop=flop - asked, student_peak=peak, teacher_flop=asked, teacher_peak=teacher_peak
        ),
        "teacher_mfu": asked / (1e-3 * parts["teacher"]) / teacher_peak if asked else None,
        "student_mfu": (flop - asked) / (1e-3 * alone) / peak,
        "teacher_backend": trial.teacher.backend if isinstance(trial.teacher, Teacher) else None,
        **contender.steady(),
        "tokens_per_run": contender.tokens_per_run(),
        "micro_batch": trial.engine.micro_batch,
        "accumulation": trial.engine.accumulation,
        "trained_parameters": sum(p.numel() for group in trial.groups.groups for p in group["params"]),
    }
    if contender.bare is None:
        return row | {"engine_over_bare": None, "engine_over_bare_why": contender.alone}
    bare = percentiles(times["bare"])
    return row | {"bare_step": bare, "engine_over_bare": step["p50_ms"] / bare["p50_ms"]}


def _over_scratch(rows: list[dict[str, Any]], taught: dict[str, bool]) -> None:
    """Each distilled arm's step over the first from-scratch arm's, in time and in FLOPs."""
    rows = [row for row in rows if "step" in row]
    scratch = next((row for row in rows if not taught[row["name"]]), None)
    if scratch is None:
        return
    for row in rows:
        if taught[row["name"]]:
            time_ratio = row["step"]["p50_ms"] / scratch["step"]["p50_ms"]
            flop_ratio = row["flop_per_step"] / scratch["flop_per_step"]
            row["over_scratch"] = {
                "against": scratch["name"], "time": time_ratio, "flop": flop_ratio, "time_over_flop": time_ratio / flop_ratio,
            }  # fmt: skip
