"""Law 1 and law 3: a ledger never exceeds a counted limit, and what is posted is what is summed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.budget import Account, Budget, Charge, Ledger, parse_postings
from harness.errors import CheckpointError, ConfigError
from harness.units import Unit

CHARGED = frozenset({Account.STUDENT_STEP, Account.TEACHER_FORWARD})


def flop(amount: int, account: Account = Account.STUDENT_STEP) -> Charge:
    return Charge(account, amount, Unit.FLOP)


def spend_all(ledger: Ledger, prices: list[int]) -> int:
    """Post steps of the given prices, over and over, until the next one is not affordable."""
    steps = 0
    while ledger.affords([flop(prices[steps % len(prices)])]):
        ledger.post([flop(prices[steps % len(prices)])], step=steps)
        steps += 1
    return steps


@given(st.integers(1, 10**6), st.lists(st.integers(1, 10**5), min_size=1, max_size=4))
def test_ledger_never_exceeds_limit_and_stops_less_than_one_step_below(limit: int, prices: list[int]) -> None:
    ledger = Ledger(Budget(limit, Unit.FLOP), charged=CHARGED)
    steps = spend_all(ledger, prices)
    assert ledger.spent <= limit
    assert ledger.remaining < prices[steps % len(prices)]


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 10**5))
def test_two_arms_differ_by_less_than_the_dearer_step(limit: int, one: int, other: int) -> None:
    ledgers = [Ledger(Budget(limit, Unit.FLOP), charged=CHARGED) for _ in range(2)]
    for ledger, price in zip(ledgers, (one, other), strict=True):
        spend_all(ledger, [price])
    assert abs(ledgers[0].spent - ledgers[1].spent) < max(one, other)


def test_only_charged_accounts_and_only_the_budgets_unit_count() -> None:
    ledger = Ledger(Budget(100, Unit.FLOP), charged=CHARGED)
    ledger.post([flop(30), flop(20, Account.TEACHER_FORWARD), flop(500, Account.EVALUATION)], step=0)
    ledger.post([Charge(Account.STUDENT_STEP, 9999.0, Unit.GPU_SECOND, "measured")], step=0)
    assert ledger.spent == 50
    assert ledger.accounts()["EVALUATION"] == {"flop": 500}
    assert ledger.accounts()["STUDENT_STEP"] == {"flop": 30, "gpu-second": 9999.0}


def test_posting_more_than_is_left_is_refused() -> None:
    ledger = Ledger(Budget(10, Unit.FLOP), charged=CHARGED)
    with pytest.raises(ConfigError, match="only 10 of 10 are left"):
        ledger.post([flop(11)], step=0)
    assert ledger.spent == 0


def test_a_negative_charge_is_refused() -> None:
    with pytest.raises(ConfigError, match="never negative"):
        Ledger(Budget(10, Unit.FLOP), charged=CHARGED).post([flop(-1)], step=0)


def test_a_restored_ledger_continues_and_reports_what_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(Budget(100, Unit.FLOP), charged=CHARGED, path=path)
    ledger.post([flop(10)], step=0)
    state = ledger.state()
    ledger.post([flop(10)], step=1)
    ledger.post([flop(10), flop(7, Account.EVALUATION)], step=2)
    ledger.close()
    with path.open("a") as file:
        file.write('{"step": 3, "char')  # kill -9 in the middle of a write

    resumed = Ledger(Budget(100, Unit.FLOP), charged=CHARGED, path=path)
    lost = resumed.lost_since(state)
    assert lost == [Charge(Account.LOST, 27, Unit.FLOP)]
    resumed.restore(state, instead=lost, step=1)
    assert resumed.spent == 10, "lost work is reported, never charged"
    assert resumed.accounts()["LOST"] == {"flop": 27}
    resumed.close()
    assert len(parse_postings(path.read_text())) == 2


def test_a_ledger_of_another_budget_is_refused() -> None:
    state = Ledger(Budget(100, Unit.FLOP), charged=CHARGED).state()
    with pytest.raises(CheckpointError, match="this study has 200"):
        Ledger(Budget(200, Unit.FLOP), charged=CHARGED).restore(state)


def test_a_second_crash_does_not_forget_what_the_first_one_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(Budget(100, Unit.FLOP), charged=CHARGED, path=path)
    ledger.post([flop(10)], step=0)
    state = ledger.state()
    lost: list[Charge] = []
    for redone in (20, 10):  # two crashes since one checkpoint
        ledger.post([flop(redone)], step=1)
        ledger.close()
        ledger = Ledger(Budget(100, Unit.FLOP), charged=CHARGED, path=path)
        lost = ledger.lost_since(state)
        ledger.restore(state, instead=lost, step=1)
    assert lost == [Charge(Account.LOST, 30, Unit.FLOP)]
    assert ledger.accounts()["LOST"] == {"flop": 30}
    assert ledger.spent == 10


def test_work_that_is_there_after_a_kill_is_posted_again_and_not_lost(tmp_path: Path) -> None:
    """A teacher is not trained again, nor settings searched, nor shards of its cache written: they are only owed again."""
    path, charged = tmp_path / "ledger.jsonl", frozenset(Account) - {Account.LOST}

    def begin(after: dict) -> Ledger:
        ledger = Ledger(Budget(1000, Unit.FLOP), charged=charged, path=path)
        ledger.restore(after, instead=ledger.lost_since(after))
        return ledger

    def owe(ledger: Ledger) -> None:
        ledger.post([flop(300, Account.TEACHER_TRAINING), flop(50, Account.TUNING)], step=0)

    def step(ledger: Ledger, number: int) -> None:
        ledger.post([flop(10), flop(4, Account.TEACHER_CACHE)], step=number)

    nothing = Ledger(Budget(1000, Unit.FLOP), charged=charged).state()
    for kill in range(1, 4):  # each before a first checkpoint
        ledger = begin(nothing)
        owe(ledger)
        step(ledger, 0)
        ledger.close()
        assert ledger.accounts().get("LOST", {"flop": 0}) == {"flop": 10 * (kill - 1)}
        assert ledger.spent == 364
    state = ledger.state()
    for kill in range(4, 7):  # and as many after it
        step(ledger, 1)
        ledger.close()
        ledger = begin(state)
        assert ledger.accounts()["LOST"] == {"flop": 20 + 10 * (kill - 3)}
    step(ledger, 1)
    assert ledger.accounts() == {
        "STUDENT_STEP": {"flop": 20}, "TEACHER_CACHE": {"flop": 8}, "TEACHER_TRAINING": {"flop": 300},
        "TUNING": {"flop": 50}, "LOST": {"flop": 50},
    }  # fmt: skip
    assert ledger.spent == 378


def test_saves_that_a_fallback_passes_over_are_lost_and_the_one_it_takes_is_not(tmp_path: Path) -> None:
    path, states = tmp_path / "ledger.jsonl", []

    def opened() -> Ledger:
        return Ledger(Budget(100.0, Unit.SECOND), charged=frozenset(Account) - {Account.LOST}, path=path)

    def seconds(account: Account, amount: float) -> Charge:
        return Charge(account, amount, Unit.SECOND, "measured")

    ledger = opened()
    for step, saving in ((1, 2.0), (2, 3.0), (3, 2.0)):
        ledger.post([seconds(Account.STUDENT_STEP, 5.0)], step=step)
        states.append(ledger.state())
        ledger.post([seconds(Account.CHECKPOINT, saving)], step=step)
    ledger.close()
    for taken, lost, saved in ((2, 0.0, 7.0), (1, 5.0 + 2.0, 5.0), (0, 5.0 + 7.0 + 3.0, 2.0)):
        ledger = opened()
        ledger.restore(states[taken], instead=ledger.lost_since(states[taken]), step=taken + 1)
        ledger.close()
        assert ledger.amount(Account.LOST, Unit.SECOND) == lost
        assert ledger.amount(Account.CHECKPOINT, Unit.SECOND) == saved, (
            "the own save is kept, however often it is resumed from"
        )
        assert ledger.amount(Account.STUDENT_STEP, Unit.SECOND) == 5.0 * (taken + 1)


def test_lost_work_takes_the_place_of_its_lines_in_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(Budget(100, Unit.FLOP), charged=CHARGED, path=path)
    ledger.post([flop(10)], step=0)
    state = ledger.state()
    ledger.post([flop(30)], step=1)
    ledger.close()
    seen = []

    def rename(source: Path, target: Path) -> None:
        seen.extend(parse_postings(Path(source).read_text()))
        raise KeyboardInterrupt  # killed just before

    resumed = Ledger(Budget(100, Unit.FLOP), charged=CHARGED, path=path)
    lost = resumed.lost_since(state)
    monkeypatch.setattr("os.replace", rename)
    with pytest.raises(KeyboardInterrupt):
        resumed.restore(state, instead=lost, step=1)
    monkeypatch.undo()
    assert [row["charges"][0][:2] for row in seen] == [["STUDENT_STEP", 10], ["LOST", 30]], "killed just after"
    again = Ledger(Budget(100, Unit.FLOP), charged=CHARGED, path=path)
    assert again.lost_since(state) == [Charge(Account.LOST, 30, Unit.FLOP)], "killed just before"
