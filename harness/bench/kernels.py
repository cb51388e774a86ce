"""The kernels' implementations side by side, beside the floor the hardware sets.

Forward and backward together, implementations taken in turn so that other load hits all alike; percentiles after a
warm-up. On a GPU a time is that of calls queued back to back behind other work, between two of the device's events: what
the host needs to launch them is not in it. An implementation whose loss or gradient differs from the definition's gets no time. A GPU's floor is the
largest of products over the measured matrix peak, bytes over the measured bandwidth, and exponentials over 16 per clock
and multiprocessor; without a GPU no floor is claimed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.bench import liger
from harness.bench.peak import SIDE, measured_bandwidth, measured_peak
from harness.bench.problems import Problem, Work, problems
from harness.bench.timing import percentiles
from harness.errors import ConfigError

# Calls between two events, and the products queued before them: milliseconds in which the host gets ahead.
CALLS, AHEAD = 5, 16
# A bf16 or fp16 gradient is rounded to a share of 2⁻⁸ before it is summed; fp32 ones differ by the sums' order.
TOLERANCE = {True: 0.03, False: 1e-4}
WARM_UP = 3
EXPONENTIALS_PER_CLOCK = 16


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; below a norm of 0.001 the expected counts as noise around zero."""
    actual, expected = actual.double(), expected.double()
    error = float((actual - expected).norm()) / max(float(expected.norm()), 1e-3)
    # Infinite rather than NaN: every comparison with NaN is false, and max() would pass over it.
    return error if math.isfinite(error) else math.inf


def floor_ms(work: Work, hardware: dict[str, float] | None) -> float | None:
    """The least time the hardware allows, in milliseconds; None on a CPU."""
    if hardware is None:
        return None
    bounds = (
        work.flops / hardware["flop_per_s"], work.bytes / hardware["bytes_per_s"],
        work.exponentials / hardware["exponentials_per_s"],
    )  # fmt: skip
    return 1e3 * max(bounds)


def hardware_bounds(device: torch.device) -> dict[str, float] | None:
    """What this GPU was measured to reach just now; None on a CPU."""
    if device.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(device)
    return {
        "flop_per_s": measured_peak(device, torch.bfloat16)["flop_per_s"],
        "bytes_per_s": measured_bandwidth(device),
        "exponentials_per_s": EXPONENTIALS_PER_CLOCK * facts.multi_processor_count * 1e6 * _sm_mhz(),
    }


def _sm_mhz() -> float:
    """The clock under load, read after the peak was measured; the nominal one where NVML does not tell."""
    try:
        return float(torch.cuda.clock_rate())
    except (ModuleNotFoundError, RuntimeError):
        return 1700.0


def measure_kernels(device: torch.device, *, only: str, rounds: int) -> dict[str, Any]:
    """Time every problem whose name contains `only`.

    Returns one JSON object: the hardware's bounds and a row per problem and implementation, with `error` against the
    definition and, on a GPU, the memory a call takes beside its inputs (`extra_bytes`); a wrong implementation has no times.
    `absent` says why another project's kernels are not there.

    Raises:
        ConfigError: no problem has such a name.
    """
    bounds = hardware_bounds(device)
    rows, names = [], []
    for problem in problems(device.type):
        names.append(problem.name)
        if only in problem.name:
            rows += _rows(problem, device, bounds, rounds)
    if not rows:
        raise ConfigError(
            f"--kernels {only}",
            rule="no problem's name contains it",
            remedy=f"name a part of one of: {'; '.join(names)}",
        )
    absent = liger.obstacle(device)
    return {
        "bounds": bounds,
        "rule": f"{WARM_UP} warm-up rounds, then {rounds} timed, in turns",
        "rows": rows,
        "absent": {liger.NAME: absent} if absent else {},
    }


def _rows(
    problem: Problem, device: torch.device, bounds: dict[str, float] | None, rounds: int
) -> Iterator[dict[str, Any]]:
    """Check every implementation against the definition, then time the right ones in turn."""
    loss, gradients = problem.run("reference")
    rows: dict[str, dict[str, Any]] = {}
    for backend in problem.backends:
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        value, found = problem.run(backend)
        error = max(relative_error(value, loss), *(relative_error(a, e) for a, e in zip(found, gradients, strict=True)))
        rows[backend] = {
            "problem": problem.name,
            "backend": backend,
            "error": error,
            "right": error < TOLERANCE["float32" not in problem.name],
        }
        if device.type == "cuda":
            rows[backend]["extra_bytes"] = torch.cuda.max_memory_allocated() - before
    times: dict[str, list[float]] = {backend: [] for backend, row in rows.items() if row["right"]}
    for number in range(WARM_UP + rounds):
        for backend, seen in times.items():
            seconds = seconds_of_a_call(partial(problem.run, backend), device)
            if number >= WARM_UP:
                seen.append(seconds)
    for backend, row in rows.items():
        if backend in times:
            row |= percentiles(times[backend])
            floor = floor_ms(problem.work, bounds)
            row |= {"floor_ms": floor, "over_floor": row["p50_ms"] / floor if floor else None}
    for backend, row in rows.items():
        if backend in times:
            row["faster_than_reference"] = rows["reference"]["p50_ms"] / row["p50_ms"]
    yield from rows.values()


def seconds_of_a_call(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the host's clock on a CPU; on a GPU the device's own, around calls queued behind other work."""
    if device.type != "cuda":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    side = torch.zeros(SIDE["cuda"], SIDE["cuda"], dtype=torch.bfloat16, device=device)
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    for _ in range(AHEAD):
        torch.mm(side, side)
    begun.record()
    for _ in range(CALLS):
        run()
    ended.record()
    ended.synchronize()
    return 1e-3 * begun.elapsed_time(ended) / CALLS


def show_kernels(table: dict[str, Any]) -> None:
    """Print one line per problem and implementation."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for problem in dict.fromkeys(row["problem"] for row in table["rows"]):
        view = Table(title=problem, title_justify="left")
        for heading in ("backend", "p50, ms", "p20–p80", "faster", "over floor", "memory", "error"):
            view.add_column(heading, justify="left" if heading == "backend" else "right", no_wrap=True)
        for row in (row for row in table["rows"] if row["problem"] == problem):
            times = (
                [f"{row['p50_ms']:.3f}", f"{row['p20_ms']:.3f}–{row['p80_ms']:.3f}"] if row["right"] else ["wrong", ""]
            )
            faster, over = row.get("faster_than_reference"), row.get("over_floor")
            shares = [f"{share:.1f}×" if share else "–" for share in (faster, over)]
            extra = f"{row['extra_bytes'] / 2**20:,.0f} MiB" if "extra_bytes" in row else "–"
            view.add_row(row["backend"], *times, *shares, extra, f"{row['error']:.0e}")
        console.print(view)
    for name, why in table["absent"].items():
        console.print(f"{name}: {why}", highlight=False, markup=False)
    console.print(table["rule"], highlight=False)
