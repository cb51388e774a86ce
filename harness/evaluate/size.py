"""What a student costs to use: parameters, bytes, and the time of a forward pass on this device.

Timed is the body alone, as a classifier uses it, in fp32 on random tokens without pads. The first runs are not
counted; then runs are timed until there are enough of them or the time is up, each to its end on the device.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from harness.evaluate.encoders import Encoder
from harness.evaluate.subject import Subject
from harness.hardware import describe
from harness.models.signals import Needs

LENGTH = 128
BATCHES = (1, 32)
WARM_UP = 2
RUNS = 20
SECONDS = 0.6


def measure(folder: Path, *, device: torch.device) -> dict[str, Any]:
    """Size and latency of an exported student, about a second and never less than one timed run per batch size.

    Raises:
        DataError: the folder holds no model that can be loaded.
    """
    subject = Encoder(folder).load(device=device)
    parameters = {id(p): p for p in subject.model.parameters()}
    embeddings = {id(p) for p in subject.model.get_input_embeddings().parameters()}
    return {
        "parameters": sum(p.numel() for p in parameters.values()),
        "parameters_without_embeddings": sum(p.numel() for key, p in parameters.items() if key not in embeddings),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "latency": {
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "length": min(LENGTH, subject.shape.max_length),
            "precision": "fp32",
            "warm_up_runs": WARM_UP,
            "of": "the body without a head, no pads",
            **{f"batch_{batch}": latency(subject, batch) for batch in BATCHES},
        },
    }


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's model, which a latency belongs to."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(describe()["cpu"])


@torch.no_grad()
def latency(subject: Subject, batch: int) -> dict[str, float]:
    """{p20_ms, p50_ms, p80_ms, runs} of one forward of `batch` sequences."""
    length = min(LENGTH, subject.shape.max_length)
    generator = torch.Generator().manual_seed(0)
    # Ids from 10 on: the lowest are special, and a pad would change the positions of some families.
    ids = torch.randint(min(10, subject.shape.vocab - 1), subject.shape.vocab, (batch, length), generator=generator)
    ids = ids.to(subject.device)
    needs = Needs(states=frozenset({subject.shape.layers}))

    def once() -> float:
        begun = time.perf_counter()
        subject.signals(needs, input_ids_BT=ids)
        if subject.device.type == "cuda":
            torch.cuda.synchronize(subject.device)
        return (time.perf_counter() - begun) * 1e3

    begun = time.perf_counter()
    for _ in range(WARM_UP):
        once()
        if time.perf_counter() - begun > SECONDS:
            break
    times = [once()]
    while len(times) < RUNS and time.perf_counter() - begun < SECONDS:
        times.append(once())
    times.sort()
    return {
        **{f"p{p}_ms": round(times[min(len(times) - 1, math.ceil(p / 100 * len(times)) - 1)], 3) for p in (20, 50, 80)},
        "runs": len(times),
    }
