"""A match between training loops: ours and every peer that can run here, on the same weights and the same batches.

Runners take turns in rounds, each on the same slice of batches. The first steps of every call are dropped: some build
their loop anew each time, compilers compile. Afterwards all must have learnt the same, judged by the masked
cross-entropy of a held-out batch against one named loop's (`REFERENCE`); whoever did not gets no figure, and nobody gets
one where that loop is missing. Ours also has to take the definition's first step.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import harness
from harness.bench import peers
from harness.bench.bare import Bare
from harness.bench.peers import _contest, naive_relations, pytorch_loop
from harness.bench.timing import percentiles, wait
from harness.data.batch import Batch
from harness.errors import ConfigError
from harness.models.configs import auto_model
from harness.models.teacher import resolve
from harness.study import ArmSpec

if TYPE_CHECKING:
    from harness.conduct import Conductor
    from harness.setting import ArmSetting

OBJECTIVES: dict[str, str | dict[str, Any]] = {
    "mlm": "mlm",
    "soft_targets": {"name": "soft_targets", "temperature": _contest.TEMPERATURE, "alpha": _contest.ALPHA},
}
# Whose held-out loss is the truth: the simplest loop that computes the objective.
REFERENCE = {
    "mlm": pytorch_loop.NAME,
    "soft_targets": pytorch_loop.NAME,
    "minilmv2": naive_relations.NAME,
}
MOST_RELATION_HEADS = 48
OURS = "isobudget"
ROUNDS = 4
DROPPED = 2
# Loops order their sums differently; after some dozens of AdamW steps their losses still agree to this share.
AGREEMENT = {"fp32": 1e-4, "half": 2e-2}


class Ours:
    """The study's own engine step."""

    def __init__(self, conductor: Conductor, arm: ArmSetting, folder: Path) -> None:
        self._trial = conductor.trial(arm, 0, folder, lambda: False)
        self._trial.engine.set_learning_rate(arm.study.optimizer.lr, active=self._trial.groups.active[0])
        self.model: nn.Module = self._trial.trainee.student

    def run(self, batches: list[Batch]) -> list[float]:
        seconds = []
        for batch in batches:
            wait(self._trial.engine.device)
            begun = time.perf_counter()
            self._trial._step([batch], 0)
            wait(self._trial.engine.device)
            seconds.append(time.perf_counter() - begun)
        return seconds

    def close(self) -> None:
        self._trial.engine.close()


def contend(conductor: Conductor, *, steps: int) -> dict[str, Any]:
    """Time about `steps` steps of ours and of every peer, objective by objective.

    Raises ConfigError where the global batch is not one micro-batch, or the student has dropout.

    Returns {objective: [row, …]} and the rule; a row has the name, its version, p20/50/80, tokens/s, its step over ours,
    the held-out loss, and `ok`; a peer that is not installed or failed has `why` instead of times.
    """
    setting = conductor.setting
    sequences = setting.study.batch.sequences
    micro = setting.ds_config.micro_batch(sequences=sequences, world=1)
    if micro != sequences:
        raise ConfigError(
            f"--peers with batch.sequences {sequences} in micro-batches of {micro}",
            rule="every loop takes the global batch as one micro-batch",
            remedy=f"--set batch.sequences={micro}, or a ds_config whose train_micro_batch_size_per_gpu is {sequences}",
        )
    if dropout := setting.study.student.dropout:
        raise ConfigError(
            f"--peers with student.dropout {dropout:g}",
            rule="loops draw other masks, so nothing could tell which is wrong",
            remedy="--set student.dropout=0",
        )
    objectives = dict(OBJECTIVES)
    arms = conductor.setting.arms.values()
    if teacher := next((arm.teacher for arm in arms if arm.teacher is not None), None):
        common = math.gcd(next(iter(arms)).shape.hidden, teacher.shape.hidden)
        heads = max(n for n in range(1, min(common, MOST_RELATION_HEADS) + 1) if common % n == 0)
        objectives["minilmv2"] = {"name": "minilmv2", "relation_heads": heads}
    return {
        "rule": f"{ROUNDS} rounds in turns; the first {DROPPED} steps of each call are dropped; "
        "no figure unless the held-out loss agrees with the reference's: "
        + "; ".join(f"{k}: {v}" for k, v in REFERENCE.items()),
        "objectives": {
            name: _match(conductor, name, objective, steps=steps)
            for name, objective in objectives.items()
            if teacher is not None or name == "mlm"
        },
    }


