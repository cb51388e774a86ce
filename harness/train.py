"""The loop: the same for every arm; it ends when the ledger cannot afford the next step.

There is no branch for distillation. From scratch is the arm whose objective asks the teacher nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from harness import interruption, watchdog
from harness.budget import Account, Charge, Ledger
from harness.data.corpus import Corpus
from harness.data.stream import Batch, SampleStream, prefetched
from harness.engine import Engine
from harness.errors import CheckpointError, ConfigError, IsoBudgetError, NumericError, Preempted, refusals
from harness.lookahead import Lookahead
from harness.meters.base import Meter
from harness.meters.measured import Measured
from harness.meters.open_time import OpenTime
from harness.meters.pace import Pace, extend
from harness.models.signals import Signals
from harness.models.teacher import Teacher
from harness.ranks import Ranks
from harness.study import ScheduleSpec
from harness.teacher_cache.shards import RememberedTeacher
from harness.trainee import Groups, Trainee
from harness.units import Unit
from harness.updates import MAX_SKIPPED_IN_A_ROW, Updates, diverged

LOG_POINTS = 120


class Watcher(Protocol):
    """Follows a run from outside: progress bars, trackers."""

    def step(self, *, fraction: float, loss: float, tokens_per_s: float) -> None: ...

    def say(self, text: str) -> None: ...


def learning_rate(schedule: ScheduleSpec, peak: float, fraction: float) -> float:
    """The rate when this fraction of the budget is spent: linear warm-up, then decay to zero at 1."""
    if fraction < schedule.warmup:
        return peak * fraction / schedule.warmup
    if schedule.decay == "constant":
        return peak
    if schedule.decay == "cooldown":
        return peak * min(1.0, (1 - fraction) / schedule.cooldown)
    rest = (1 - fraction) / (1 - schedule.warmup)
    return peak * (rest if schedule.decay == "linear" else 0.5 * (1 - math.cos(math.pi * rest)))


def milestones(fraction: float, count: int) -> int:
    """How many of `count` points, evenly spaced inside a budget, lie at or before this fraction of it."""
    return sum(fraction >= (number + 1) / (count + 1) for number in range(count))


@dataclass
class Progress:
    """Where a run stands; everything here is in its checkpoints."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    passed: float = 0.0
    """The fraction of the budget up to which milestones were looked for; their numbers may change between two lives."""
    metric_rows: int = 0
    seconds: float = 0.0
    stragglers: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    trunk: bool = False
    energy: dict[str, Any] = field(default_factory=dict)
    steps_by_phase: dict[str, int] = field(default_factory=dict)


