"""Which process reads a node's instruments, and for which devices.

One reader per node: two processes that read one counter would count its energy twice.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from harness.hardware import has_cuda
from harness.ranks import Ranks


@dataclass(frozen=True)
class Node:
    """This process's node. `uuids` are the run's GPUs on it, as CUDA gives them; empty without GPUs.

    `index` counts nodes in the order of their first ranks; `reads` is true on one process per node.
    """

    index: int
    count: int
    reads: bool
    uuids: tuple[str, ...]


def own_uuid(ranks: Ranks) -> str | None:
    """The UUID of the GPU that this rank computes on; None without a GPU."""
    if not has_cuda():
        return None
    import torch

    return str(torch.cuda.get_device_properties(ranks.local_rank).uuid)


def find(ranks: Ranks) -> Node:
    """Agree on readers; every rank calls it together."""
    told: list[tuple[str, str | None]] = ranks.gather((socket.gethostname(), own_uuid(ranks)))
    hosts = list(dict.fromkeys(host for host, _ in told))
    mine = told[ranks.rank][0]
    return Node(
        index=hosts.index(mine),
        count=len(hosts),
        reads=next(rank for rank, (host, _) in enumerate(told) if host == mine) == ranks.rank,
        uuids=tuple(dict.fromkeys(uuid for host, uuid in told if host == mine and uuid is not None)),
    )
