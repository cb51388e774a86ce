"""What every block of a study file shares: frozen, and an unknown key is an error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import ConfigError

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Spec(BaseModel):
    """A frozen block of a study file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def explained(error: ValidationError, *, where: str) -> ConfigError:
    """The first offending key of a block, its value and the rule it broke, as an error a user can act on."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"]) or "study"
    given = "" if isinstance(first.get("input"), dict) else f" = {first.get('input')!r}"
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    return ConfigError(f"{path}{given}", rule=message, remedy=f"correct it in {where}")
