"""An update that is skipped on the device is skipped as one that the host lets pass, and no step waits to learn of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from harness import checkpoint, cli, train
from harness.engine import Engine, connect
from harness.engine import engine as engine_module
from harness.train import Progress
from harness.updates import MAX_SKIPPED_IN_A_ROW, READ_STEPS, Updates, diverged
from tests.support import engine_ranks
from tests.support.tiny import TinyStudy

NAN = float("nan")
MODES = {
    "fp32": {}, "bf16": {"bf16": {"enabled": True}}, "bf16-autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
}  # fmt: skip


@pytest.fixture
def device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, here."""
    monkeypatch.setattr(engine_module, "decides_on_device", lambda device: True)


# -- counting ------------------------------------------------------------------------------------------
def told(flags: list[bool], *, on_device: bool) -> Progress:
    updates, progress = Updates(), Progress()
    for flag in flags:
        updates.note(torch.tensor(flag) if on_device else flag, progress)
        if diverged(progress):
            return progress
    updates.read(progress)
    return progress


@pytest.mark.parametrize("before", [0, 3, 15, 16])
@pytest.mark.parametrize("bad", [1, MAX_SKIPPED_IN_A_ROW - 1, MAX_SKIPPED_IN_A_ROW])
@pytest.mark.parametrize("after", [0, 1, 40])
def test_flags_read_late_are_counted_as_flags_read_at_once(before: int, bad: int, after: int) -> None:
    flags = [True] * before + [False] * bad + [True] * after
    at_once, late = told(flags, on_device=False), told(flags, on_device=True)
    assert at_once.skipped == late.skipped == bad
    assert diverged(at_once) == diverged(late) == (bad == MAX_SKIPPED_IN_A_ROW)
    assert at_once.skipped_in_a_row == late.skipped_in_a_row


def test_a_divergence_is_noticed_before_another_reading_is_due() -> None:
    for before in range(READ_STEPS):
        updates, progress, late = Updates(), Progress(), 0
        for number in range(10**3):
            updates.note(torch.tensor(number < before), progress)
            late = number + 1 - before - MAX_SKIPPED_IN_A_ROW
            if diverged(progress):
                break
        assert 0 <= late < READ_STEPS


# -- the engine ----------------------------------------------------------------------------------------
def states(engine: Engine) -> list[torch.Tensor]:
    """Weights, moments and counts of steps of everything that trains."""
    optimizer = engine._client
    held = [p.detach() for p in engine._trained]
    return [x.clone() for x in held + [optimizer.state[p][key] for p in engine._trained for key in optimizer.state[p]]]


def trained(config: Any, poisoned: set[int], steps: int = 6) -> tuple[list[list[torch.Tensor]], list[bool]]:
    engine = engine_ranks.build(config, connect())
    seen, flags = [], []
    for step in range(steps):
        engine.set_learning_rate(1e-2 * (step + 1), active=[True, True])
        ids = torch.randint(0, engine_ranks.VOCAB, (8, 5), generator=torch.Generator().manual_seed(step))
        loss = engine(ids)["total"]
        engine.backward(loss * NAN if step in poisoned else 40 * loss)  # above the limit of 1: it is clipped
        flags.append(bool(engine.step()))
        seen.append(states(engine))
    engine.close()
    return seen, flags


@pytest.mark.parametrize("mode", ["fp32", "bf16-autocast"])
def test_a_skip_decided_by_the_device_leaves_every_bit_as_one_decided_by_the_host(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = engine_ranks.config_of(0, "fp32", micro=8)
    config.tree.update(MODES[mode])
    expected, by_host = trained(config, {2, 3})
    monkeypatch.setattr(engine_module, "decides_on_device", lambda device: True)
    found, by_device = trained(config, {2, 3})
    assert by_host == by_device == [True, True, False, False, True, True]
    for theirs, mine in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(theirs, mine, strict=True))
    for skipped in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(found[1], found[skipped], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(found[3], found[4], strict=True))


@pytest.mark.usefixtures("device_decides")
def test_a_first_update_that_is_skipped_is_no_update() -> None:
    config = engine_ranks.config_of(0, "fp32", micro=8)
    found, flags = trained(config, {0})
    assert flags[0] is False
    untrained = engine_ranks.build(config, connect())
    assert all(torch.equal(a, b) for a, b in zip(states(untrained), found[0], strict=False))
    assert not any(x.any() for x in found[0][len(untrained._trained) :]), "moments and counts are zero"
    untrained.close()


