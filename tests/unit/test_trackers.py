"""Trackers: what they write, and that a failing one costs the run nothing but its plot."""

from __future__ import annotations

import json
import math
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness import trackers
from harness.errors import ConfigError
from harness.trackers.aside import GIVE_UP_AFTER, RETRIES, WAITING

LABELS = {"study": "tiny", "arm": 'a"b\\c\nd', "seed": "1"}
ROW = {"step": 7, "fraction": 0.5, "loss": 2.5, "terms": {"mlm": 2.0, "kl": float("nan")}, "note": "text", "on": True}


class Failing:
    """Fails the first `times` attempts."""

    def __init__(self, times: int, error: type[BaseException] = ConnectionError) -> None:
        self.left = times
        self.error = error
        self.calls = 0
        self.rows: list[int] = []

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise self.error("no route")
        self.rows.append(step)

    def close(self) -> None:
        raise self.error("no route")


def follow(name: str, directory: Path, target: str = "") -> None:
    request = f"{name}={target}" if target else name
    follower = trackers.Follower(trackers.openers([request], directory), tell=print)
    follower(LABELS, ROW)
    follower(LABELS, {**ROW, "step": 8, "loss": 2.25})
    follower.close()
    assert follower.problems == []


def test_jsonl_keeps_every_row_and_no_word_that_json_lacks(tmp_path: Path) -> None:
    follow("jsonl", tmp_path)
    first, second = map(json.loads, (tmp_path / "tracked.jsonl").read_text().splitlines())
    assert first == {**LABELS, "step": 7, "fraction": 0.5, "loss": 2.5, "terms/mlm": 2.0, "terms/kl": None}
    assert (second["step"], second["loss"]) == (8, 2.25)


def test_prometheus_text_is_what_its_format_asks(tmp_path: Path) -> None:
    """Help and type once per metric before its samples; names and escapes by the rules; the newest value only."""
    file = tmp_path / "collector" / "run.prom"
    follow("prometheus", tmp_path, str(file))
    assert [p.name for p in file.parent.iterdir()] == ["run.prom"], "nothing but the renamed file is left"
    assert file.stat().st_mode & 0o044 == 0o044
    lines = file.read_text().splitlines()
    sample = re.compile(
        r'[a-zA-Z_][a-zA-Z0-9_]*\{([a-zA-Z_]\w*="(?:[^"\\\n]|\\\\|\\"|\\n)*",?)*\} (NaN|[+-]Inf|-?[0-9.e+-]+)'
    )
    seen: set[str] = set()
    for line in lines:
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in seen
            seen.add(name)
        elif not line.startswith("# TYPE "):
            assert sample.fullmatch(line), line
            assert line.partition("{")[0] in seen
    escaped = r'{study="tiny",arm="a\"b\\c\nd",seed="1"}'
    assert f"isobudget_loss{escaped} 2.25" in lines
    assert f"isobudget_step{escaped} 8.0" in lines
    assert f"isobudget_terms_kl{escaped} NaN" in lines
    assert not [line for line in lines if "note" in line or "isobudget_on" in line], "text and switches are no gauges"


def test_two_trials_share_a_metric_and_keep_their_labels(tmp_path: Path) -> None:
    (tracker,) = trackers.openers(["prometheus"], tmp_path)
    opened = tracker[1]()
    for arm in ("a", "b"):
        opened.log({"arm": arm}, 1, {"loss": 1.0})
    text = (tmp_path / "isobudget.prom").read_text()
    assert text.count("# TYPE isobudget_loss gauge") == 1
    assert 'isobudget_loss{arm="a"} 1.0\nisobudget_loss{arm="b"} 1.0' in text


