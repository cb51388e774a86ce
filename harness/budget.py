"""Budgets and ledgers: what a run may cost, and what it did cost, account by account.

Pure Python, no torch. A ledger is asked before a step whether the step fits, and is told after it
what the step cost. It never learns about models or clocks; meters do that.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from harness.errors import CheckpointError, ConfigError, refused_by_system
from harness.units import Quantity, Unit, format_amount, parse_quantity


class Account(StrEnum):
    """What a cost was for. Every account is reported; a study's accounting says which are charged."""

    STUDENT_STEP = "STUDENT_STEP"
    TEACHER_FORWARD = "TEACHER_FORWARD"
    OBJECTIVE = "OBJECTIVE"
    TEACHER_TRAINING = "TEACHER_TRAINING"
    TEACHER_CACHE = "TEACHER_CACHE"
    EVALUATION = "EVALUATION"
    CHECKPOINT = "CHECKPOINT"
    STARTUP = "STARTUP"
    TUNING = "TUNING"
    LOST = "LOST"


@dataclass(frozen=True)
class Budget:
    """One limit in one unit, shared by every arm of a study."""

    limit: int | float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget as users write it; see `harness.units.parse_quantity` for the errors."""
        quantity: Quantity = parse_quantity(text)
        return cls(quantity.amount, quantity.unit)

    def __str__(self) -> str:
        return format_amount(self.limit, self.unit)


@dataclass(frozen=True)
class Charge:
    """An amount of one unit spent for one account.

    `source` is "analytic", "measured", or "predicted" where an instrument failed and its share was filled up.
    """

    account: Account
    amount: int | float
    unit: Unit
    source: str = "analytic"


def total(charges: Iterable[Charge], unit: Unit, accounts: frozenset[Account]) -> int | float:
    """The sum of the charges that are in `unit` and belong to `accounts`; exact for integers."""
    return sum((c.amount for c in charges if c.unit is unit and c.account in accounts), start=0)


class Ledger:
    """Append-only record of every charge; never exceeds the budget in a deterministic unit.

    A posting is one step's charges. With a path, each posting is one line of JSON, written to the
    operating system at once and fsynced by `sync()` (called with every checkpoint and at the end).
    Ranks hold identical ledgers; only rank 0 has a path.
    """

    def __init__(self, budget: Budget, *, charged: frozenset[Account], path: Path | None = None) -> None:
        self.budget = budget
        self.charged = charged
        self.postings = 0
        self._sums: dict[tuple[Account, Unit], int | float] = {}
        self._spent: int | float = 0
        self._path = path
        self._file: IO[str] | None = None
        self.clocked = 0
        """Tells the file's last line with seconds from any other line; 0 before there is one."""
        if path is not None and path.exists():
            self.clocked = _last_clocked(path.read_text(encoding="utf-8", errors="replace"))

    # -- asking ------------------------------------------------------------------------------------
    @property
    def spent(self) -> int | float:
        """Charged so far, in the budget's unit."""
        return self._spent

    @property
    def remaining(self) -> int | float:
        return self.budget.limit - self._spent

    @property
    def fraction_spent(self) -> float:
        """In [0, 1]; drives the learning rate and every schedule."""
        return min(1.0, self._spent / self.budget.limit)

    def price(self, charges: Iterable[Charge]) -> int | float:
        """What these charges would take from the budget."""
        return total(charges, self.budget.unit, self.charged)

    def affords(self, charges: Iterable[Charge]) -> bool:
        """True when posting these charges keeps the ledger within its limit."""
        return self.price(charges) <= self.remaining

    def amount(self, account: Account, unit: Unit) -> int | float:
        return self._sums.get((account, unit), 0)

    def charged_in(self, unit: Unit) -> int | float:
        """What the charged accounts took in any unit, the budget's or another: the other currency of a verdict."""
        return sum((self._sums.get((account, unit), 0) for account in sorted(self.charged)), start=0)

    def accounts(self) -> dict[str, dict[str, int | float]]:
        """{account: {unit: amount}} over everything posted, charged or only reported."""
        table: dict[str, dict[str, int | float]] = {}
        for (account, unit), amount in sorted(self._sums.items()):
            table.setdefault(account.value, {})[unit.value] = amount
        return table

    # -- telling -----------------------------------------------------------------------------------
    def post(self, charges: Iterable[Charge], *, step: int) -> None:
        """Record one step's charges.

        Raises:
            ConfigError: a charge is negative, or would break the limit of a deterministic budget.
            CheckpointError: the file cannot be written, as on a full disk.
        """
        row = self._enter(tuple(charges), step)
        if self._path is not None:
            self._write(row)

    def _enter(self, charges: tuple[Charge, ...], step: int) -> str:
        """Count the charges; returns their line of the file."""
        if any(c.amount < 0 for c in charges):
            raise ConfigError(f"a negative charge at step {step}", rule="costs are never negative")
        price = self.price(charges)
        if self.budget.unit.deterministic and price > self.remaining:
            raise ConfigError(
                f"a charge of {price} {self.budget.unit} at step {step}",
                rule=f"only {self.remaining} of {self.budget.limit} are left",
                remedy="ask affords() before spending",
            )
        for charge in charges:
            key = (charge.account, charge.unit)
            self._sums[key] = self._sums.get(key, 0) + charge.amount
        self._spent += price
        self.postings += 1
        row = {"step": step, "charges": [_line(c) for c in charges], "spent": self._spent}
        return json.dumps(row, separators=(",", ":")) + "\n"

    def _write(self, row: str) -> None:
        assert self._path is not None
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(row)
            self._file.flush()
        except OSError as error:
            raise refused_by_system(error, self._path) from None
        self.clocked = _last_clocked(row) or self.clocked

    def sync(self) -> None:
        """Make everything posted so far durable; CheckpointError where the system does not let it."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise refused_by_system(error, self._path) from None

    def close(self) -> None:
        """Sync and let go of the file, also where its last posting cannot be written; see `sync`."""
        if self._file is not None:
            try:
                self.sync()
            finally:
                file, self._file = self._file, None
                try:
                    file.close()
                except OSError as error:
                    raise refused_by_system(error, self._path) from None

    # -- resuming ----------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain JSON."""
        return {
            "limit": self.budget.limit,
            "unit": self.budget.unit.value,
            "charged": sorted(a.value for a in self.charged),
            "postings": self.postings,
            "spent": self._spent,
            "sums": [[a.value, u.value, amount] for (a, u), amount in sorted(self._sums.items())],
        }

    def lost_since(self, state: Mapping[str, Any]) -> list[Charge]:
        """What the file holds beyond `state()`, as charges to the account LOST, one per unit; changes nothing.

        What is only posted again, and not done again, is left out. The checkpoint that is resumed from keeps its
        account: it was posted right behind its own state, and nobody writes it again, as later ones are.

        Raises:
            CheckpointError: the file holds less than the state vouches for, or something else.
        """
        dropped: dict[tuple[Account, Unit], int | float] = {}
        later = list(map(_posting, self._lines(state)[int(state["postings"]) :]))
        for row in filter(None, later):
            # A dropped LOST line is what an earlier crash lost since the same checkpoint: it is still lost.
            for name, amount, unit, _ in row["charges"]:
                if name not in _POSTED_AGAIN:
                    own = name == Account.CHECKPOINT and row is later[0]
                    account = Account.CHECKPOINT if own else Account.LOST
                    dropped[account, Unit(unit)] = dropped.get((account, Unit(unit)), 0) + amount
        return [
            Charge(account, amount, unit, "analytic" if unit.deterministic else "measured")
            for (account, unit), amount in sorted(dropped.items())
        ]

    def unreadable_since(self, state: Mapping[str, Any]) -> int:
        """Lines beyond `state()` that are no postings: what they cost is unknown, and not among the lost.

        Half a line at the end does not count: that is what a kill in the middle of a write leaves.
        """
        later = self._lines(state)[int(state["postings"]) :]
        return sum(line.endswith("\n") and _posting(line) is None for line in later)

    def restore(self, state: Mapping[str, Any], *, instead: Iterable[Charge] = (), step: int = 0) -> None:
        """Continue from `state()`; in the file, one posting of `instead` takes the place of all later lines.

        The place is taken by one rename: a process killed at any moment has forgotten neither what was lost nor what
        was not.

        Raises:
            CheckpointError: the state belongs to another budget or another accounting, or the file is too short for it or cannot
                be written.
        """
        mine = (self.budget.limit, self.budget.unit.value, sorted(a.value for a in self.charged))
        if mine != (state["limit"], state["unit"], state["charged"]):
            raise CheckpointError(
                f"a ledger of {state['limit']} {state['unit']} charged to {state['charged']}",
                rule=f"this study has {mine[0]} {mine[1]} charged to {mine[2]}",
                remedy="resume with the study that wrote the checkpoint",
            )
        self.postings = int(state["postings"])
        self._spent = state["spent"]
        self._sums = {(Account(a), Unit(u)): amount for a, u, amount in state["sums"]}
        lines = self._lines(state)[: self.postings]
        if instead := tuple(instead):
            lines.append(self._enter(instead, step))
        if self._path is not None:
            self.close()
            temporary = self._path.with_suffix(".tmp")
            try:
                with temporary.open("w", encoding="utf-8") as file:
                    file.write("".join(lines))
                    file.flush()
                    os.fsync(file.fileno())  # a power cut after the rename must not leave an empty ledger
                os.replace(temporary, self._path)
            except OSError as error:
                raise refused_by_system(error, self._path) from None
            self.clocked = _last_clocked("".join(lines))

    def _lines(self, state: Mapping[str, Any]) -> list[str]:
        """Of the file; empty without one."""
        if self._path is None:
            return []
        vouched = int(state["postings"])
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        lines = [line + "\n" for line in text.split("\n")]
        lines[-1] = lines[-1][:-1]  # what follows the last end of a line: nothing, or half a posting
        lines = lines if lines[-1] else lines[:-1]
        good = next((n for n, line in enumerate(lines[:vouched]) if _posting(line) is None), min(vouched, len(lines)))
        if good < vouched:
            raise CheckpointError(
                f"{self._path} has {good} postings" + (f", then line {good + 1} is none" if good < len(lines) else ""),
                rule=f"the checkpoint vouches for {vouched}",
                remedy="restore the ledger file, or start the run again",
            )
        return lines


