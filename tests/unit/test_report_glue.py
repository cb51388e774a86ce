"""Laws of GLUE in a report: one name is one quantity, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.report import build_report

from .report_fakes import ARMS, edit_record, write_study


def test_the_mixed_models_mean_is_over_the_tasks_that_the_deciding_mean_is_over(tmp_path: Path) -> None:
    """One arm has been evaluated on a task more; `glue.mean` is over those that all have, in every table."""
    directory = write_study(tmp_path / "s", seeds=3, arms=(ARMS[0], ARMS[3]), evaluation={"main": "glue.mean"})
    mean = {"no_kd": 0.0, "tinybert": 0.0}
    for name, base in (("no_kd", 0.50), ("tinybert", 0.60)):
        for seed in (1, 2, 3):
            rte = {str(fine): base + 0.02 * seed + 0.01 * fine + base * seed * fine % 0.007 for fine in (1, 2)}
            tasks = {"rte": {"score": sum(rte.values()) / 2, "by_seed": rte}}
            if name == "no_kd":
                tasks["cola"] = {"score": 0.95, "by_seed": {"1": 0.95, "2": 0.95}}
            mean[name] += tasks["rte"]["score"] / 3
            scores = {"glue.rte": tasks["rte"]["score"], "glue.mean": tasks["rte"]["score"]}
            edit_record(directory / "arms" / name / f"seed-{seed}", scores=scores, glue={"tasks": tasks})
    report = build_report(directory)
    (model,) = [m for m in report["mixed_models"] if m["metric"] == "glue.mean"]
    assert abs(model["pairs"][0]["difference"]) == pytest.approx(mean["tinybert"] - mean["no_kd"])
