"""MLflow: one experiment per study, one run per trial; needs the package mlflow (an extra).

The client is used, not the module's functions: those keep one run per process in a global, and a study has many.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEEDS: str | None = "mlflow"
SERVER = "MLFLOW_TRACKING_URI"


class MlflowRuns:
    """Creates a trial's run with its first row; every row is one batch."""

    def __init__(self, client: Any, metric: Any) -> None:
        self._client = client
        self._metric = metric
        self._experiments: dict[str, str] = {}
        self._runs: dict[tuple[str, str], str] = {}

    def log(self, labels: Mapping[str, str], step: int, scalars: Mapping[str, float]) -> None:
        study = labels.get("study", "isobudget")
        name = "-".join(value for key, value in labels.items() if key != "study") or "run"
        now = int(1000 * time.time())
        metrics = [self._metric(key, value, now, step) for key, value in scalars.items()]
        self._client.log_batch(self._run(study, name, labels), metrics=metrics)

    def _run(self, study: str, name: str, labels: Mapping[str, str]) -> str:
        if study not in self._experiments:
            found = self._client.get_experiment_by_name(study)
            self._experiments[study] = found.experiment_id if found else self._client.create_experiment(study)
        if (study, name) not in self._runs:
            run = self._client.create_run(self._experiments[study], run_name=name, tags=dict(labels))
            self._runs[study, name] = run.info.run_id
        return self._runs[study, name]

    def close(self) -> None:
        for run in self._runs.values():
            self._client.set_terminated(run)


def open(target: str, directory: Path) -> MlflowRuns:
    """`target` is a tracking URI; without one, MLFLOW_TRACKING_URI, else mlflow.db in the study's directory."""
    client = importlib.import_module("mlflow.tracking").MlflowClient
    metric = importlib.import_module("mlflow.entities").Metric
    own = f"sqlite:///{(directory / 'mlflow.db').resolve()}"
    return MlflowRuns(client(tracking_uri=target or os.environ.get(SERVER) or own), metric)
