"""Trackers: what they write, and that a failing one costs the run nothing but its plot."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness import trackers
from harness.errors import ConfigError
from harness.trackers.base import GIVE_UP_AFTER, RETRIES

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
    follower = trackers.Follower(trackers.open_trackers([request], directory), tell=print)
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
    (tracker,) = trackers.open_trackers(["prometheus"], tmp_path)
    for arm in ("a", "b"):
        tracker[1].log({"arm": arm}, 1, {"loss": 1.0})
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
    follower = trackers.Follower([("hiccup", hiccup), ("dead", dead)], tell=heard.append)
    for step in range(10):
        follower(LABELS, {**ROW, "step": step})
    assert hiccup.rows == list(range(10)), "a failure within the retries loses nothing"
    assert dead.calls == GIVE_UP_AFTER * (1 + RETRIES), "retries are bounded"
    assert len(follower.problems) == len(heard) == 1
    assert "no route" in heard[0]
    follower.close()
    assert "could not be closed" in heard[1]


@pytest.mark.parametrize(("request_", "message"), [("grafana", "unknown tracker"), ("=x", "unknown tracker")])
def test_an_unknown_tracker_is_refused_before_anything_is_spent(request_: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trackers.check([request_])


def test_a_tracker_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed.*isobudget\[tensorboard\]"):
        trackers.check(["tensorboard"])


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--track prometheus="):
        trackers.open_trackers([f"prometheus={tmp_path / 'file' / 'run.prom'}"], tmp_path)


def test_a_package_that_cannot_be_imported_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text("raise RuntimeError('built against another protobuf')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match=r"--track wandb.*another protobuf.*leave it out"):
        trackers.open_trackers(["wandb"], tmp_path)


def test_infinities_have_words() -> None:
    from harness.trackers.prometheus import _number

    assert [_number(v) for v in (math.inf, -math.inf, math.nan, 0.1)] == ["+Inf", "-Inf", "NaN", "0.1"]
