"""Every random generator a run may draw from, kept and put back: PyTorch's (CPU and device), NumPy's, Python's.

The stream of samples draws nothing (it is a function of the step); dropout and libraries may.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def write(path: Path) -> None:
    """Keep the state of all generators as tensors; no pickle."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, waiting = random.getstate()
    assert kind == "MT19937"
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_place": torch.tensor([place, has_gauss]),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "python": torch.tensor([version, *words]),
        # Not a number where Python holds no second Gaussian in waiting.
        "python_gauss": torch.tensor([float("nan") if waiting is None else waiting], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    save_file(state, path)


def restore(path: Path) -> None:
    """Put back what `write` kept; the device's state only where there is one."""
    state = load_file(path)
    torch.set_rng_state(state["torch"])
    place, has_gauss = state["numpy_place"].tolist()
    np.random.set_state(
        ("MT19937", state["numpy"].numpy().astype(np.uint32), place, has_gauss, state["numpy_gauss"].item())
    )
    version, *words = state["python"].tolist()
    waiting = state["python_gauss"].item()
    random.setstate((version, tuple(words), None if waiting != waiting else waiting))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
