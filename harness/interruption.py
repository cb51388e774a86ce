"""What a trial leaves for its next life, and how it goes on: checkpoints, the trunk, and the work that was lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import branch, checkpoint, identity, kept, resume, watchdog
from harness.budget import Account, Charge
from harness.rundir import SNAPSHOTS
from harness.rundir import replace as replace_file

if TYPE_CHECKING:
    from harness.train import Trial


def keep_trunk(trial: Trial) -> None:
    """Once, before the first step of the cooldown: what a run at a larger budget goes on from."""
    if trial.schedule.keep_trunk and not trial.progress.trunk:
        trial.progress.trunk = True
        save(trial, branch.TRUNK)


def save(trial: Trial, place: str = "checkpoints") -> None:
    """One checkpoint, of all ranks.

    Raises:
        CheckpointError: some rank could not write; on every rank, and the checkpoints of before are as they were.
    """
    watchdog.beat(f"the checkpoint of step {trial.progress.step}", patience=watchdog.LONG_WORK)
    trial.post_measured()
    trial.ranks.agree(trial.refused)  # or it would vouch for postings that no file holds
    trial.updates.read(trial.progress)
    trial.progress.energy = trial.measured.energy.tally.state()
    state = {
        "ledger": trial.ledger.state(), "progress": vars(trial.progress), "identity": trial.identity,
        "overrides": trial.overrides,
    }  # fmt: skip

    def write(folder: Path) -> None:
        resume.write(folder, engine=trial.engine, ranks=trial.ranks)

    with trial.measured.stage(Account.CHECKPOINT):
        # Not inside `write`: rank 0 alone has the file, and where that is refused the others would wait in DeepSpeed's barrier.
        trial.ranks.on_main(trial.ledger.sync)
        left_over = checkpoint.save(
            trial.directory / place, step=trial.progress.step, state=state, ranks=trial.ranks, write=write
        )
        trial.ranks.on_main(lambda: resume.note_made(trial.directory))
    if left_over:
        _tell(trial, [left_over])
    # A line after the state just saved: a resume that drops it keeps it in its account (see Ledger.lost_since).
    trial.post_measured()
    trial.ranks.agree(trial.refused)


def resume_trial(trial: Trial) -> bool:
    """Continue from the newest intact checkpoint; False when there is none to continue from.

    Raises:
        CheckpointError: none is intact or none is left of those made, it holds more than tensors, or what
            this run is differs from what wrote it and the difference is not allowed.
    """
    watchdog.beat("the search for an intact checkpoint", patience=watchdog.LONG_WORK)
    found = trial.ranks.on_main(lambda: resume.newest(trial.directory))
    if found is None:
        # Killed before its first checkpoint: all of it is lost, and the ledger starts again.
        lost = _lost_since(trial, trial.ledger.state())
        # With nothing lost too: half a line may be all that was written, and nothing may be written behind that.
        instead = [*lost, *_start_so_far(trial)] if lost else []
        trial.ranks.together(lambda: trial.ledger.restore(trial.ledger.state(), instead=instead))
        if lost and trial.watcher is not None:
            trial.watcher.say("no checkpoint was saved before the interruption: begins again; what it had done is LOST")
        return False
    folder, state, passed_over = found
    kept.check(state, kept.CheckpointState, of=folder / checkpoint.STATE)
    progress = kept.build(type(trial.progress), state["progress"], of=folder / checkpoint.STATE)
    then = state["identity"]
    if trial.ranks.share(branch.is_branch(trial.directory)):
        then = branch.as_own(then, trial.identity)
    changed = identity.permit(then, trial.identity, trial.allowed, what=f"a checkpoint of step {folder.name[5:]}")
    trial.overrides = identity.merge_overrides(state["overrides"], identity.merge_overrides(trial.overrides, changed))
    watchdog.beat(f"the reading of {folder.name}", patience=watchdog.LONG_WORK)
    resume.read(folder, engine=trial.engine, ranks=trial.ranks, written_by=then["world_size"]["ranks"])
    trial.ranks.on_main(lambda: checkpoint.set_aside(folder.parent, folder))
    longer = state["ledger"]["limit"] != trial.ledger.budget.limit
    ledger = resume.rebased(state["ledger"], trial.ledger) if changed or longer else state["ledger"]
    trial.progress = progress
    lost = _lost_since(trial, ledger)
    _tell(trial, [f"resumed from {folder.name}, because {reason}" for reason in passed_over])
    trial.measured.energy.tally.restore(trial.progress.energy)
    # A branch starts once, like any run: that its trunk had started too is in its ledger already.
    trial.resumed = not longer
    instead = [*lost, *_start_so_far(trial)]
    trial.ranks.together(lambda: trial.ledger.restore(ledger, instead=instead, step=trial.progress.step))
    if longer:
        # Milestones lie at fractions of a budget: this one's, from here on.
        trial.progress.passed = trial.ledger.fraction_spent
        trial.progress.trunk = False
    trial.ranks.on_main(
        lambda: forget_points(trial.directory, rows=trial.progress.metric_rows, step=trial.progress.step)
    )
    return True


def forget_points(trial: Path, *, rows: int, step: int) -> None:
    """Of what a trial noted on its way, keep this many rows, and the snapshots up to this step; it makes the others again."""
    metrics = trial / "metrics.jsonl"
    if metrics.exists():
        replace_file(metrics, b"".join(metrics.read_bytes().splitlines(keepends=True)[:rows]))
    for file in (trial / SNAPSHOTS).glob("*"):
        if file.stem.isdigit() and int(file.stem) > step:
            file.unlink()


def _tell(trial: Trial, found: list[str]) -> None:
    """Once each, onto the screen and into the record's warnings."""
    for text in found:
        if text not in trial.progress.warnings:
            trial.progress.warnings.append(text)
            if trial.watcher is not None:
                trial.watcher.say(text)


def _lost_since(trial: Trial, state: dict[str, Any]) -> list[Charge]:
    """Only rank 0 keeps the files that know what was lost; all ranks post it, so their ledgers stay equal."""
    left_behind = trial.open_time.left_behind() if trial.open_time is not None else []
    lost, unreadable = trial.ranks.on_main(
        lambda: ([*trial.ledger.lost_since(state), *left_behind], trial.ledger.unreadable_since(state))
    )
    if unreadable:
        _tell(trial, [f"{unreadable} lines of ledger.jsonl were unreadable: what they cost is not among the lost work"])
    return lost


def _start_so_far(trial: Trial) -> list[Charge]:
    """This start until now: a kill before the first step must not hide it."""
    trial.measured.starting()
    return as_started(trial, trial.measured.flush())


def as_started(trial: Trial, charges: list[Charge]) -> list[Charge]:
    """The first start is in the ledger already; that there is another is the interruption's doing."""
    return [replace(charge, account=Account.LOST) for charge in charges] if trial.resumed else charges
