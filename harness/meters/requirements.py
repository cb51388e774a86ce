"""Can this machine keep this budget? Asked once, before anything is spent."""

from __future__ import annotations

from harness.errors import ConfigError, IsoBudgetError
from harness.meters import node
from harness.meters.energy import require_energy_source
from harness.ranks import Ranks
from harness.units import Unit


def refuse_mixed_currencies(unit: Unit, *, budget: str, allowed: frozenset[str]) -> None:
    """Raises ConfigError for leave to compare arms from different hardware or numbers of ranks in a measured unit."""
    changed = sorted(allowed & {"hardware", "world_size"})
    if changed and not unit.deterministic:
        raise ConfigError(
            f"--allow {','.join(changed)} with a budget of {budget}",
            rule=f"{unit}s of different hardware are different currencies: the arms would not have had equal cost",
            remedy="use the hardware of the finished arms, a budget in flop or tokens, or another --out",
        )


def require(unit: Unit, *, budget: str, ranks: Ranks, allowed: frozenset[str]) -> None:
    """Every rank calls it together.

    Raises:
        ConfigError: a budget in energy on a node where nothing measures all of it; or leave to compare arms
            from different hardware or numbers of ranks in a measured unit, where that decides the cut.
    """
    refuse_mixed_currencies(unit, budget=budget, allowed=allowed)
    if unit is Unit.JOULE:
        failure: IsoBudgetError | None = None
        here = node.find(ranks)
        if here.reads:
            try:
                require_energy_source(repr(budget), here.uuids)
            except IsoBudgetError as error:
                failure = error
        ranks.agree(failure)
