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

# How far a measured step may be from the predicted one. Two ranks on two cores took 7 to 36 % longer than predicted: they
# share one memory, and wait for one another outside the ring too.
TOLERANCE = 0.4


def within(measured_s: float, predicted: float) -> bool:
    """Whether the model holds for a step, in either direction."""
    return 1 / (1 + TOLERANCE) <= measured_s / predicted <= 1 + TOLERANCE


def scale(sizes: list[int], *, sequences: int, steps: int, arguments: list[str]) -> dict[str, Any]:
    """Measure every size both ways.

    Args:
        sizes: numbers of ranks, ascending, the first being the reference.
        sequences: the study's global batch; weak scaling gives size n the batch n / largest of it.
        arguments: the study's flags, passed on.

    Returns one JSON object with a row per size: tokens/s per arm, efficiency against the first size, the step's seconds
    and what the model predicts; what packed runs get through (see `packed`); and, arm by arm, `why` an arm whose first
    step was not the definition's has no figures.

    Raises:
        ConfigError: sizes not ascending, or a batch they do not divide.
    """
    if not sizes or sorted(set(sizes)) != sizes or sizes[0] < 1:
        raise ConfigError(
            f"--scaling {sizes}", rule="sizes ascend from at least 1", remedy="for example --scaling 1,2,4"
        )
    if odd := [n for n in reversed(sizes) if sequences % n]:
        raise ConfigError(
            f"batch.sequences {sequences} at {odd[0]} ranks", rule="every rank gets the same number of sequences",
            remedy="choose sizes that divide the study's batch",
        )  # fmt: skip
    threads = max(1, usable_cores() // sizes[-1])
    table: dict[str, Any] = {"threads_per_rank": threads, "weak": [], "strong": [], "why": {}}
    tokens: dict[str, int | None] = {}
    for kind in ("weak", "strong"):
        for size in sizes:
            batch = sequences * size // sizes[-1] if kind == "weak" else sequences
            measured = _bench(size, [*arguments, "--set", f"batch.sequences={batch}", "--steps", str(steps)], threads)
            table["why"] |= {row["name"]: row["why"] for row in measured["arms"] if "why" in row}
            right = [row for row in measured["arms"] if "why" not in row]
            row: dict[str, Any] = {
                "ranks": size,
                "sequences": batch,
                "tokens_per_s": {row["name"]: row["tokens_per_s"] for row in right},
                "communication_ms": {row["name"]: row["breakdown_ms"]["communication"] for row in right},
                "step_s": {row["name"]: 1e-3 * row["step"]["p50_ms"] for row in right},
                "link": measured["link"],
            }
            first = table[kind][0] if table[kind] else row
            row["efficiency"] = efficiency(row, first)
            row["predicted_s"] = {
                arm["name"]: predicted_s(first, row, arm, measured) for arm in right if arm["name"] in row["efficiency"]
            }
            table[kind].append(row)
            if kind == "strong" and size == sizes[0]:
                tokens = {row["name"]: row["tokens_per_run"] for row in right}
    return table | {"packed": packed(table, tokens=tokens)}


def efficiency(row: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """Each arm's tokens/s per rank over the first measurement's; only of arms that have figures in both."""
    return {
        name: rate / first["tokens_per_s"][name] * first["ranks"] / row["ranks"]
        for name, rate in row["tokens_per_s"].items()
        if name in first["tokens_per_s"]
    }


def compared(table: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Each arm's efficiency over an earlier `bench` on fewer ranks, perhaps of fewer nodes: tokens/s per rank over its."""
    rates = [
        {
            "ranks": found["world_size"],
            "tokens_per_s": {row["name"]: row["tokens_per_s"] for row in found["arms"] if "step" in row},
        }
        for found in (table, earlier)
    ]
    return {"ranks": earlier["world_size"], "efficiency": efficiency(*rates)}


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


def packed(table: dict[str, Any], *, tokens: dict[str, int | None]) -> list[dict[str, Any]]:
    """Runs per hour of each arm when every set of as many ranks as the first size trains a run of its own, and when all share one.

    Training alone: neither start-up nor evaluation. Two runs at a time are taken to be as fast as one alone.

    Args:
        tokens: what one run of each arm trains on, whatever the ranks; an arm whose budget is measured has None, and
            no row: each of its runs takes the time the budget says.
    """
    first, last = table["strong"][0], table["strong"][-1]
    sets = last["ranks"] // first["ranks"]
    return [
        {
            "arm": name,
            "ranks": last["ranks"],
            "own_ranks": 3600 * sets * first["tokens_per_s"][name] / each,
            "all_ranks": 3600 * last["tokens_per_s"][name] / each,
        }
        for name, each in tokens.items()
        if each and name in last["tokens_per_s"]
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
        every = [set(row["tokens_per_s"]) for row in table[kind]]
        for name in (name for name in table[kind][0]["tokens_per_s"] if all(name in names for names in every)):
            cells = [f"{row['tokens_per_s'][name]:,.0f} tokens/s, {row['efficiency'][name]:.0%}" for row in table[kind]]
            view.add_row(name, *cells)
            steps = []
            for row in table[kind]:
                measured, predicted = row["step_s"][name], row["predicted_s"][name]
                found = "" if within(measured, predicted) else f", over {TOLERANCE:.0%} off"
                steps.append(f"{1e3 * measured:.1f} ms, predicted {1e3 * predicted:.1f}{found}")
            view.add_row("", *steps)
        console.print(view)
    for row in table["packed"]:
        console.print(
            f"{row['arm']}: {row['own_ranks']:,.2f} runs per hour with a run for every {table['strong'][0]['ranks']} of "
            f"{row['ranks']} ranks, {row['all_ranks']:,.2f} with one run on all; training alone", highlight=False,
        )  # fmt: skip
    for name, why in table["why"].items():
        console.print(f"{name}: no figures, {why}", highlight=False, markup=False)
    console.print(f"{table['threads_per_rank']} threads per rank at every size", highlight=False)
