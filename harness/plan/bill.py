"""From seconds of devices to what somebody pays: energy, money and carbon. Unknown stays unknown, never 0."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import ConfigError

JOULE_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Terms:
    """What the user knows: price of one device-hour held, its currency, watts of a device, the grid's grams per kWh."""

    price: float | None = None
    currency: str = ""
    watts: float | None = None
    grid_g_per_kwh: float | None = None

    def __post_init__(self) -> None:
        for flag, value in (("--price", self.price), ("--watts", self.watts), ("--grid", self.grid_g_per_kwh)):
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{flag} {value}", rule="it is a number of at least 0", remedy="give one")


@dataclass(frozen=True)
class Bill:
    """busy_s: seconds devices compute, summed; held_s: seconds devices are held, computing or not."""

    busy_s: float
    held_s: float
    energy_j: float | None
    money: float | None
    carbon_g: float | None


def bill(busy_s: float, held_s: float, *, watts: float | None, terms: Terms) -> Bill:
    """Money is for what is held, energy for what is busy: a waiting device draws a fraction of its power."""
    energy = None if watts is None else watts * busy_s
    money = None if terms.price is None else terms.price * held_s / 3600
    grid = terms.grid_g_per_kwh
    carbon = None if energy is None or grid is None else energy / JOULE_PER_KWH * grid
    return Bill(busy_s, held_s, energy, money, carbon)
