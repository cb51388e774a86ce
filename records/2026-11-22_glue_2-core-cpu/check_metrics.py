"""Compute every kept metric again with scikit-learn and scipy from the kept predictions: python check_metrics.py RUN_DIR GLUE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats
from sklearn import metrics as sk

AGAIN = {
    "matthews": sk.matthews_corrcoef, "accuracy": sk.accuracy_score, "f1": sk.f1_score,
    "pearson": lambda labels, predictions: stats.pearsonr(labels, predictions).statistic,
    "spearman": lambda labels, predictions: stats.spearmanr(labels, predictions).statistic,
}  # fmt: skip

run, glue = Path(sys.argv[1]), Path(sys.argv[2])
worst, count = 0.0, 0
for path in sorted(run.rglob("glue/*.json")):
    row = json.loads(path.read_text())
    task = row["job"]["task"]
    labels = np.array(
        pq.read_table(glue / task / "validation-00000-of-00001.parquet").column("label").to_pylist(), float
    )
    predictions = np.array(row["predictions"]["validation"].split(), float)
    for name, kept in row["metrics"]["validation"].items():
        value = AGAIN[name](labels, predictions)
        value = 0.0 if np.isnan(value) else float(value)  # a correlation with a constant is scored 0
        worst, count = max(worst, abs(value - kept)), count + 1
print(f"{count} metrics computed again, largest difference {worst:.3g}")
