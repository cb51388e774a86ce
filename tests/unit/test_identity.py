"""A resumed run is the one it continues, or says in what it is not."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness import identity, random_state, resume
from harness.budget import Account, Budget, Charge, Ledger, parse_postings
from harness.errors import CheckpointError, ConfigError
from harness.units import Unit

THEN = {
    "study": {"optimizer": {"lr": 0.001}, "seed": 1},
    "data": {"corpus": "abc"},
    "code": {"source": "111", "commit": "c1", "torch": "2.13"},
    "hardware": {"devices": ["CPU A"], "threads_per_rank": 1},
    "world_size": {"ranks": 2},
    "engine": {"precision": "fp32", "zero_stage": 1, "world_size": 2, "micro_batch": 4, "accumulation": 1},
}


def changed(kind: str, **facts: object) -> dict:
    return {**THEN, kind: {**THEN[kind], **facts}}


def test_the_same_is_allowed_and_recorded_as_nothing() -> None:
    assert identity.permit(THEN, THEN, frozenset(), what="a checkpoint") == []


@pytest.mark.parametrize(
    ("kind", "facts", "said"),
    [
        ("study", {"optimizer": {"lr": 0.002}}, r"study: optimizer.lr was 0.001, is 0.002"),
        ("data", {"corpus": "xyz"}, "data: corpus was abc, is xyz"),
        ("code", {"source": "222", "commit": "c2"}, r"code: source \(commit c1 → c2\) was 111, is 222"),
        ("hardware", {"devices": ["CPU B"]}, "hardware: devices was .'CPU A'., is .'CPU B'."),
        ("world_size", {"ranks": 3}, "world_size: ranks was 2, is 3"),
        ("engine", {"micro_batch": 2, "accumulation": 2}, "engine: accumulation was 1, is 2"),
    ],
)
def test_a_difference_is_refused_by_name_unless_its_kind_is_allowed(kind: str, facts: dict, said: str) -> None:
    now = changed(kind, **facts)
    with pytest.raises(CheckpointError, match=f"{said}.*--allow {kind}"):
        identity.permit(THEN, now, frozenset(set(identity.KINDS) - {kind}), what="a checkpoint")
    recorded = identity.permit(THEN, now, frozenset({kind}), what="a checkpoint")
    assert recorded
    assert {override["kind"] for override in recorded} == {kind}


def test_another_commit_of_the_same_files_is_the_same_code() -> None:
    assert identity.differences(THEN, changed("code", commit="c9")) == []


def test_a_tree_whose_kernels_are_a_link_and_one_whose_are_a_folder_are_the_same_code(
    root: Path, tmp_path: Path
) -> None:
    """A checkout and the wheel made of it: a run begun from one goes on from the other."""
    ignore = shutil.ignore_patterns("__pycache__", "assets")
    linked, copied = tmp_path / "checkout" / "harness", tmp_path / "wheel" / "harness"
    shutil.copytree(root / "harness", linked, symlinks=True, ignore=ignore)
    shutil.copytree(root / "kernels", linked.parent / "kernels", ignore=ignore)
    shutil.copytree(root / "harness", copied, symlinks=False, ignore=ignore)
    assert (linked / "kernels").is_symlink()
    assert not (copied / "kernels").is_symlink()
    assert identity.hash_of(linked) == identity.hash_of(copied) == identity.source_hash()
    kernel = next(path for path in sorted((copied / "kernels").rglob("*.py")))
    kernel.write_text(kernel.read_text() + "\n")
    assert identity.hash_of(copied) != identity.source_hash(), "what trains is hashed, kernels too"


@pytest.mark.slow
def test_an_installed_wheel_is_the_code_of_its_checkout(root: Path, tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", "records")
    shutil.copytree(root, tmp_path / "source", symlinks=True, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    made = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path / "source"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    place = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", place, wheel], check=True, capture_output=True)
    said = subprocess.run(
        [sys.executable, "-c", "from harness import identity; print(identity.__file__, identity.source_hash())"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(place)}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert said == [str(place / "harness" / "identity.py"), identity.source_hash()]


def test_what_follows_from_the_number_of_ranks_needs_no_permission_of_its_own() -> None:
    now = {**changed("world_size", ranks=1), "engine": {**THEN["engine"], "world_size": 1, "micro_batch": 8}}
    now["hardware"] = {"devices": ["CPU A"], "threads_per_rank": 2}
    assert len(identity.permit(THEN, now, frozenset({"world_size"}), what="a checkpoint")) == 1
    threads_alone = changed("hardware", threads_per_rank=2)
    with pytest.raises(CheckpointError, match="threads_per_rank"):
        identity.permit(THEN, threads_alone, frozenset(), what="a checkpoint")


def test_another_layout_of_the_optimizer_is_never_allowed() -> None:
    with pytest.raises(CheckpointError, match="zero_stage was 1, is 2.*another layout"):
        identity.permit(THEN, changed("engine", zero_stage=2), frozenset(identity.KINDS), what="a checkpoint")


def test_a_checkpoint_that_does_not_say_what_made_it_is_refused() -> None:
    with pytest.raises(CheckpointError, match="code: source .* was None"):
        identity.permit({}, {"code": THEN["code"]}, frozenset(), what="a checkpoint")


def test_only_known_kinds_can_be_allowed() -> None:
    assert identity.parse_kinds("code, world_size") == {"code", "world_size"}
    assert identity.parse_kinds(None) == frozenset()
    with pytest.raises(ConfigError, match="--allow 'everything'.*study, data, code"):
        identity.parse_kinds("everything")


def test_a_ledger_continues_under_another_budget_with_what_was_posted() -> None:
    old = Ledger(Budget(1000, Unit.FLOP), charged=frozenset({Account.STUDENT_STEP}))
    old.post([Charge(Account.STUDENT_STEP, 300, Unit.FLOP), Charge(Account.TEACHER_FORWARD, 200, Unit.FLOP)], step=0)
    new = Ledger(Budget(600, Unit.FLOP), charged=frozenset({Account.STUDENT_STEP, Account.TEACHER_FORWARD}))
    new.restore(resume.rebased(old.state(), new))
    assert new.spent == 500
    assert new.remaining == 100
    small = Ledger(Budget(400, Unit.FLOP), charged=new.charged)
    with pytest.raises(CheckpointError, match="500 flop are spent"):
        resume.rebased(old.state(), small)


@given(
    prices=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    kills=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), max_size=6),
)
def test_however_often_it_is_interrupted_a_ledger_ends_as_the_uninterrupted_one(
    prices: list[int], kills: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Steps, a kill, a restore of any earlier state as it was or rebased, again and again: all but LOST is equal, and
    LOST is exactly the work that was done in vain."""
    folder, charged, worked = tmp_path_factory.mktemp("ledger"), frozenset({Account.STUDENT_STEP}), 0

    def opened(name: str) -> Ledger:
        return Ledger(Budget(200, Unit.FLOP), charged=charged, path=folder / name)

    def postings(name: str) -> list[dict]:
        rows = parse_postings((folder / name).read_text()) if (folder / name).exists() else []
        return [row for row in rows if all(charge[0] != "LOST" for charge in row["charges"])]

    def go_on(ledger: Ledger, states: list[dict], until: int) -> int:
        done = 0
        for step in range(len(states) - 1, min(until, len(prices))):
            ledger.post([Charge(Account.STUDENT_STEP, prices[step], Unit.FLOP)], step=step)
            states.append(json.loads(json.dumps(ledger.state())))
            done += prices[step]
        return done

    calm = opened("calm")
    go_on(calm, [calm.state()], len(prices))
    ledger = opened("killed")
    states = [ledger.state()]
    for until, back, rebase in kills:
        worked += go_on(ledger, states, until)
        del states[1 + min(back, len(states) - 1) :]
        ledger = opened("killed")
        state = resume.rebased(states[-1], ledger) if rebase else states[-1]
        ledger.restore(state, instead=ledger.lost_since(state), step=len(states) - 1)
    worked += go_on(ledger, states, len(prices))
    assert ledger.spent == calm.spent
    assert postings("killed") == postings("calm")
    assert ledger.spent + ledger.amount(Account.LOST, Unit.FLOP) == worked


@pytest.mark.parametrize("waiting", [False, True], ids=["no Gaussian waiting", "a Gaussian waiting"])
def test_every_generator_goes_on_where_it_was(tmp_path: Path, waiting: bool) -> None:
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    if waiting:
        random.gauss(0, 1)
        np.random.standard_normal()

    def draws() -> list[float]:
        return [
            random.gauss(0, 1),
            random.random(),
            np.random.standard_normal(),
            np.random.random(),
            torch.rand(()).item(),
        ]

    random_state.write(tmp_path / "random.safetensors")
    first = draws()
    draws()
    random_state.restore(tmp_path / "random.safetensors")
    assert draws() == first
