"""Laws of the trackers that need a package: one run per trial, every scalar at its step, and no failure reaches the run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.errors import ConfigError
from harness.trackers import Follower, check, openers

NAMES = ["mlflow", "trackio", "wandb"]
TRIALS = [{"study": "quickstart", "arm": arm, "seed": "1"} for arm in ("no_kd", "tinybert")]


class Fake:
    """One stand-in for all three packages: keeps what was logged as (run, step, {name: value})."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.runs: list[str] = []
        self.places: list[str] = []
        self.rows: list[tuple[str, int, dict[str, float]]] = []
        self.ended: list[str] = []

    def begin(self, name: str, place: str) -> str:
        if self.broken:
            raise ConnectionError("no route to the server")
        self.runs.append(name)
        self.places.append(place)
        return name


def install(monkeypatch: pytest.MonkeyPatch, name: str, fake: Fake) -> None:
    """Put a module of this name in the way of the import."""
    module: Any = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    if name == "mlflow":
        entities: Any = ModuleType("mlflow.entities")
        entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)
        tracking: Any = ModuleType("mlflow.tracking")
        tracking.MlflowClient = lambda tracking_uri: MlflowLike(fake, tracking_uri)
        monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
        monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    elif name == "wandb":
        module.init = lambda *, project, group, name, config, dir, reinit: WandbLike(fake, fake.begin(name, project))
    else:
        current: list[str] = []
        module.init = lambda *, project, name, config, embed: current.append(fake.begin(name, project))
        module.log = lambda scalars, step: fake.rows.append((current[-1], step, scalars))
        module.finish = lambda: fake.ended.append(current[-1])
    monkeypatch.setitem(sys.modules, name, module)


class WandbLike:
    def __init__(self, fake: Fake, name: str) -> None:
        self.fake, self.name = fake, name

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.fake.rows.append((self.name, step, scalars))

    def finish(self) -> None:
        self.fake.ended.append(self.name)


class MlflowLike:
    def __init__(self, fake: Fake, uri: str) -> None:
        self.fake, self.uri = fake, uri

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        self.fake.begin(run_name, f"{experiment} in {self.uri}")
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        self.fake.rows.append((run, metrics[0].step, {m.key: m.value for m in metrics}))

    def set_terminated(self, run: str) -> None:
        self.fake.ended.append(run)


@pytest.mark.parametrize("name", NAMES)
def test_every_trial_is_a_run_with_all_its_scalars_at_their_steps(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake()
    install(monkeypatch, name, fake)
    told: list[str] = []
    follower = Follower(openers([name], tmp_path), tell=told.append)
    for labels in TRIALS:
        for step in (1, 4):
            follower(labels, {"step": step, "loss": 2.5, "terms": {"mlm": 2.5}, "note": "text"})
    follower.close()
    assert fake.runs == ["no_kd-1", "tinybert-1"]
    assert sorted(fake.ended) == fake.runs
    assert fake.rows == [(run, step, {"loss": 2.5, "terms/mlm": 2.5}) for run in fake.runs for step in (1, 4)]
    assert told == []


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_cannot_be_reached_costs_rows_and_never_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake(broken=True)
    install(monkeypatch, name, fake)
    told: list[str] = []
    follower = Follower(openers([name], tmp_path), tell=told.append)
    for step in range(5):
        follower(TRIALS[0], {"step": step, "loss": 1.0})
    follower.close()
    assert "no route to the server" in told[0]
    assert "5 rows dropped" in told[-1]


@pytest.mark.parametrize(("name", "target", "place"), [
    ("wandb", "mine", "mine"), ("trackio", "mine", "mine"), ("mlflow", "http://host:5000", "quickstart in http://host:5000"),
    ("wandb", "", "quickstart"), ("trackio", "", "quickstart"),
])  # fmt: skip
def test_a_target_is_where_it_goes_and_the_study_names_it_otherwise(
    name: str, target: str, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake()
    install(monkeypatch, name, fake)
    follower = Follower(openers([f"{name}={target}" if target else name], tmp_path), tell=print)
    follower(TRIALS[0], {"step": 1, "loss": 1.0})
    follower.close()
    assert fake.places == [place]


def test_mlflow_writes_below_the_study_unless_a_server_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def follow(directory: Path) -> None:
        follower = Follower(openers(["mlflow"], directory), tell=print)
        follower(TRIALS[0], {"step": 1, "loss": 1.0})
        follower.close()

    fake = Fake()
    install(monkeypatch, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    follow(tmp_path)
    assert fake.places == [f"quickstart in sqlite:///{tmp_path.resolve()}/mlflow.db"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    follow(tmp_path)
    assert fake.places[-1] == "quickstart in http://host"


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_whose_package_is_missing_is_refused_before_anything_is_spent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="is not installed"):
        check([name])