@dataclass
class Trial:
    """One arm at one seed, ready to train."""

    directory: Path
    trainee: Trainee
    groups: Groups
    engine: Engine
    teacher: Teacher | RememberedTeacher | None
    stream: SampleStream
    corpus: Corpus
    ledger: Ledger
    meters: list[Meter]
    measured: Measured
    schedule: ScheduleSpec
    peak_lr: float
    ranks: Ranks
    curve_points: int = 0
    saves: int = 0
    validate: Callable[[], dict[str, float]] | None = None
    snapshot: Callable[[float], None] | None = None
    watcher: Watcher | None = None
    stop_requested: Callable[[], bool] = lambda: False
    progress: Progress = field(default_factory=Progress)
    updates: Updates = field(default_factory=Updates)
    follow: Callable[[dict[str, Any]], None] | None = None
    lookahead: Lookahead | None = None
    executed: list[int] | None = None
    uncounted: str = ""
    resumed: bool = False
    open_time: OpenTime | None = None
    pace: Pace | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()
    overrides: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default=0.0, init=False)
    refused: IsoBudgetError | None = None
    """What the system did not let this rank write, until the ranks speak of it at the end of the step."""

    # -- the loop ----------------------------------------------------------------------------------
    def run(self) -> Progress:
        """Train until the budget is spent; returns where it ended.

        Raises:
            ConfigError: the budget does not pay for a single step.
            NumericError: too many steps in a row had non-finite gradients (see `harness.updates` for how late it comes).
            CheckpointError: the system did not let a rank write, as on a full disk; on every rank.
            Preempted: a signal asked to stop; a checkpoint was saved.
        """
        self.measured.begin()
        self.post_measured(starting=True)
        self.ranks.agree(self.refused)  # what is posted before a step has no end of a step to wait for
        self.started = time.monotonic() - self.progress.seconds
        logged_at, tokens_before = time.monotonic(), self.progress.step
        batches = prefetched(self.stream, self.progress.step, self.engine.device)
        coming: list[Batch] | None = None
        loss_sum, loss_count = torch.zeros((), device=self.engine.device), 0
        last_logged = self.ledger.fraction_spent
        try:
            while True:
                phase = self.trainee.plan.phase_at(self.ledger.fraction_spent)
                expected = [charge for meter in self.meters for charge in meter.next_step(phase)]
                affordable = self.ledger.affords(expected)
                # Measured costs differ between ranks' clocks: rank 0 decides for all.
                if not (affordable if self.ledger.budget.unit.deterministic else self.ranks.share(affordable)):
                    break
                price = self.ledger.price(expected)
                middle = (self.ledger.spent + price / 2) / self.ledger.budget.limit
                if middle > 1 - self.schedule.cooldown:
                    interruption.keep_trunk(self)
                self.engine.set_learning_rate(
                    learning_rate(self.schedule, self.peak_lr, self.trainee.plan.schedule_progress(min(1.0, middle))),
                    active=self.groups.active[phase],
                )
                watchdog.beat(f"step {self.progress.step}")
                self._pace(start=True)
                given = coming or next(batches)
                coming = next(batches) if self._asks_ahead(expected, phase) else None
                terms = self._step(given, phase, coming)
                self.post([charge for meter in self.meters for charge in meter.drain(phase)])
                self.progress.step += 1
                self.progress.seconds = time.monotonic() - self.started
                self.progress.steps_by_phase[str(phase)] = self.progress.steps_by_phase.get(str(phase), 0) + 1
                self._give_up_if_diverged()
                self._find_straggler()
                loss_sum += terms["total"].detach()
                loss_count += 1

                fraction = self.ledger.fraction_spent
                if fraction - last_logged >= 1 / LOG_POINTS or self.progress.step == 1:
                    now = time.monotonic()
                    done = self.progress.step - tokens_before
                    self._log(
                        loss_sum.item() / loss_count, terms, done * self.stream.tokens_per_step / (now - logged_at)
                    )
                    loss_sum.zero_()
                    loss_count, last_logged = 0, fraction
                    logged_at, tokens_before = now, self.progress.step
                self._milestones(fraction)
                stop, refused = self.ranks.add([float(self.stop_requested()), float(self.refused is not None)])
                if refused:
                    self.ranks.agree(self.refused)
                if stop:
                    interruption.save(self)
                    raise Preempted(
                        f"stopped by a signal at step {self.progress.step}",
                        remedy="run again with --resume to continue",
                    )
        finally:
            batches.close()
        if self.progress.step == 0:
            before, unit = self.ledger.spent, self.ledger.budget.unit
            raise ConfigError(
                f"budget {self.ledger.budget}",
                rule=f"one step costs {self.ledger.price(expected)} {unit}, and {before:.4g} went before the first",
                remedy="raise the budget",
            )
        interruption.keep_trunk(self)  # where no step was left for the cooldown
        self.updates.read(self.progress)
        self._give_up_if_diverged()
        self.settle()
        return self.progress

    def settle(self) -> None:
        """Post what was measured to the end, be that the budget's or a divergence: what was attempted is paid."""
        self.measured.energy.settle()
        self.post_measured()
        self.progress.seconds = time.monotonic() - self.started
        self.ranks.agree(self.refused)
        self.ranks.on_main(self.ledger.sync)

    def _asks_ahead(self, expected: list[Charge], phase: int) -> bool:
        """Whether the next step's first micro-batch may be asked for during this step: it is paid for, and asks the same."""
        if self.lookahead is None or not self.ledger.affords([*expected, *expected]):
            return False
        after = (self.ledger.spent + self.ledger.price(expected)) / self.ledger.budget.limit
        return self.trainee.plan.phase_at(after) == phase

    def _step(self, batches: list[Batch], phase: int, then: list[Batch] | None = None) -> dict[str, torch.Tensor]:
        """One optimizer step: forward and backward of every micro-batch, then the update; the terms' means.

        With a lookahead the teacher is asked for the following micro-batch, at the end for the first of `then`.
        """
        needs = self.trainee.plan.teacher_needs(phase)
        following = [*batches[1:], *(then or [])[:1]]
        applied: bool | torch.Tensor = True
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches):
            self._pace(start=True)
            signals = Signals()
            if self.teacher is not None and needs:
                with self.measured.span(Account.TEACHER_FORWARD):
                    signals = (self.lookahead.take if self.lookahead else self.teacher)(batch, needs)
            with self.measured.span(Account.STUDENT_STEP):
                terms = self.engine(batch, signals, phase)
                if self.lookahead is not None and needs and number < len(following):
                    self.lookahead.ask(following[number], needs)
                self._pace(start=False)
                self.engine.backward(terms["total"])
                applied = self.engine.step()
            for name, value in terms.items():
                share = value.detach() / len(batches)
                sums[name] = sums[name] + share if name in sums else share
        self.updates.note(applied, self.progress)
        return sums

    def _give_up_if_diverged(self) -> None:
        """Called after the step was posted: what was attempted is paid."""
        if diverged(self.progress):
            raise NumericError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a non-finite gradient (now step {self.progress.step})",
                rule="training has diverged", remedy="lower optimizer.lr or change the precision",
            )  # fmt: skip

    def _pace(self, *, start: bool) -> None:
        if self.pace is not None:
            (self.pace.start if start else self.pace.stop)()

    def _find_straggler(self) -> None:
        """A rank slower than the others goes into the record and onto the screen; it changes nothing else."""
        found = self.pace.end_step(self.progress.step) if self.pace is not None else None
        if found is not None and extend(self.progress.stragglers, found) and self.watcher is not None:
            self.watcher.say(f"{found} (steps {found.from_step} to {found.to_step})")

    def resume(self) -> bool:
        """Continue from the newest intact checkpoint (see `harness.interruption`); False when there is none to continue from."""
        return interruption.resume_trial(self)

    # -- on the way --------------------------------------------------------------------------------
    def _log(self, loss: float, terms: dict[str, torch.Tensor], tokens_per_s: float) -> None:
        names = [name for name in terms if name != "total"]
        values = self.ranks.add([loss, *(terms[name].item() for name in names)])
        loss, *parts = (value / self.ranks.world for value in values)
        if self.ranks.is_main:
            rate = max(group["lr"] for group in self.engine.learning_rates())
            row = {"loss": loss, "terms": dict(zip(names, parts, strict=True)), "lr": rate}
            self._record({**row, "tokens": self.progress.step * self.stream.tokens_per_step})
            if self.watcher is not None:
                self.watcher.step(fraction=self.ledger.fraction_spent, loss=loss, tokens_per_s=tokens_per_s)
        else:
            self.progress.metric_rows += 1

    def _record(self, row: dict[str, Any]) -> None:
        place = {"step": self.progress.step, "fraction": self.ledger.fraction_spent, "spent": self.ledger.spent}
        # The other currency of every point: measured amounts are those posted so far, unknown before the first posting.
        seconds = self.ledger.charged_in(Unit.GPU_SECOND) or None
        place |= {"flop": self.ledger.charged_in(Unit.FLOP), "device_seconds": seconds}
        row = {**place, "seconds": round(self.progress.seconds, 3), **row}
        self.progress.metric_rows += 1

        def append() -> None:
            with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

        self._write(append)
        if self.follow is not None:
            self.follow(row)

    def post_measured(self, *, starting: bool = False) -> None:
        """Post what was measured since the last posting: at the ends of spans that differ in account."""
        charges = self.measured.flush()
        if starting:
            charges = interruption.as_started(self, charges)
        if charges:
            self.post(charges)

    def post(self, charges: list[Charge]) -> None:
        """To the ledger, at this step."""
        self._write(lambda: self.ledger.post(charges, step=self.progress.step))

    def _write(self, action: Callable[[], None]) -> None:
        """What one rank alone writes amid a step. A refusal waits for the step's end, where ranks speak to each other anyway:
        raised here, it would leave the others waiting for this rank. After one, nothing more is written."""
        if self.refused is None:
            try:
                with refusals():
                    action()
            except CheckpointError as error:
                self.refused = error

    def _milestones(self, fraction: float) -> None:
        """Validation and checkpoints at fixed fractions of the budget, the same for every arm.

        What is due follows from the fractions before and after the step alone, so a resume may ask for other numbers of them.
        """
        before, self.progress.passed = self.progress.passed, fraction
        if milestones(fraction, self.curve_points) > milestones(before, self.curve_points):
            self.post_measured()  # the point of the curve is read in the other currency too
            with self.measured.stage(Account.EVALUATION):
                scores = self.validate() if self.validate is not None else {}
                if self.snapshot is not None:
                    self.snapshot(fraction)
            self.post_measured()
            if scores and self.ranks.is_main:
                self._record(scores)
            elif scores:
                self.progress.metric_rows += 1
        if milestones(fraction, self.saves) > milestones(before, self.saves):
            interruption.save(self)
