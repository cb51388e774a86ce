"""Real GPUs only: the counter against polled power, and the tensor estimate against products that were counted.

Run it where a GPU is, with -s to see the figures: python -m pytest -s -m slow tests/unit/test_energy_on_gpu.py
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from harness.meters.energy import COUNTER, open_energy_meter
from harness.meters.nvml import Nvml, NvmlUnavailable
from harness.meters.sampler import open_sampler
from harness.meters.samples import DeviceSummary, summarise

SECONDS = 60.0
SIZE = 8192


@pytest.fixture(scope="module")
def cuda() -> Any:
    try:
        Nvml.open().close()
    except NvmlUnavailable as error:
        pytest.skip(f"no NVML ({error.rule}): energy and GPM of a real GPU are unmeasured here")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: energy and GPM of a real GPU are unmeasured here")
    return torch


@pytest.fixture(scope="module")
def load(cuda: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A minute of bf16 matrix products, watched by both energy meters and by the sampler."""
    uuid = str(cuda.cuda.get_device_properties(0).uuid)
    path = tmp_path_factory.mktemp("gpu") / "gpu.jsonl"
    counter, polled = open_energy_meter([uuid]), open_energy_meter([uuid], counters=False)
    a, b = (cuda.randn(SIZE, SIZE, device="cuda", dtype=cuda.bfloat16) for _ in range(2))
    flop = 0.0
    with open_sampler([uuid], path, period_s=1.0, also=[counter.poll]):
        for meter in (counter, polled):
            meter.start()
        began = time.monotonic()
        while time.monotonic() - began < SECONDS:
            for _ in range(20):
                a @ b
            cuda.cuda.synchronize()
            flop += 20 * 2 * SIZE**3
        readings = [meter.read(force=True) for meter in (counter, polled)]
        lasted = time.monotonic() - began
    for meter in (counter, polled):
        meter.close()
    (summary,) = summarise([Path(path)])
    facts = {"counter": readings[0], "polled": readings[1], "flop": flop, "seconds": lasted, "summary": summary}
    print("\n" + "\n".join(f"{key}: {value}" for key, value in facts.items()))
    return facts


@pytest.mark.slow
def test_the_counter_agrees_with_polled_power_within_three_percent(load: dict[str, Any]) -> None:
    counter, polled = load["counter"], load["polled"]
    if counter.source != COUNTER or counter.joules is None or polled.joules is None:
        pytest.skip(f"this GPU offers {counter.source} and {polled.source}")
    assert counter.coverage == 1
    assert counter.joules == pytest.approx(polled.joules, rel=0.03)


@pytest.mark.slow
def test_the_tensor_estimate_is_no_less_than_the_products_that_ran(load: dict[str, Any]) -> None:
    summary: DeviceSummary = load["summary"]
    if summary.tensor_estimate_flop is None:
        pytest.skip(f"no tensor estimate on {summary.name}: {summary.missing}")
    executed = load["flop"] * summary.sampled_s / load["seconds"]
    assert 0.95 <= summary.tensor_estimate_flop / executed <= 1.5