def test_tensorboard_writes_one_run_per_trial(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    follow("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in (tmp_path / "tensorboard").rglob("events.out.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(7, 2.5), (8, 2.25)]


@pytest.mark.parametrize("error", [ConnectionError, SystemExit])
def test_a_hiccup_is_retried_and_a_dead_tracker_is_dropped_while_the_run_goes_on(error: type[BaseException]) -> None:
    """A package that calls sys.exit is as dead as one without a network."""
    hiccup, dead, heard = Failing(RETRIES, error), Failing(10**9, error), []
    follower = trackers.Follower([("hiccup", lambda: hiccup), ("dead", lambda: dead)], tell=heard.append)
    for step in range(10):
        follower(LABELS, {**ROW, "step": step})
    follower.close()
    assert hiccup.rows == list(range(10)), "a failure within the retries loses nothing"
    assert dead.calls == GIVE_UP_AFTER * (1 + RETRIES), "retries are bounded"
    assert follower.problems == heard
    assert any("tracker dead failed" in text and "no route" in text for text in heard)
    assert any("10 rows dropped" in text for text in heard)
    assert any("tracker hiccup could not be closed" in text for text in heard)


class Hanging:
    """Blocks for ever, or until the test is over, in one of its three calls."""

    def __init__(self, where: str, over: threading.Event) -> None:
        self.where = where
        self.over = over
        if where == "open":
            over.wait()

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        if self.where == "log":
            self.over.wait()

    def close(self) -> None:
        if self.where == "close":
            self.over.wait()


@pytest.mark.parametrize(("where", "lost"), [("open", 20), ("log", 20), ("close", 0)])
def test_a_tracker_that_blocks_for_ever_never_stops_a_run(where: str, lost: int, tmp_path: Path) -> None:
    over, heard = threading.Event(), []
    hanging = ("hanging", lambda: Hanging(where, over))
    follower = trackers.Follower([hanging, *trackers.openers(["jsonl"], tmp_path)], tell=heard.append, patience_s=0.5)
    try:
        begun = time.monotonic()
        for step in range(20):
            follower(LABELS, {**ROW, "step": step})
        assert time.monotonic() - begun < 0.4, "a row waits for nobody"
        follower.close()
        assert time.monotonic() - begun < 2.0, "nor does the end, for long"
    finally:
        over.set()
    dropped = f"; {lost} rows dropped" if lost else ""
    assert heard == [f"tracker hanging did not answer and was left alone{dropped}"]
    assert len((tmp_path / "tracked.jsonl").read_text().splitlines()) == 20, "the other tracker misses nothing"


def test_what_a_slow_tracker_cannot_take_is_dropped_counted_and_said() -> None:
    over, heard = threading.Event(), []
    follower = trackers.Follower([("slow", lambda: Hanging("log", over))], tell=heard.append, patience_s=5.0)
    for step in range(WAITING + 50):
        follower(LABELS, {**ROW, "step": step})
    over.set()
    follower.close()
    assert heard[0] == f"tracker slow fell {WAITING:,} rows behind"
    (count,) = re.findall(r"tracker slow: (\d+) rows dropped", heard[1])
    assert 49 <= int(count) <= 50  # the one row in its hands has left the queue, or has not yet


@pytest.mark.parametrize("address", ["mlfow=https://me:hunter2@host", "https://me:hunter2@host"])
def test_a_misspelt_tracker_is_refused_without_its_login(address: str) -> None:
    """The refusal is recorded where a scheduler looks for it."""
    with pytest.raises(ConfigError, match="unknown tracker") as refused:
        trackers.check([address])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(("request_", "message"), [("grafana", "unknown tracker"), ("=x", "unknown tracker")])
def test_an_unknown_tracker_is_refused_before_anything_is_spent(request_: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trackers.check([request_])


def test_a_tracker_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed.*isobudget\[tensorboard\]"):
        trackers.check(["tensorboard"])


def test_a_place_that_cannot_be_written_costs_the_plot_and_never_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    heard: list[str] = []
    follower = trackers.Follower(
        trackers.openers([f"prometheus={tmp_path / 'file' / 'run.prom'}"], tmp_path), tell=heard.append
    )
    follower(LABELS, ROW)
    follower.close()
    assert "tracker prometheus could not be opened: " in heard[0]


def test_a_package_that_cannot_be_imported_costs_the_plot_and_never_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("raise RuntimeError('built against another protobuf')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    heard: list[str] = []
    follower = trackers.Follower(trackers.openers(["wandb"], tmp_path), tell=heard.append)
    follower(LABELS, ROW)
    follower.close()
    assert "could not be opened: RuntimeError: built against another protobuf" in heard[0]


def test_what_a_hanging_trackio_prints_leaves_the_runs_own_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from harness.trackers.trackio import _quietly

    inside, over = threading.Event(), threading.Event()

    def talk() -> None:
        with _quietly():
            print("a tracker's word")
            inside.set()
            over.wait()

    thread = threading.Thread(target=talk)
    thread.start()
    inside.wait()
    print("the run's answer")
    over.set()
    thread.join()
    said = capsys.readouterr()
    assert said.out == "the run's answer\n"
    assert said.err == "a tracker's word\n"


def test_infinities_have_words() -> None:
    from harness.trackers.prometheus import _number

    assert [_number(v) for v in (math.inf, -math.inf, math.nan, 0.1)] == ["+Inf", "-Inf", "NaN", "0.1"]
