"""The communication model's laws: a lone rank never waits, more of anything never costs less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan import scaling
from harness.plan.machines import parse_on
from harness.plan.scaling import Fabric, Link, Traffic

LINK = Link(byte_s=1e9, round_s=1e-5)
COUNTS = st.integers(1, 64)
SIZES = st.floats(0, 1e12)


def ring(ranks: int, per_node: int | None = None, link: Link = LINK, outer: Link = LINK) -> Fabric:
    return Fabric(ranks, per_node or ranks, link, outer)


@given(size=SIZES)
def test_a_lone_rank_never_waits(size: float) -> None:
    assert scaling.all_reduce(size, ring(1)) == 0
    assert scaling.seconds(Traffic(size, size, 4, 8), ring(1)) == 0


@given(size=st.floats(1e6, 1e12), ranks=st.integers(2, 64))
def test_a_ring_moves_its_textbook_volume(size: float, ranks: int) -> None:
    """2 (n − 1) / n of the data over every link, and 2 (n − 1) rounds."""
    expected = 2 * (ranks - 1) / ranks * size / LINK.byte_s + 2 * (ranks - 1) * LINK.round_s
    assert scaling.all_reduce(size, ring(ranks)) == pytest.approx(expected)


@given(size=SIZES, more=SIZES, ranks=COUNTS)
def test_more_bytes_and_more_ranks_never_take_less(size: float, more: float, ranks: int) -> None:
    assert scaling.all_reduce(size + more, ring(ranks)) >= scaling.all_reduce(size, ring(ranks))
    assert scaling.all_reduce(size, ring(ranks + 1)) >= scaling.all_reduce(size, ring(ranks))


@given(size=st.floats(1e3, 1e12), nodes=st.integers(2, 16))
def test_leaving_the_node_costs_time(size: float, nodes: int) -> None:
    inside = scaling.all_reduce(size, ring(8))
    assert scaling.all_reduce(size, ring(8 * nodes, per_node=8)) > inside


def test_stages_exchange_what_zero_says() -> None:
    """Against Rajbhandari et al. 2020, §7: stages 0 to 2 move 2Ψ, stage 3 moves 3Ψ, for a single micro-batch."""
    net = ring(8, link=Link(1e9, 0.0))
    once = scaling.half_reduce(1e9, net)
    for stage, volumes in ((0, 2), (1, 2), (2, 2), (3, 3)):
        step = scaling.traffic(stage=stage, gradient_bytes=1e9, weight_bytes=1e9, accumulation=1)
        assert scaling.seconds(step, net) == pytest.approx(volumes * once)
    fourfold = {s: scaling.traffic(stage=s, gradient_bytes=1e9, weight_bytes=1e9, accumulation=4) for s in range(4)}
    assert [scaling.seconds(fourfold[s], net) / once for s in range(4)] == pytest.approx([2, 2, 5, 12])


@given(talking=st.floats(0, 10), backward=st.floats(0, 10))
def test_overlap_hides_no_more_than_the_backward(talking: float, backward: float) -> None:
    plain, hidden = (scaling.exposed(talking, backward, overlap=o) for o in (False, True))
    assert plain == talking
    assert 0 <= hidden <= plain
    assert plain - hidden <= backward + 1e-12


def test_efficiency_falls_with_nodes_and_is_whole_on_one_device() -> None:
    found = []
    for text in ("h200", "8xh200", "16xh200", "64xh200", "512xh200"):
        net = scaling.fabric(parse_on(text))
        step = scaling.traffic(stage=1, gradient_bytes=132e6, weight_bytes=132e6, accumulation=1)
        found.append(scaling.efficiency(0.03, scaling.seconds(step, net)))
    assert found[0] == 1
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < 1
