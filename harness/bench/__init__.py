"""Throughput: what a step of each arm takes here, where its time goes, and how other tools fare beside it."""

from harness.bench.steps import measure
from harness.bench.table import show, write_csv

__all__ = ["measure", "show", "write_csv"]
