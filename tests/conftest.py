"""Shared fixtures. Tests run single-threaded and offline, against a corpus and a teacher made here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# One thread: two ranks and several test processes share a small machine, and sums keep their order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

# Machines that run tests are busy machines: a slow example is no failing example.
settings.register_profile("isobudget", deadline=None)
settings.load_profile("isobudget")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.tiny import TinyStudy  # noqa: E402


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """A study that trains in a second: a made corpus, a random teacher, the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    os.environ["ISOBUDGET_CACHE"] = str(folder / "cache")
    return TinyStudy.make(folder)