# -- a run ---------------------------------------------------------------------------------------------
def poison(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    """Gradients of the steps `first` … `last` are no numbers."""
    at, step_of, backward_of = [0], train.Trial._step, Engine.backward

    def stepping(trial: Any, *arguments: Any) -> Any:
        at[0] = trial.progress.step
        return step_of(trial, *arguments)

    def backward(engine: Any, loss: torch.Tensor) -> None:
        backward_of(engine, loss * NAN if first <= at[0] <= last else loss)

    monkeypatch.setattr(train.Trial, "_step", stepping)
    monkeypatch.setattr(Engine, "backward", backward)


def run(tiny: TinyStudy, out: Path, budget: str, *, stage: int = 0, checkpoints: int = 1, **mode: Any) -> int:
    out.mkdir(parents=True)
    file = tiny.write(
        out / "study.yaml", arms=[{"name": "no_kd", "objective": "mlm"}], budget=budget, checkpoints=checkpoints,
        evaluation={"curve_points": 0, "mlm_blocks": 4, "readout": {"steps": 1, "positions": 8, "blocks": 4}},
    )  # fmt: skip
    (out / "engine.json").write_text(json.dumps({"zero_optimization": {"stage": stage}, **mode}), encoding="utf-8")
    return cli.main(["run", "--study", str(file), "--out", str(out / "run"), "--ds_config", str(out / "engine.json")])


def end(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    trial = out / "run/arms/no_kd/seed-1"
    row = json.loads((trial / "record.json").read_text(encoding="utf-8"))
    return row, load_file(trial / "student/model.safetensors")


def test_a_run_whose_skips_are_read_late_is_the_same_run(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ledger, weights, count of skips; and a checkpoint between two readings knows of every skip before it."""
    saved: list[dict[str, Any]] = []
    save_of = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda *a, state, **k: (saved.append(dict(state["progress"])), save_of(*a, state=state, **k))[1]
    )  # fmt: skip
    poison(monkeypatch, 3, 4)
    assert run(tiny, tmp_path / "host", "2 Gflop") == 0
    monkeypatch.setattr(engine_module, "decides_on_device", lambda device: True)
    assert run(tiny, tmp_path / "device", "2 Gflop") == 0
    capsys.readouterr()
    (row, weights), (row_late, weights_late) = end(tmp_path / "host"), end(tmp_path / "device")
    assert row["skipped_steps"] == row_late["skipped_steps"] == 2
    assert row["steps"] == row_late["steps"] > READ_STEPS
    assert row["charged"] == row_late["charged"]
    assert all(torch.equal(weights[name], weights_late[name]) for name in weights)
    assert saved[0]["step"] < READ_STEPS, "the flags were not due"
    assert [each["skipped"] for each in saved] == [2, 2]


@pytest.mark.usefixtures("device_decides")
def test_a_run_that_diverged_is_given_up_though_it_is_learnt_late(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, 3, 10**9)
    assert run(tiny, tmp_path / "run", "4 Gflop", checkpoints=0) == 5
    assert "25 steps in a row" in capsys.readouterr().err
    status = json.loads((tmp_path / "run/run/status.json").read_text(encoding="utf-8"))
    step = int(status["message"].split("now step ")[1].split(")")[0])
    assert 3 + MAX_SKIPPED_IN_A_ROW <= step < 3 + MAX_SKIPPED_IN_A_ROW + READ_STEPS


# -- waiting -------------------------------------------------------------------------------------------
class Reads(TorchDispatchMode):
    """Counts operations whose result the host needs: on a GPU it waits for them."""

    WAITING = frozenset(
        {
            "aten._local_scalar_dense.default",
            "aten.nonzero.default",
            "aten.equal.default",
            "aten.masked_select.default",
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) in self.WAITING:
            self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads_per_step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often each step waited."""
    counts: list[int] = []
    step_of = train.Trial._step
    # DeepSpeed's ZeRO-3 puts its own in this place for the whole process; it is put back after the test.
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)

    def stepping(trial: Any, *arguments: Any) -> Any:
        with Reads() as reads:
            terms = step_of(trial, *arguments)
        counts.append(sum(reads.count.values()))
        return terms

    monkeypatch.setattr(train.Trial, "_step", stepping)
    return counts


@pytest.mark.usefixtures("device_decides")
@pytest.mark.parametrize(
    ("stage", "mode", "waits"),
    [(0, "fp32", 0), (0, "bf16-autocast", 0), (1, "fp32", 3), (1, "bf16", 4), (2, "fp32", 3), (3, "fp32", 1)],
)  # fmt: skip
def test_how_often_a_step_waits_for_the_device(
    stage: int,
    mode: str,
    waits: int,
    reads_per_step: list[int],
    tiny: TinyStudy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Never under ZeRO-0, where the check of gradients is ours; under ZeRO 1 to 3 no more often than DeepSpeed does."""
    assert run(tiny, tmp_path / "run", "2 Gflop", stage=stage, checkpoints=0, **MODES[mode]) == 0
    capsys.readouterr()
    settled = reads_per_step[4 : READ_STEPS - 1]
    assert len(settled) == READ_STEPS - 5
    assert max(settled) <= waits


def test_a_step_whose_update_the_host_decides_waits_once(
    reads_per_step: list[int], tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the count above would find if the flag were read: it does see such a wait."""
    assert run(tiny, tmp_path / "run", "1 Gflop", checkpoints=0) == 0
    capsys.readouterr()
    assert set(reads_per_step[4:]) == {1}