# Done before the run and still there after a kill: a run that begins again, or reads on, owes for the same work.
_POSTED_AGAIN = (Account.TEACHER_TRAINING, Account.TUNING, Account.TEACHER_CACHE)


def _line(charge: Charge) -> list[Any]:
    return [charge.account.value, charge.amount, charge.unit.value, charge.source]


def _last_clocked(text: str) -> int:
    """A checksum of the last line that posts seconds, never 0; 0 without one."""
    mark = f',"{Unit.SECOND.value}",'
    line = next((line for line in reversed(text.splitlines()) if mark in line), None)
    return 0 if line is None else zlib.crc32(line.encode()) + 1


def parse_postings(text: str) -> list[dict[str, Any]]:
    """Every posting of a ledger file's text up to the first line that is none: half a line (kill -9 in a write) is dropped."""
    return list(takewhile(lambda row: row is not None, map(_posting, text.splitlines())))  # pyright: ignore[reportReturnType]


def _posting(line: str) -> dict[str, Any] | None:
    """A line of a ledger file: {step, charges: [[account, amount, unit, source], …], spent}; None for anything else."""
    try:
        row = json.loads(line)
        charges = [(Account(a), Unit(u), amount, source) for a, amount, u, source in row["charges"]]
        amounts = [row["step"], row["spent"], *(amount for _, _, amount, _ in charges)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return row if all(type(n) in (int, float) and 0 <= n < math.inf for n in amounts) else None
