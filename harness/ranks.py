"""Who takes part in a run, and how ranks agree on something small.

Control messages travel over gloo on the CPU even when tensors travel over NCCL, so that agreeing never
waits for the GPU.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.errors import IsoBudgetError, Preempted, refusals


@dataclass
class Ranks:
    """This process among all of a run."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def placed(self) -> bool:
        return UNSAID not in (self.local_rank, self.local_world)

    def place(self, hosts: list[str]) -> None:
        """Find what the launcher left unsaid in every rank's host: which of those here this one is, and how many they are."""
        here = [rank for rank, host in enumerate(hosts) if host == hosts[self.rank]]
        self.local_rank = here.index(self.rank) if self.local_rank == UNSAID else self.local_rank
        self.local_world = len(here) if self.local_world == UNSAID else self.local_world

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Rank 0 acts; its result, or the error it met, reaches every rank, so none waits for another.

        Raises:
            CheckpointError: also when the system refuses it a file or a folder, as on a full disk.
        """
        outcome: tuple[Any, IsoBudgetError | None] = (None, None)
        if self.is_main:
            try:
                with refusals():
                    outcome = (action(), None)
            except IsoBudgetError as error:
                outcome = (None, error)
        value, error = self.share(outcome)
        if error is not None:
            raise error
        return value

    def agree(self, error: IsoBudgetError | None) -> None:
        """Raise the first error any rank met, on every rank; ranks that met none pass their None.

        A rank that only stopped because another failed says Preempted: that is raised where nobody met anything else,
        or a scheduler would start again what cannot succeed.
        """
        errors = [e for e in self.gather(error) if e is not None]
        if errors:
            raise next((e for e in errors if not isinstance(e, Preempted)), errors[0])

    def together(self, action: Callable[[], Any]) -> Any:
        """Every rank acts on what is its own; the first error any of them met is raised on every rank.

        Raises:
            CheckpointError: also when the system refuses any of them a file or a folder.
        """
        result, error = None, None
        try:
            with refusals():
                result = action()
        except IsoBudgetError as met:
            error = met
        self.agree(error)
        return result

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def add(self, values: list[float]) -> list[float]:
        """Element-wise sums over ranks, identical on every rank."""
        if self.world == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def barrier(self) -> None:
        if self.world > 1:
            self.add([0.0])

    def tell_all(self, word: str) -> None:
        """Leave a word for every rank without waiting for any."""
        if self.world > 1:
            _store().set(f"isobudget/{word}", "1")

    def was_told(self, word: str) -> bool:
        """Whether any rank left this word; asks the store and waits for no rank."""
        return self.world > 1 and _store().check([f"isobudget/{word}"])


def _store() -> Any:
    """The key-value store through which the ranks found each other; PyTorch has no public name for it."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


# A place on its machine that the launcher did not name; see `Ranks.place`.
UNSAID = -1

# (rank, world, local rank, local world) as each launcher spells them; the first complete set wins
_SPELLINGS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    # SLURM_NTASKS_PER_NODE is what the allocation asked for, and a step may have other numbers, a different one on each node.
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
)


def from_environment() -> Ranks:
    """What the launcher set: torchrun and DeepSpeed, Open MPI, MPICH and Intel MPI, Slurm's srun, or nothing.

    Under Slurm a lone `python` inside an allocation is one process, not a rank: it needs SLURM_STEP_ID > none
    and more than one task, which only srun gives it. With its PMI2 plugin srun sets PMI_RANK and PMI_SIZE too, and no
    local rank beside them. The local rank and their number are UNSAID where the launcher did not say them.
    """
    for rank, world, local_rank, local_world in _SPELLINGS:
        if rank in os.environ and world in os.environ:
            if rank == "SLURM_PROCID" and ("SLURM_STEP_ID" not in os.environ or os.environ[world] == "1"):
                continue
            if (
                rank == "PMI_RANK"
                and local_rank not in os.environ
                and {"SLURM_STEP_ID", "SLURM_LOCALID"} <= os.environ.keys()
            ):
                continue
            local = int(os.environ.get(local_rank, UNSAID))
            # DeepSpeed's launcher says LOCAL_SIZE.
            on_node = os.environ.get(local_world, "") or os.environ.get("LOCAL_SIZE", "")
            return Ranks(
                int(os.environ[rank]), int(os.environ[world]), local, int(on_node) if on_node.isdigit() else UNSAID
            )
    return Ranks()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
