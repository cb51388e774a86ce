"""Conducts a study: trains what is missing, evaluates what is missing, reports.

Every (arm, seed) is one trial with its own directory and record. A finished directory given new arms,
seeds or evaluations runs only those.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from harness import environment
from harness.budget import Account, Charge
from harness.data.stream import SampleStream, evaluation_batches
from harness.engine import Engine, device_of
from harness.errors import ConfigError, Preempted
from harness.evaluate.subject import Subject
from harness.evaluate.vouch import BLOCKS, Voucher, vouch
from harness.hardware import bf16_in_hardware, has_cuda
from harness.meters.device_time import DeviceClock
from harness.meters.pace import Pace
from harness.models.signals import Needs, Signals
from harness.models.student import export
from harness.models.teacher import Teacher
from harness.progress import Silent
from harness.ranks import Ranks
from harness.rundir import RunDirectory, write_json
from harness.stopping import StopFlag
from harness.train import Trial
from harness.trainee import VALIDATION, VALIDATION_NEEDS, Trainee, parameter_groups
from harness.trial_record import card, trial_record
from harness.units import Unit, format_amount
from harness.watchdog import Watchdog, beat, leave

if TYPE_CHECKING:
    from harness.setting import ArmSetting, Setting

# Added to an arm's seed for its projections, so that they never share draws with the student's weights.
PROJECTION_STREAM = 1_000_003
VALIDATION_BATCH = 64
# Measured time is summed over this many steps before ranks exchange it, unless the budget is in time.
TIME_POSTING_STEPS = 16
# Nobody moved for this long: the run hangs. Above the slowest compilation, below a scheduler's patience.
HANG_TIMEOUT_S = 600.0


@dataclass
class Conductor:
    """One study on these ranks."""

    setting: Setting
    directory: RunDirectory
    ranks: Ranks
    tell: Silent
    command: str = ""
    resume: bool = False
    hang_timeout_s: float = HANG_TIMEOUT_S
    allowed: frozenset[str] = frozenset()

    def run(self) -> None:
        """Train and evaluate every missing trial.

        Raises:
            Preempted: a signal asked to stop; the run can be resumed.
            TeacherError: a teacher cannot be used; no trial has begun.
            NumericError, CheckpointError: from a trial; finished trials are kept.
        """
        with StopFlag(self.ranks) as stop, self.watch() as watch:
            if watch.off:
                self.tell.say(f"hangs are not watched for: {watch.off}")
            missing = self.missing()
            if missing:
                self.ranks.on_main(self.refuse_mixed_precision)
                self.identity = environment.identity(self.setting, self.ranks)
                self.overrides = self.ranks.on_main(lambda: self.directory.admit(self.identity, self.allowed))
            vouchers = self.ranks.on_main(lambda: self.vouchers(missing))
            for arm, seed in missing:
                self.train(arm, seed, stop, vouchers.get((arm.arm.name, seed)))
            from harness.evaluate.suite import Suite

            Suite(self.setting, self.directory, self.ranks, self.tell, stop).run()

    def watch(self) -> Watchdog:
        """Ends the run, resumable, when no rank moves any more; names the rank that all wait for."""

        def record(found: str) -> None:
            self.directory.status("interrupted", exit_code=Preempted.exit_code, message=f"hang: {found}")

        give_up = leave(self.ranks, record)
        return Watchdog(self.directory.root, self.ranks, timeout_s=self.hang_timeout_s, give_up=give_up)

    def missing(self) -> list[tuple[ArmSetting, int]]:
        """Trials without a finished record, in the order they will run; the same on every rank."""
        trials = [(arm, seed) for seed in self.setting.study.seeds for arm in self.setting.arms.values()]
        done = [(self.directory.record(arm.arm.name, seed) or {}).get("state") == "done" for arm, seed in trials]
        return [trial for trial, finished in zip(trials, self.ranks.share(done), strict=True) if not finished]

    def refuse_mixed_precision(self) -> None:
        """Finished trials of this directory and new ones must compute alike. Rank 0 only."""
        now = self.setting.ds_config.precision
        for seed in self.setting.study.seeds:
            for name in self.setting.arms:
                then = ((self.directory.record(name, seed) or {}).get("engine") or {}).get("precision", now)
                if then != now:
                    raise ConfigError(
                        f"precision {now}", rule=f"arm {name} of this directory was trained in {then}",
                        remedy="use the same ds_config, or another --out",
                    )  # fmt: skip

    def vouchers(self, missing: list[tuple[ArmSetting, int]]) -> dict[tuple[str, int], Voucher]:
        """Load every teacher that will be needed, and compare it with the student it is to teach. Rank 0 only."""
        study, corpus, device = self.setting.study, self.setting.corpus, device_of(self.ranks)
        teachers: dict[str, Subject] = {}
        found: dict[tuple[str, int], Voucher] = {}
        blocks = min(BLOCKS, len(corpus.blocks("validation")))
        for arm, seed in missing:
            if arm.teacher is None or arm.study.teacher is None:
                continue
            path = arm.teacher.path
            if path not in teachers:
                model = Teacher(arm.teacher, device=device, dtype=torch.float32).family.model
                teachers[path] = Subject(model, device=device)
            batches = evaluation_batches(
                corpus, "validation", blocks=blocks, batch=VALIDATION_BATCH, masking=study.data.masking
            )
            found[arm.arm.name, seed] = vouch(
                teachers[path], Subject(arm.student(seed=seed), device=device), batches,
                name=path, allow_worse=arm.study.teacher.allow_worse,
            )  # fmt: skip
        return found

    # -- one trial -----------------------------------------------------------------------------------
    def train(self, arm: ArmSetting, seed: int, stop: StopFlag, voucher: Voucher | None) -> None:
        folder = self.directory.trial(arm.arm.name, seed)
        started = time.monotonic()
        beat(f"the start of {arm.arm.name}, seed {seed}")
        if self.ranks.is_main:
            if not self.resume and folder.exists():
                shutil.rmtree(folder)  # a trial that never saved a checkpoint and was not asked to resume
            folder.mkdir(parents=True, exist_ok=True)
        self.ranks.barrier()
        trial = self.trial(arm, seed, folder, stop)
        resumed = self.resume and trial.resume()
        if not resumed:
            asked = [
                Charge(Account.EVALUATION, voucher.flop, Unit.FLOP),
                Charge(Account.EVALUATION, voucher.seconds, Unit.GPU_SECOND, "measured"),
            ] if voucher else []  # fmt: skip
            trial.ledger.post([*arm.upfront(), *asked], step=0)
            if self.ranks.is_main:
                (folder / "metrics.jsonl").unlink(missing_ok=True)
        if self.ranks.is_main:
            write_json(
                self.directory.root / "environment.json",
                environment.record(
                    self.setting, self.ranks, command=self.command, resolved_engine=trial.engine.resolved_config
                ),
            )
        startup = time.monotonic() - started
        label = f"{arm.arm.name} · seed {seed}"
        self.tell.begin(label, trial.ledger.budget.limit, trial.ledger.budget.unit)
        try:
            trial.run()
        finally:
            self.tell.end()
        trial.ledger.post(
            [Charge(Account.STARTUP, startup * self.ranks.world, Unit.GPU_SECOND, "measured")], step=trial.progress.step
        )
        weights = trial.engine.weights(trial.trainee.student)
        if self.ranks.is_main:
            record = trial_record(arm, seed, trial, voucher, corpus=self.setting.corpus.fingerprint)
            export(
                arm.config, weights, folder / "student", tokenizer=self.setting.tokenizer, card=card(record),
                layers=record["exported_layers"],
            )  # fmt: skip
            write_json(folder / "record.json", record)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            self.tell.say(
                f"{label}: {record['steps']:,} steps, {format_amount(record['tokens'], Unit.TOKEN)}, "
                f"{format_amount(record['charged'], trial.ledger.budget.unit)} charged, {record['seconds']:.0f} device s"
            )
        trial.ledger.close()
        trial.engine.close()
        del trial
        gc.collect()
        self.ranks.barrier()

    def trial(self, arm: ArmSetting, seed: int, folder: Path, stop: Callable[[], bool]) -> Trial:
        """Student, objective, engine, teacher, stream, ledger and meters of one trial."""
        study, setting = arm.study, self.setting
        student = arm.student(seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + PROJECTION_STREAM)
            plan = arm.plan()
        torch.manual_seed(seed)  # dropout, where a study has any
        trainee = Trainee(student, arm.shape, plan)
        groups = parameter_groups(trainee, arm.teacher.shape if arm.teacher else None, study.optimizer)
        engine = Engine(
            trainee, groups.groups, setting.ds_config, sequences=study.batch.sequences, ranks=self.ranks,
            betas=study.optimizer.betas, eps=study.optimizer.eps, clip=study.optimizer.clip,
        )  # fmt: skip
        stream = SampleStream(
            setting.corpus, seed=seed, sequences=study.batch.sequences, micro_batch=engine.micro_batch,
            rank=self.ranks.rank, world=self.ranks.world, masking=study.data.masking,
        )  # fmt: skip
        in_time = study.limit.unit is Unit.GPU_SECOND
        clock = DeviceClock(self.ranks, cuda=has_cuda(), every=1 if in_time else TIME_POSTING_STEPS)
        ledger = arm.ledger(path=folder / "ledger.jsonl" if self.ranks.is_main else None)
        trial = Trial(
            directory=folder, trainee=trainee, groups=groups, engine=engine, teacher=self.teacher(arm, plan), stream=stream,
            corpus=setting.corpus, ledger=ledger, meters=[*arm.analytic_meters(plan), clock], clock=clock,
            schedule=study.schedule, peak_lr=study.optimizer.lr, ranks=self.ranks, watcher=self.tell,
            identity=environment.trial_identity(self.identity, arm, seed, engine.facts()), allowed=self.allowed,
            overrides=list(self.overrides),
            curve_points=study.evaluation.curve_points, saves=study.checkpoints, stop_requested=stop,
            pace=Pace(self.ranks, cuda=has_cuda()),
        )  # fmt: skip
        if plan.trains_head:
            trial.validate = self.validation(trial)
        if study.evaluation.readout is not None and study.evaluation.readout.on_curve:
            trial.snapshot = self.snapshots(trial)
        return trial

    def teacher(self, arm: ArmSetting, plan: Any) -> Teacher | None:
        if arm.teacher is None or not plan.needs_teacher:
            return None
        assert arm.study.teacher is not None
        dtype = torch.bfloat16 if bf16_in_hardware() else torch.float32
        teacher = Teacher(arm.teacher, device=device_of(self.ranks), dtype=dtype, dropout=arm.study.teacher.dropout)
        needs = Needs()
        for phase in range(len(plan.phases)):
            needs |= plan.teacher_needs(phase)
        teacher.cut(needs)
        return teacher

    def validation(self, trial: Trial) -> Callable[[], dict[str, float]]:
        """Own MLM loss on held-out blocks, each rank doing an equal share."""
        study = self.setting.study
        # Equal shares, or ZeRO-3 ranks would wait for each other's gathers for ever.
        world = self.ranks.world
        blocks = min(study.evaluation.mlm_blocks, len(self.setting.corpus.blocks("validation"))) // world * world
        size = max(n for n in range(1, min(VALIDATION_BATCH, blocks // world) + 1) if blocks % (n * world) == 0)
        batches = evaluation_batches(
            self.setting.corpus, "validation", blocks=blocks, batch=size, masking=study.data.masking
        )
        mine = batches[self.ranks.rank :: world]

        def validate() -> dict[str, float]:
            sums = [0.0, 0.0, 0.0]
            begun = time.monotonic()
            flop = 0
            for batch in mine:
                batch = batch.to(trial.engine.device)
                terms = trial.engine.evaluate(batch, Signals(), VALIDATION)
                sums = [
                    sums[0] + terms["loss"].item(),
                    sums[1] + terms["hits"].item(),
                    sums[2] + batch.labels_N.numel(),
                ]
                size = batch.input_ids_BT.shape
                flop += VALIDATION_NEEDS.forward_flops(
                    trial.trainee.shape, sequences=size[0], length=size[1], masked=batch.labels_N.numel()
                )
            loss, hits, count, flops, seconds = self.ranks.add([*sums, flop, time.monotonic() - begun])
            trial.ledger.post(
                [
                    Charge(Account.EVALUATION, int(flops), Unit.FLOP),
                    Charge(Account.EVALUATION, seconds, Unit.GPU_SECOND, "measured"),
                ],
                step=trial.progress.step,
            )
            return {"mlm_loss": loss / count, "mlm_accuracy": hits / count}

        return validate

    def snapshots(self, trial: Trial) -> Callable[[int, float], None]:
        """Weights at each point of the curve, for read-outs made after training; removed once read."""

        def snapshot(point: int, fraction: float) -> None:
            weights = trial.engine.weights(trial.trainee.student)
            if self.ranks.is_main:
                folder = trial.directory / "snapshots"
                folder.mkdir(exist_ok=True)
                unique = {id(v.untyped_storage()): k for k, v in weights.items()}
                save_file({k: weights[k] for k in unique.values()}, folder / f"{point}.safetensors")
                place = {
                    "step": trial.progress.step, "fraction": fraction, "spent": trial.ledger.spent,
                    "seconds": trial.ledger.amount(Account.STUDENT_STEP, Unit.GPU_SECOND)
                    + trial.ledger.amount(Account.TEACHER_FORWARD, Unit.GPU_SECOND),
                }  # fmt: skip
                write_json(folder / f"{point}.json", place)

        return snapshot
