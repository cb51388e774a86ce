"""Joining the ranks of a run, and the device of each."""

from __future__ import annotations

import atexit
import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from harness.engine.library import deepspeed_library
from harness.errors import ConfigError
from harness.hardware import has_cuda, usable_cores
from harness.ranks import Ranks, free_port, from_environment

# This process's ranks once it has joined them: a process joins once, however many studies it runs.
_joined: list[Ranks] = []


# How long an exchange of tensors waits for a rank, and one of control messages. The latter wait for whatever one rank
# does alone, such as building a corpus on its node or measuring every student: hangs are the watchdog's to end.
TENSORS_S, CONTROL_S = 1800.0, 6 * 3600.0


def connect(*, timeout_s: float = TENSORS_S, control_s: float = CONTROL_S) -> Ranks:
    """Join the ranks of this run (one process when no launcher set an environment) and set its threads.

    Args:
        timeout_s: how long joining and exchanges of tensors wait for a rank.
        control_s: how long control messages wait.
    """
    if _joined:
        return _joined[0]
    ranks = from_environment()
    os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    os.environ.setdefault("MASTER_PORT", str(free_port() if ranks.world == 1 else 29500))
    os.environ.update({"RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.world)})
    if ranks.world > 1:
        _refuse_a_dead_rendezvous()
    # Kept until the ranks have joined, on its server: closed before, it would close that for the others.
    store = None if ranks.placed else _place(ranks, timedelta(seconds=timeout_s))
    os.environ["LOCAL_RANK"] = str(ranks.local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        # DeepSpeed's launcher sets nothing: two ranks on two cores would run four threads and crawl.
        torch.set_num_threads(max(1, usable_cores() // ranks.local_world))
    deepspeed = deepspeed_library()
    backend = "nccl" if has_cuda() else "gloo"
    if has_cuda():
        torch.cuda.set_device(ranks.local_rank)
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=timeout_s)
    )
    del store
    # Not at the end of a study: DeepSpeed keeps references to the group, and a process may run several studies.
    atexit.register(_leave)
    if ranks.world > 1:
        ranks.control = dist.new_group(backend="gloo", timeout=timedelta(seconds=control_s))
    _joined.append(ranks)
    return ranks


def _place(ranks: Ranks, timeout: timedelta) -> Any:
    """Count who is on which host, where the launcher named ranks without their places; returns the store they met in.

    Before they join: each is bound to its device then.
    """
    if ranks.world == 1:
        ranks.place([""])
        return None
    store, *_ = next(rendezvous("env://", timeout=timeout))
    keys = [f"isobudget/host/{rank}" for rank in range(ranks.world)]
    store.set(keys[ranks.rank], socket.gethostname())
    store.wait(keys, timeout)
    ranks.place([host.decode() for host in store.multi_get(keys)])
    return store


def _refuse_a_dead_rendezvous() -> None:
    """Ranks that torchrun starts anew must not look for each other in the store of those that died.

    torchrun lends the ranks its agent's store and keeps it across restarts without a prefix for each (torch 2.13,
    torch/distributed/elastic/rendezvous/dynamic_rendezvous.py); gloo then finds the addresses of dead ranks and waits
    for them until its time is out. Which restart this is cannot be told over several agents: each counts its own.
    """
    if (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    ):
        raise ConfigError(
            "restarted by torchrun", rule="its ranks would wait for those that died: torchrun keeps their addresses",
            remedy="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, as launchers/torchrun.sh does, and start again",
        )  # fmt: skip


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def device_of(ranks: Ranks) -> torch.device:
    return torch.device("cuda", ranks.local_rank) if has_cuda() else torch.device("cpu")