def _match(conductor: Conductor, objective: str, given: Any, *, steps: int) -> list[dict[str, Any]]:
    arm = conductor.setting.arm(ArmSpec(name=f"bench_{objective}", objective=given))
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(conductor, arm, Path(folder))
        trial = ours._trial
        device = trial.engine.device
        per_round = DROPPED + max(1, -(-steps // ROUNDS))
        batches = [trial.stream.step(i)[0].to(device) for i in range(ROUNDS * per_round + 1)]
        contest = _contest_of(conductor, arm, trial, device)
        runners: dict[str, Any] = {OURS: ours}
        rows: dict[str, dict[str, Any]] = {OURS: {"name": OURS, "version": harness.__version__}}
        _, wrong = Bare(conductor, arm, trial).check(batches[0])
        for peer in peers.discover():
            if objective in peer.OBJECTIVES:
                rows[peer.NAME] = {"name": peer.NAME, "version": _version(peer)}
                if lacking := peers.missing(peer):
                    rows[peer.NAME]["why"] = f"not installed: {', '.join(lacking)}"
                else:
                    _attempt(
                        rows[peer.NAME],
                        lambda peer=peer: runners.__setitem__(peer.NAME, peer.build(contest, objective)),
                    )
        times: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(ROUNDS):
            part = batches[number * per_round : (number + 1) * per_round]
            for name in list(runners):

                def play(name: str = name, part: list[Batch] = part) -> None:
                    times[name] += runners[name].run(part)[DROPPED:]

                if not _attempt(rows[name], play):
                    runners.pop(name)
        for name, runner in runners.items():
            rows[name]["held_out_loss"] = _contest.held_out_loss(runner.model, batches[-1])
        ours.close()
    if wrong is not None:
        rows[OURS]["why"] = wrong
    tokens = batches[0].token_count
    tolerance = AGREEMENT["half" if contest.half else "fp32"]
    _judge(rows, times, tokens=tokens, tolerance=tolerance, reference=REFERENCE[objective])
    return list(rows.values())


def _judge(
    rows: dict[str, dict[str, Any]], times: dict[str, list[float]], *, tokens: float, tolerance: float, reference: str
) -> None:
    """Give times to every row whose loss agrees with the reference's, ours included; to none where that has no loss."""
    expected = rows.get(reference, {}).get("held_out_loss")
    for name, row in rows.items():
        if "held_out_loss" not in row or "why" in row:
            continue
        if expected is None:
            row["why"] = f"nothing to hold its loss against: {reference} did not run"
            continue
        row["ok"] = abs(row["held_out_loss"] - expected) <= tolerance * abs(expected)
        if row["ok"]:
            row["step"] = percentiles(times[name])
            row["tokens_per_s"] = tokens / (row["step"]["p50_ms"] * 1e-3)
        else:
            row["why"] = f"its loss {row['held_out_loss']:.4f} is not {reference}'s {expected:.4f}"
    ours = rows[OURS].get("step")
    for row in rows.values():
        if ours and "step" in row:
            row["over_ours"] = row["step"]["p50_ms"] / ours["p50_ms"]


def _attempt(row: dict[str, Any], action: Any) -> bool:
    """Run a peer's code; whatever it raises becomes its row's reason, because it is not ours to mend."""
    try:
        with redirect_stdout(io.StringIO()):  # some print their logs among our JSON
            action()
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        row["why"] = f"failed: {type(error).__name__}: {lines[0][:160]}"
        return False
    return True


def _contest_of(conductor: Conductor, arm: ArmSetting, trial: Any, device: torch.device) -> _contest.Contest:
    initial: Any = arm.student(seed=0)
    initial.set_attn_implementation("sdpa")
    dtype = trial.teacher.dtype if trial.teacher is not None else torch.float32
    teacher: Any = nn.Identity()
    if arm.teacher is not None:
        teacher = auto_model(arm.teacher.shape.family).from_pretrained(
            resolve(arm.teacher.path), attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False,
            local_files_only=True, dtype=dtype,
        )  # fmt: skip
        teacher = teacher.to(device).eval().requires_grad_(False)
    return _contest.Contest(
        arm=arm, recipe=arm.study.optimizer, initial=initial.to(device), teacher=teacher, device=device,
        half=conductor.setting.ds_config.precision != "fp32",
    )  # fmt: skip


def _version(peer: ModuleType) -> str:
    name = peer.REQUIRES[0] if peer.REQUIRES else "torch"
    return f"{name} {version(name)}" if not peers.missing(peer) else ""


def show_match(table: dict[str, Any]) -> None:
    """Print every objective's contest, fastest first."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for objective, rows in table["objectives"].items():
        absent: list[str] = []
        view = Table(title=objective, title_justify="left")
        for heading in ("loop", "step, ms", "p20–p80", "tokens/s", "over ours", "loss"):
            view.add_column(heading, justify="left" if heading == "loop" else "right")
        for row in sorted(rows, key=lambda row: row.get("over_ours", float("inf"))):
            if "step" in row:
                step = row["step"]
                view.add_row(
                    row["name"], f"{step['p50_ms']:.1f}", f"{step['p20_ms']:.1f}–{step['p80_ms']:.1f}",
                    f"{row['tokens_per_s']:,.0f}", f"{row['over_ours']:.2f}×", f"{row['held_out_loss']:.4f}",
                )  # fmt: skip
            else:
                absent.append(f"{row['name']}: {row['why']}")
        console.print(view)
        for line in absent:
            console.print(line, highlight=False, markup=False)
    console.print(table["rule"], highlight=False)
