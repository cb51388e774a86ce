"""What a parameter's name tells of its place: read where no model is loaded, as in a record of a finished run."""

from __future__ import annotations

from collections.abc import Iterable


def within(names: Iterable[str], layers: int | None) -> list[str]:
    """The names that a model of so many layers still has, in their order; all of them where `layers` is None.

    A layer's parameters carry its index as the first number of their dotted name, in every family here.
    """
    return [name for name in names if layers is None or (place := layer_of(name)) is None or place < layers]


def layer_of(name: str) -> int | None:
    """The layer a parameter belongs to; None for embeddings, final norms and heads."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)
