"""How long ranks talk: ring collectives over the links inside a node and between nodes, by ZeRO stage.

A ring of n ranks needs n − 1 rounds for a reduce-scatter or an all-gather, each moving 1/n of the data over the
slowest link; an all-reduce is both. Over nodes the data is first reduced inside every node, then across, each
device with its own share and its own network card. docs/scaling.md has the measured constants and the checks.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.plan.machines import Machine

# Shares of a link's stated bandwidth that large collectives reach, and the time of one round however small.
LINK_SHARE = 0.8
ROUND_S = 10e-6
NETWORK_ROUND_S = 25e-6
# Of the communication, what hides behind the backward pass when the engine overlaps the two.
OVERLAPPED = 0.7


@dataclass(frozen=True)
class Link:
    """What a rank sends to the next one, bytes per second in one direction, and the seconds any round takes."""

    byte_s: float
    round_s: float


@dataclass(frozen=True)
class Fabric:
    """`ranks` devices, `per_node` of them behind `inner` links; nodes are joined by `outer` ones."""

    ranks: int
    per_node: int
    inner: Link
    outer: Link

    @property
    def nodes(self) -> int:
        return self.ranks // self.per_node


def fabric(machine: Machine) -> Fabric:
    """The links of a preset at the share of their bandwidth that collectives reach."""
    preset = machine.preset
    return Fabric(
        machine.devices, machine.per_node, Link(LINK_SHARE * preset.link_byte_s, ROUND_S),
        Link(LINK_SHARE * preset.network_byte_s, NETWORK_ROUND_S),
    )  # fmt: skip


def half_ring(size: float, ranks: int, link: Link) -> float:
    """Seconds of a reduce-scatter or an all-gather of `size` bytes over a ring; 0 for a single rank."""
    return (ranks - 1) * (link.round_s + size / ranks / link.byte_s)


def half_reduce(size: float, net: Fabric) -> float:
    """Seconds of a reduce-scatter or an all-gather of `size` bytes over all ranks, node by node."""
    return half_ring(size, net.per_node, net.inner) + half_ring(size / net.per_node, net.nodes, net.outer)


def all_reduce(size: float, net: Fabric) -> float:
    return 2 * half_reduce(size, net)


@dataclass(frozen=True)
class Traffic:
    """What one optimizer step exchanges, in bytes of the whole model: gradients and weights, and how often each."""

    gradient_bytes: float
    weight_bytes: float
    reductions: int
    gathers: int


def traffic(*, stage: int, gradient_bytes: float, weight_bytes: float, accumulation: int) -> Traffic:
    """ZeRO's collectives in one step of `accumulation` micro-batches.

    0: gradients are all-reduced once, which is a reduction and a gather of them. 1: gradients are reduced once,
    updated weights gathered once. 2: gradients are reduced in every micro-batch. 3: weights are also gathered
    for every forward and every backward, and never again after the update.
    """
    if stage == 0:
        return Traffic(gradient_bytes, gradient_bytes, 1, 1)
    if stage == 3:
        return Traffic(gradient_bytes, weight_bytes, accumulation, 2 * accumulation)
    return Traffic(gradient_bytes, weight_bytes, accumulation if stage == 2 else 1, 1)


def seconds(step: Traffic, net: Fabric) -> float:
    """Time of a step's collectives when nothing hides them."""
    if net.ranks == 1:
        return 0.0
    return step.reductions * half_reduce(step.gradient_bytes, net) + step.gathers * half_reduce(step.weight_bytes, net)


def exposed(talking_s: float, backward_s: float, *, overlap: bool) -> float:
    """What of the communication a step waits for: the part that is not overlapped, and what outlasts the backward."""
    hidden = min(OVERLAPPED * talking_s, backward_s) if overlap else 0.0
    return talking_s - hidden


def efficiency(compute_s: float, exposed_s: float) -> float:
    """Share of a step that a rank computes: weak-scaling efficiency where `compute_s` does not depend on ranks."""
    return compute_s / (compute_s + exposed_s)
