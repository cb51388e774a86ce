"""Conducts a study: trains what is missing, evaluates what is missing, reports.

Every (arm, seed) is one trial with its own directory and record. A finished directory given new arms,
seeds or evaluations runs only those.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import alarms, branch, controls, environment, kept
from harness.budget import Account, Charge, Ledger
from harness.compiling import compile_ahead, refuse_to_compile
from harness.curve import VALIDATION_BATCH, snapshots, validation
from harness.data.stream import evaluation_batches
from harness.engine import Engine, device_of
from harness.errors import ConfigError, NumericError, Preempted
from harness.evaluate.subject import Subject
from harness.evaluate.vouch import BLOCKS, Voucher, frequency_loss, vouch
from harness.executed import executed_flop
from harness.hardware import has_cuda
from harness.interruption import forget_points
from harness.kernels import backend
from harness.lookahead import Lookahead
from harness.manifest import make_folder, sync
from harness.meters import node
from harness.meters.efficiency import Denominator, denominator
from harness.meters.measured import Measured
from harness.meters.open_time import OpenTime
from harness.meters.pace import Pace
from harness.meters.trial import Instruments, bare
from harness.models.student import build_student, export
from harness.models.teacher import Teacher
from harness.progress import Silent
from harness.ranks import Ranks
from harness.remember import stream_of
from harness.rundir import CACHE_SHARDS, RunDirectory, write_json
from harness.stopping import StopFlag
from harness.teacher_backends import settle
from harness.teaching import asked_teacher, remembered_teacher
from harness.train import Trial
from harness.trainee import Trainee, parameter_groups
from harness.trial_record import card, efficiency_record, trial_record
from harness.units import Unit, format_amount
from harness.watchdog import LONG_WORK, Watchdog, beat, watch

if TYPE_CHECKING:
    from harness.setting import ArmSetting, Setting
    from harness.teacher_cache.shards import RememberedTeacher

# Added to an arm's seed for its projections, so that they never share draws with the student's weights.
PROJECTION_STREAM = 1_000_003


@dataclass
class Conductor:
    """One study on these ranks."""

    setting: Setting
    directory: RunDirectory
    ranks: Ranks
    tell: Silent
    command: str = ""
    resume: bool = False
    hang_timeout_s: float | None = None
    allowed: frozenset[str] = frozenset()
    follow: Callable[[dict[str, str], dict[str, Any]], None] | None = None
    hung: Callable[[str], None] = lambda found: None
    """Told beside the directory's status when the run hangs, before its processes end."""
    keeps_diverged: bool = False
    """A trial that diverges is recorded as that, and the next one begins: for a search. Else it ends the run."""
    overrides: list[Any] = field(default_factory=list)
    admitted: bool = False

    def run(
        self, only: Collection[tuple[str, int]] | None = None, controls_of: Collection[tuple[str, int]] = ()
    ) -> None:
        """Train and evaluate every missing trial and control.

        With `only`, a job's share: train those of these (arm, seed), and the controls of `controls_of`; no evaluation.

        Raises:
            Preempted: a signal asked to stop; the run can be resumed.
            TeacherError: a teacher cannot be used; no trial has begun.
            NumericError, CheckpointError: from a trial; finished trials are kept. NumericError not with `keeps_diverged`.
        """
        with StopFlag(self.ranks) as stop, self.watch() as watched:
            if watched.off:
                self.tell.say(f"hangs are not watched for: {watched.off}")
            missing = self.missing()
            if only is not None:
                missing = [(arm, seed) for arm, seed in missing if (arm.arm.name, seed) in only]
            if missing:
                self.ranks.on_main(self.refuse_mixed_precision)
                self.admit()
            self.admitted = True
            beat("the comparison of teachers with untrained students", patience=LONG_WORK)
            vouchers = self.ranks.on_main(lambda: self.vouchers(missing))
            said = [alarm.text for (arm, _), v in vouchers.items() for alarm in alarms.weak_teacher(vars(v), arm=arm)]
            for text in dict.fromkeys(said):
                self.tell.say(f"alarm: {text}")
            for arm, seed in missing:
                self.train(arm, seed, stop, vouchers.get((arm.arm.name, seed)))
            for control in self.missing_controls() if only is None or controls_of else []:
                if only is not None and (control.of, control.seed) not in controls_of:
                    continue
                self.train(self.setting.arms[control.arm], control.seed, stop, None, control=control)
            if only is not None:
                return
            from harness.evaluate.suite import Suite

            Suite(self.setting, self.directory, self.ranks, self.tell, stop).run()

    def watch(self) -> Watchdog:
        """Ends the run, resumable, when no rank moves any more; names the rank that all wait for."""

        def record(found: str) -> None:
            self.directory.status("interrupted", exit_code=Preempted.exit_code, message=f"hang: {found}")
            self.hung(found)

        return watch(self.directory.signs, self.ranks, timeout_s=self.hang_timeout_s, record=record)

    def missing(self) -> list[tuple[ArmSetting, int]]:
        """Trials without a finished record, in the order they will run; the same on every rank."""
        trials = [(arm, seed) for seed in self.setting.study.seeds for arm in self.setting.arms.values()]
        done = self.ranks.on_main(
            lambda: [kept.finished(self.directory.record(arm.arm.name, seed)) for arm, seed in trials]
        )
        return [trial for trial, finished in zip(trials, done, strict=True) if not finished]

    def missing_controls(self) -> list[controls.Control]:
        """Controls of finished contestants that have not run; they come after every contestant."""

        def find() -> list[controls.Control]:
            root = self.directory.root
            wanted = controls.wanted(self.setting.study, root)
            return [control for control in wanted if not controls.finished(control, root)]

        found: list[controls.Control] = self.ranks.on_main(find)
        if found:
            self.admit()
        return found

    @cached_property
    def identity(self) -> dict[str, dict[str, Any]]:
        """What ran, for resuming; ranks ask for it together the first time."""
        return environment.identity(self.setting, self.ranks)

    def admit(self) -> None:
        """Refuse to go on with other code, data or hardware than the directory's, unless that was allowed."""
        identity = self.identity
        self.overrides = self.ranks.on_main(lambda: self.directory.admit(identity, self.allowed))

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
        """Load every teacher that will be needed, and compare it with the student it is to teach. Rank 0 only.

        The student has random weights here even where it will start from the teacher's: it might equal the teacher.
        """
        study, corpus, device = self.setting.study, self.setting.corpus, device_of(self.ranks)
        teachers: dict[str, Subject] = {}
        found: dict[tuple[str, int], Voucher] = {}
        if all(arm.teacher is None for arm, _ in missing):
            return found
        batches = evaluation_batches(
            corpus, "validation", blocks=min(BLOCKS, len(corpus.blocks("validation"))), batch=VALIDATION_BATCH,
            masking=study.data.masking, causal=study.causal,
        )  # fmt: skip
        counted = frequency_loss(corpus, batches)
        for arm, seed in missing:
            if arm.teacher is None or arm.study.teacher is None:
                continue
            path = arm.teacher.path
            beat(f"the comparison of {path} with the untrained student of {arm.arm.name}", patience=LONG_WORK)
            if path not in teachers:
                model = Teacher(arm.teacher, device=device, dtype=torch.float32).family.model
                teachers[path] = Subject(model, device=device)
            found[arm.arm.name, seed] = vouch(
                teachers[path], Subject(build_student(arm.config, seed=seed), device=device), batches,
                frequency_loss=counted, name=path, allow_worse=arm.study.teacher.allow_worse,
            )  # fmt: skip
        return found

    # -- one trial -----------------------------------------------------------------------------------
    def train(
        self, arm: ArmSetting, seed: int, stop: StopFlag, voucher: Voucher | None,
        control: controls.Control | None = None,
    ) -> None:  # fmt: skip
        """One trial from start to record; with `control` in the control's folder and for the control's tokens."""
        folder = control.folder(self.directory.root) if control else self.directory.trial(arm.arm.name, seed)
        # A control trains for the tokens of another arm, which may be more than its own budget buys.
        steps = -(-control.tokens // arm.size.tokens) if control else None

        def prepare() -> None:
            # What a trial left that never saved a checkpoint and was not asked to resume; or a control as it was
            # defined before, whose work nothing can go on from.
            anew = not self.resume and not branch.is_branch(folder)
            if folder.exists() and (anew or (control and controls.superseded(control, self.directory.root))):
                shutil.rmtree(folder)
            make_folder(folder)
            if control:
                write_json(folder / controls.DEFINITION, control.record())

        self.ranks.on_main(prepare)

        def note_shards(there: int) -> None:
            self.ranks.on_main(lambda: write_json(folder / CACHE_SHARDS, {"shards": there}))

        remembered = remembered_teacher(
            arm, self.setting.corpus, seed=seed, ranks=self.ranks, stop=stop, tell=self.tell.say, written=note_shards,
            steps=steps,
        )  # fmt: skip
        started = time.monotonic()
        beat(f"the start of {arm.arm.name}, seed {seed}")
        self.ranks.barrier()
        path = folder / "ledger.jsonl" if self.ranks.is_main else None
        ledger = control.ledger(path) if control else arm.ledger(path=path)
        instruments = Instruments(self.ranks, self.node, folder, unit=ledger.budget.unit, started=started)
        note = OpenTime(
            folder if self.ranks.is_main else None, ledger=ledger, wall=instruments.measured.wall, held=self.ranks.world
        )
        with instruments, note:
            self._train(arm, seed, stop, voucher, control, ledger, instruments, remembered, note)
        gc.collect()
        self.ranks.barrier()

    def _train(
        self, arm: ArmSetting, seed: int, stop: StopFlag, voucher: Voucher | None, control: controls.Control | None,
        ledger: Ledger, instruments: Instruments, remembered: RememberedTeacher | None, note: OpenTime,
    ) -> None:  # fmt: skip
        folder = control.folder(self.directory.root) if control else self.directory.trial(arm.arm.name, seed)
        trial = self.trial(arm, seed, folder, stop, ledger=ledger, measured=instruments.measured, remembered=remembered)
        trial.open_time = note
        begun = self.ranks.share(branch.is_branch(folder))
        resumed = (self.resume or begun) and trial.resume()
        if not resumed:
            asked = [
                Charge(Account.EVALUATION, voucher.flop, Unit.FLOP),
                Charge(Account.EVALUATION, voucher.seconds, Unit.GPU_SECOND, "measured"),
            ] if voucher else []  # fmt: skip
            self.ranks.together(lambda: trial.ledger.post([*arm.upfront(), *asked], step=0))
            self.ranks.on_main(lambda: forget_points(folder, rows=0, step=0))
        places = environment.topology(self.ranks)

        def describe() -> None:
            facts = environment.record(
                self.setting,
                self.ranks,
                command=self.command,
                resolved_engine=trial.engine.resolved_config,
                places=places,
            )
            # Beside the trial too: several jobs may share the study, each on machines of its own.
            for place in (self.directory.root, folder):
                write_json(place / "environment.json", facts)

        self.ranks.on_main(describe)
        label = f"{control.label if control else arm.arm.name} · seed {seed}"
        if trial.trainee.compiled:
            beat(f"compiling the student of {label}", patience=LONG_WORK)
            compile_ahead(trial)
        self.tell.begin(label, trial.ledger.budget.limit, trial.ledger.budget.unit)
        diverged = ""
        try:
            trial.run()
        except NumericError as error:
            if not self.keeps_diverged:
                raise
            diverged = str(error)
            trial.settle()
        finally:
            self.tell.end()
        spent = instruments.facts(grid_g_per_kwh=arm.study.accounting.grid_g_per_kwh)
        beat(f"the end of {label}", patience=2.0)
        weights = None if diverged else trial.engine.weights(trial.trainee.student)
        peak = self.denominator  # on every rank: its ranks ask each other

        def keep() -> None:
            record = trial_record(arm, seed, trial, voucher, corpus=self.setting.corpus.fingerprint)
            record |= {"control": control.record() if control else None, "branched": branch.facts(folder), **spent}
            record["efficiency"] = efficiency_record(record, peak)
            if weights is None:
                record |= {"state": kept.DIVERGED, "diverged": diverged}
            else:
                export(
                    arm.config, weights, folder / "student", tokenizer=self.setting.tokenizer, card=card(record),
                    layers=record["exported_layers"],
                )  # fmt: skip
                # The weights are on the disk before the record says so, and the record before the checkpoints go.
                for place in [*(folder / "student").iterdir(), folder / "student"]:
                    sync(place)
            write_json(folder / "record.json", record)
            sync(folder)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            self.tell.say(
                f"{label}: {record['steps']:,} steps, {format_amount(record['tokens'], Unit.TOKEN)}, "
                f"{format_amount(record['charged'], trial.ledger.budget.unit)} charged, {record['seconds']:.0f} device s"
            )
            if diverged:
                self.tell.say(f"{label}: {diverged}; it counts as a trial and is not scored")
            for alarm in alarms.of_trial(kept.whole_objects(folder / "metrics.jsonl"), record):
                self.tell.say(f"alarm: {alarm.text}")

        self.ranks.on_main(keep)
        self.ranks.on_main(trial.ledger.close)
        trial.engine.close()

    @cached_property
    def node(self) -> node.Node:
        """Who reads this machine's instruments; all ranks ask together."""
        return node.find(self.ranks)

    @cached_property
    def denominator(self) -> Denominator:
        """The peak that MFU and HFU are shares of; all ranks ask together."""
        return denominator(self.ranks, half=self.setting.ds_config.precision != "fp32")

    def trial(
        self, arm: ArmSetting, seed: int, folder: Path, stop: Callable[[], bool], *, ledger: Ledger | None = None,
        measured: Measured | None = None, remembered: RememberedTeacher | None = None,
    ) -> Trial:  # fmt: skip
        """Student, objective, engine, teacher, stream, ledger and meters of one trial.

        A teacher that is remembered is asked all the same where `remembered` is None: for steps that are timed, not kept.
        """
        study, setting = arm.study, self.setting
        self.choose_kernels()
        student = arm.student(seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + PROJECTION_STREAM)
            plan = arm.plan()
        torch.manual_seed(seed)  # dropout, where a study has any
        trainee = Trainee(student, arm.shape, plan, recompute=setting.ds_config.activation_checkpointing)
        groups = parameter_groups(trainee, arm.teacher.shape if arm.teacher else None, study.optimizer)
        executed, uncounted = self.executed(trainee, arm) if ledger is not None else (None, "")
        engine = Engine(
            trainee, groups.groups, setting.ds_config, sequences=study.batch.sequences, ranks=self.ranks,
            betas=study.optimizer.betas, eps=study.optimizer.eps, clip=study.optimizer.clip,
        )  # fmt: skip
        trainee.compiled = study.speed.compile_student
        stream = stream_of(study, setting.corpus, seed=seed, micro_batch=engine.micro_batch, ranks=self.ranks)
        teacher, cache = remembered or asked_teacher(arm, plan, setting.ds_config, self.ranks), None
        ahead = None
        if isinstance(teacher, Teacher):
            if study.speed.overlap_teacher and teacher.placement != "divided":
                ahead = Lookahead(teacher, engine.device)
            beat(f"the choice of a teacher's backend for {arm.arm.name}", patience=LONG_WORK)
            settle(
                teacher, study.speed.teacher_backend, first=lambda: stream.step(0)[0].to(engine.device), folder=folder,
                needs=plan.all_teacher_needs, device=engine.device, ranks=self.ranks,
            )  # fmt: skip
        if remembered is not None:
            cache = arm.cache_meter(
                plan, fresh=lambda: stream.repeats.fresh(trial.progress.step, sequences=stream.sequences),
                seconds=remembered.seconds_per_sample,
            )  # fmt: skip
        ledger = ledger or arm.ledger(path=folder / "ledger.jsonl" if self.ranks.is_main else None)
        measured = measured or bare(self.ranks, unit=ledger.budget.unit)
        trial = Trial(
            directory=folder, trainee=trainee, groups=groups, engine=engine, teacher=teacher, stream=stream,
            corpus=setting.corpus, ledger=ledger, meters=[*arm.analytic_meters(plan, cache), measured], measured=measured,
            schedule=study.schedule, peak_lr=study.optimizer.lr, ranks=self.ranks, watcher=self.tell,
            identity=environment.trial_identity(self.identity, arm, seed, engine.facts()), allowed=self.allowed,
            overrides=list(self.overrides),
            curve_points=study.evaluation.curve_points, saves=study.checkpoints, stop_requested=stop,
            pace=Pace(self.ranks, cuda=has_cuda()), executed=executed, uncounted=uncounted,
            lookahead=ahead,
        )  # fmt: skip
        if self.follow is not None:
            label = folder.relative_to(self.directory.root).as_posix() if "controls" in folder.parts else arm.arm.name
            trial.follow = partial(self.follow, {"study": study.name, "arm": label, "seed": str(seed)})
        if plan.trains_head:
            trial.validate = validation(trial, study=setting.study, corpus=setting.corpus, ranks=self.ranks)
        if study.evaluation.readout is not None and study.evaluation.readout.on_curve:
            trial.snapshot = snapshots(trial, ranks=self.ranks)
        return trial

    def choose_kernels(self) -> None:
        """Say once what the losses run on.

        Raises:
            ConfigError: Triton asked for where it cannot run; only `auto` falls back, and its record says why.
        """
        wanted, precision = self.setting.study.speed.kernels, self.setting.ds_config.precision
        if wanted == "triton" and (not has_cuda() or precision == "fp32"):
            raise ConfigError(
                "speed.kernels triton", rule="there is no GPU here" if not has_cuda() else f"its kernels do not compute {precision}",
                remedy="choose auto, or a ds_config in half precision on a GPU",
            )  # fmt: skip
        backend.forget()
        backend.prefer(wanted)
        if self.setting.study.speed.compile_student:
            refuse_to_compile(self.setting.ds_config)

    def executed(self, trainee: Trainee, arm: ArmSetting) -> tuple[list[int] | None, str]:
        """FLOPs that student and objective execute in one global step, phase by phase; or None and why not."""
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}
        autocast = next((dtype for name, dtype in half.items() if name in self.setting.ds_config.precision), None)
        shape = arm.teacher.shape if arm.teacher else None
        trainee.to(device_of(self.ranks))
        return executed_flop(trainee, shape, arm.size, autocast=autocast)
