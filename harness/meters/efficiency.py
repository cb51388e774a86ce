"""How much of the hardware's peak a trial used: MFU and HFU, with the denominator named.

MFU (model FLOPs utilisation, Chowdhery et al. 2022, PaLM, appendix B) divides algorithmic FLOPs by what the
devices could have done in the same time; HFU divides executed FLOPs. Time is that of the charged steps, summed
over ranks; so is the peak.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from harness.hardware import has_cuda
from harness.meters.peaks import peak_of
from harness.ranks import Ranks

# Products of matrices this large, doubled until one takes long enough to be timed: without half-precision arithmetic
# a CPU takes ten seconds for what another does in ten milliseconds.
_SIZES = (128, 256, 512, 1024)
_LONG_ENOUGH_S = 0.01
_REPEATS = 4


@dataclass(frozen=True)
class Denominator:
    """FLOP per second of one rank's device, and where the figure is from; None with the reason where unknown."""

    flop_s: float | None
    source: str


def denominator(ranks: Ranks, *, half: bool) -> Denominator:
    """The mean peak of a rank's device; every rank calls it together.

    GPUs: the data sheet's dense bf16 peak, whatever the precision of the run. CPUs: a product of two square
    matrices timed here, in the run's precision, with all ranks at it at once (about 50 ms).
    """
    mine = _gpu(ranks.local_rank) if has_cuda() else _cpu(half=half)
    told: list[Denominator] = ranks.gather(mine)
    known = [each.flop_s for each in told if each.flop_s is not None]
    if len(known) < len(told):
        return next(each for each in told if each.flop_s is None)
    names = " and ".join(dict.fromkeys(each.source for each in told))
    return Denominator(sum(known) / len(known), names)


def _gpu(index: int) -> Denominator:
    import torch

    name = torch.cuda.get_device_name(index)
    peak = peak_of(name)
    if peak is None:
        return Denominator(None, f"{name} is not in the table of peaks")
    return Denominator(peak.datasheet_flop_s, f"{name}: dense bf16 peak of {peak.source}")


def _cpu(*, half: bool) -> Denominator:
    import torch

    dtype = torch.bfloat16 if half else torch.float32
    best, size = float("inf"), 0
    with torch.no_grad():
        for size in _SIZES:
            a = torch.full((size, size), 0.5, dtype=dtype)
            times = []
            for _ in range(_REPEATS):
                begun = time.perf_counter()
                torch.mm(a, a)
                times.append(time.perf_counter() - begun)
            best = min(times)
            if best >= _LONG_ENOUGH_S:
                break
    name = str(dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    words = f"a {size}² {name} product measured here, best of {_REPEATS}, {threads} thread(s) per rank"
    return Denominator(2 * size**3 / best, words)


def efficiency(
    *, algorithmic_flop: float, executed_flop: float | None, device_s: float, of: Denominator
) -> dict[str, Any]:
    """MFU and HFU as shares (0..1) of the peak; None where a factor is unknown."""
    possible = None if of.flop_s is None or device_s <= 0 else of.flop_s * device_s
    return {
        "mfu": None if possible is None else algorithmic_flop / possible,
        "hfu": None if possible is None or executed_flop is None else executed_flop / possible,
        "peak_flop_s": of.flop_s,
        "denominator": of.source,
        "device_seconds": device_s,
    }
