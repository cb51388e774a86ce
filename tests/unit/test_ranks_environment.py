"""Who a process is, in the words of every launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import DataError, IsoBudgetError, Preempted
from harness.hardware import SPINS, WAITING
from harness.ranks import UNSAID, Ranks, from_environment

WORDS = {
    "torchrun": {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    "deepspeed": {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"},
    "openmpi": {
        "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    },
    "intel mpi": {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"},
    "srun": {
        "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "16", "SLURM_STEP_ID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    },
}  # fmt: skip
WORDS["srun with pmi2"] = WORDS["srun"] | {"PMI_RANK": "5", "PMI_SIZE": "8"}
# Intel's mpiexec starts one agent per machine with srun, and its ranks inherit what Slurm says of the agents.
WORDS["intel mpi over srun"] = WORDS["intel mpi"] | {
    "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0",
}  # fmt: skip
WORDS["a pod's operator"] = {"RANK": "5", "WORLD_SIZE": "8"}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in WORDS.values():
        for key in words:
            monkeypatch.delenv(key, raising=False)


@pytest.mark.parametrize("launcher", WORDS)
def test_every_launchers_words_name_the_same_rank(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in WORDS[launcher].items():
        monkeypatch.setenv(key, value)
    ranks = from_environment()
    assert ranks.placed == (launcher in ("torchrun", "deepspeed", "openmpi", "intel mpi", "intel mpi over srun"))
    assert (ranks.rank, ranks.world) == (5, 8)
    assert ranks.local_rank == (UNSAID if launcher == "a pod's operator" else 1)
    ranks.place(["a", "a", "a", "a", "b", "b", "b", "b"])
    assert ranks == Ranks(5, 8, 1, 4)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_places_that_no_launcher_said_number_the_ranks_of_every_host(hosts: list[str]) -> None:
    found: dict[str, list[Ranks]] = {}
    for rank, host in enumerate(hosts):
        ranks = Ranks(rank, len(hosts), UNSAID, UNSAID)
        ranks.place(hosts)
        found.setdefault(host, []).append(ranks)
    for there in found.values():
        assert [ranks.local_rank for ranks in there] == list(range(len(there)))
        assert {ranks.local_world for ranks in there} == {len(there)}


def test_a_lone_python_in_an_allocation_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in WORDS["srun"].items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SLURM_STEP_ID")
    assert from_environment() == Ranks()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_environment_says_how_they_wait(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    """Asked of a fresh process: OpenMP reads it once, when torch is loaded, so it must be set before."""
    code = (
        "import sys, json, os, contextlib, io\n"
        "from harness import cli, hardware\n"
        "assert 'torch' not in sys.modules\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    cli.main(['--help'])\n"
        "print(json.dumps(hardware.describe()['thread_waiting']))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **given}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_ranks_that_torchrun_restarted_around_a_shared_store_are_refused_at_once() -> None:
    """They would find the addresses of the dead ranks in it, and wait for half an hour."""
    restarted = WORDS["torchrun"] | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from harness.engine import connect; connect()"],
        env={**os.environ, **restarted}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "ConfigError: restarted by torchrun" in done.stderr
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in done.stderr


class Gathered(Ranks):
    """A rank that is told what the others met."""

    met: tuple[IsoBudgetError | None, ...] = ()

    def gather(self, value: object) -> list[object]:
        return list(self.met)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_what_made_others_stop_is_raised_and_not_that_they_stopped(order: tuple[int, ...]) -> None:
    met = (Preempted("stopped while other ranks fine-tune"), DataError("a student"), None)
    ranks = Gathered()
    ranks.met = tuple(met[i] for i in order)
    with pytest.raises(DataError, match="a student"):
        ranks.agree(None)
    ranks.met = (None, met[0], None)
    with pytest.raises(Preempted):
        ranks.agree(None)
