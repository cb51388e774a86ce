"""Weak and strong scaling on this machine, and what a study packed on it gets through in an hour.

Each size is a `bench` of its own under torchrun, with the same number of threads per rank at every size. Weak: the
global batch grows with the ranks. Strong: it stays the study's. Beside each step stands what the plan's model of
communication predicts of it, from the first size's step and from links measured in the same run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from harness.errors import ConfigError
from harness.hardware import usable_cores
from harness.plan.scaling import Fabric, Link, seconds, traffic


def scale(sizes: list[int], *, sequences: int, steps: int, arguments: list[str]) -> dict[str, Any]:
    """Measure every size both ways.

    Args:
        sizes: numbers of ranks, ascending, the first being the reference.
        sequences: the study's global batch; weak scaling gives size n the batch n / largest of it.
        arguments: the study's flags, passed on.

    Returns one JSON object with a row per size: tokens/s per arm, efficiency against the first size, the step's seconds
    and what the model predicts.

    Raises:
        ConfigError: sizes not ascending, or a batch they do not divide.
    """
    if not sizes or sorted(set(sizes)) != sizes or sizes[0] < 1:
        raise ConfigError(
            f"--scaling {sizes}", rule="sizes ascend from at least 1", remedy="for example --scaling 1,2,4"
        )
    if odd := [n for n in sizes if sequences % sizes[-1] or sequences % n]:
        raise ConfigError(
            f"batch.sequences {sequences} at {odd[0]} ranks", rule="every rank gets the same number of sequences",
            remedy="choose sizes that divide the study's batch",
        )  # fmt: skip
    threads = max(1, usable_cores() // sizes[-1])
    table: dict[str, Any] = {"threads_per_rank": threads, "weak": [], "strong": []}
    for kind in ("weak", "strong"):
        for size in sizes:
            batch = sequences * size // sizes[-1] if kind == "weak" else sequences
            measured = _bench(size, [*arguments, "--set", f"batch.sequences={batch}", "--steps", str(steps)], threads)
            rates = {row["name"]: row["tokens_per_s"] for row in measured["arms"]}
            talk = {row["name"]: row["breakdown_ms"]["communication"] for row in measured["arms"]}
            steps_s = {row["name"]: 1e-3 * row["step"]["p50_ms"] for row in measured["arms"]}
            row = {
                "ranks": size,
                "sequences": batch,
                "tokens_per_s": rates,
                "communication_ms": talk,
                "step_s": steps_s,
            }
            first = table[kind][0] if table[kind] else row
            row["efficiency"] = {
                name: rate / first["tokens_per_s"][name] * first["ranks"] / size for name, rate in rates.items()
            }
            row["predicted_s"] = {arm["name"]: predicted_s(first, row, arm, measured) for arm in measured["arms"]}
            row["link"] = measured["link"]
            table[kind].append(row)
    return table


def predicted_s(first: dict[str, Any], row: dict[str, Any], arm: dict[str, Any], measured: dict[str, Any]) -> float:
    """An arm's step at this size by the plan's model: the first size's time for a rank's sequences, and a ring's.

    Gradients and weights are taken as fp32, and nothing of their exchange is hidden behind the backward.
    """
    share = row["sequences"] / row["ranks"] * first["ranks"] / first["sequences"]
    computing = first["step_s"][arm["name"]] * share
    if measured["link"] is None:
        return computing
    link = Link(**measured["link"])
    size = 4.0 * arm["trained_parameters"]
    exchanged = traffic(
        stage=measured["zero_stage"], gradient_bytes=size, weight_bytes=size, accumulation=arm["accumulation"]
    )
    return computing + seconds(exchanged, Fabric(row["ranks"], row["ranks"], link, link))


def _bench(ranks: int, arguments: list[str], threads: int) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "harness",
        "bench", "--json", *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"bench at {ranks} ranks", rule=f"it failed: {last[:300]}", remedy="run it by hand at that size"
        )
    return json.loads(done.stdout[done.stdout.index("{") :])


def packed(table: dict[str, Any], *, tokens: dict[str, float]) -> list[dict[str, Any]]:
    """Runs per hour of each arm when every rank trains a run of its own, and when all share one.

    Args:
        tokens: what one run of each arm trains on.
    """
    first, last = table["strong"][0], table["strong"][-1]
    ranks = last["ranks"] // first["ranks"]
    return [
        {
            "arm": name,
            "own_rank": 3600 * ranks * first["tokens_per_s"][name] / tokens[name],
            "all_ranks": 3600 * last["tokens_per_s"][name] / tokens[name],
        }
        for name in first["tokens_per_s"]
    ]


def show_scaling(table: dict[str, Any]) -> None:
    """Print both kinds of scaling."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for kind, rule in (("weak", "the batch grows with the ranks"), ("strong", "the batch stays the study's")):
        view = Table(title=f"{kind} scaling: {rule}", title_justify="left")
        view.add_column("arm")
        for row in table[kind]:
            view.add_column(f"{row['ranks']} ranks, batch {row['sequences']}", justify="right")
        for name in table[kind][0]["tokens_per_s"]:
            cells = [f"{row['tokens_per_s'][name]:,.0f} tokens/s, {row['efficiency'][name]:.0%}" for row in table[kind]]
            view.add_row(name, *cells)
            steps = [
                f"{1e3 * row['step_s'][name]:.1f} ms, predicted {1e3 * row['predicted_s'][name]:.1f}"
                for row in table[kind]
            ]
            view.add_row("", *steps)
        console.print(view)
    console.print(f"{table['threads_per_rank']} threads per rank at every size", highlight=False)
