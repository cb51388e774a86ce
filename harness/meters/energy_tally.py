"""What a trial's energy adds up to: joules by account, how much of the time they speak for, how sure they are.

Sums over nodes that every rank holds alike; kept in checkpoints, so that a resumed trial goes on counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.budget import Account

ACCOUNTS: tuple[Account, ...] = (Account.STUDENT_STEP, Account.STARTUP, Account.EVALUATION, Account.CHECKPOINT)


def share(covered_s: float, device_s: float) -> float:
    """Coverage; exactly 1 when only the rounding of many small spans is missing."""
    if device_s <= 0:
        return 0.0
    return 1.0 if covered_s >= device_s * (1 - 1e-9) else covered_s / device_s


@dataclass
class EnergyTally:
    """Joules per account; `joules` is None where nothing was measured, never 0 for want of an instrument.

    inside_j and ends_j are the two parts of the uncertainty: what spans add up, and what only the outermost
    ends of consecutive spans contribute (see EnergyReading). `spreadless` counts readings that stated none.
    """

    by_account: dict[Account, float] = field(default_factory=dict[Account, float])
    device_s: float = 0.0
    covered_s: float = 0.0
    inside_j: float = 0.0
    ends_j: float = 0.0
    spreadless: int = 0

    @property
    def joules(self) -> float | None:
        return sum(self.by_account.values()) if self.by_account else None

    @property
    def coverage(self) -> float:
        """Covered device-seconds over all that were metered, 0..1."""
        return share(self.covered_s, self.device_s)

    @property
    def uncertainty_j(self) -> float | None:
        return None if self.joules is None or self.spreadless else self.inside_j + self.ends_j

    def add(
        self, joules: Mapping[Account, float], *, device_s: float, covered_s: float, inside_j: float, ends_j: float,
        spreadless: int,
    ) -> None:  # fmt: skip
        """One posting's sums over nodes."""
        for account, amount in joules.items():
            self.by_account[account] = self.by_account.get(account, 0.0) + amount
        self.device_s += device_s
        self.covered_s += covered_s
        self.inside_j += inside_j
        self.ends_j = max(self.ends_j, ends_j)
        self.spreadless += spreadless

    # -- resuming ------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        return {
            "by_account": {account.value: joules for account, joules in self.by_account.items()},
            "numbers": [self.device_s, self.covered_s, self.inside_j, self.ends_j, self.spreadless],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`; an empty mapping is a trial that never counted energy."""
        if not state:
            return
        self.by_account = {Account(name): float(joules) for name, joules in state["by_account"].items()}
        numbers: Sequence[float] = state["numbers"]
        self.device_s, self.covered_s, self.inside_j, self.ends_j = (float(number) for number in numbers[:4])
        self.spreadless = int(numbers[4])
