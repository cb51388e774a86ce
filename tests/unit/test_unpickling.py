"""No file of tensors runs a program, whoever asks for it to be read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from harness.errors import CheckpointError
from harness.unpickling import refuse_programs, tensors_only


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> object:
        return os.mkdir, (self.canary,)


class Known:
    """Stands for a class of DeepSpeed's optimizer state."""

    scale = 1.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "step-1" / "engine").mkdir(parents=True)
    return tmp_path / "step-1" / "engine"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_program_is_refused_before_it_runs(place: Path, legacy: bool) -> None:
    file, canary = place / "state.pt", place / "canary"
    torch.save({"weights": torch.ones(3), "more": Bomb(canary)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"step-1/engine/state.pt: it holds more than tensors.*nothing of it was run"
    ):
        refuse_programs([file], [Known])
    # The way DeepSpeed writes it.
    with tensors_only([Known]), pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)
    assert not canary.exists()


def test_a_plain_pickle_is_no_file_of_tensors(place: Path) -> None:
    (place / "state.pt").write_bytes(pickle.dumps(Bomb(place / "canary")))
    with pytest.raises(CheckpointError):
        refuse_programs([place / "state.pt"], [])
    assert not (place / "canary").exists()


def test_what_is_allowed_is_read_and_only_inside(place: Path) -> None:
    file = place / "state.pt"
    torch.save({"scaler": Known(), "weights": torch.arange(3)}, file)
    refuse_programs([file], [Known])
    with tensors_only([Known]):
        with tensors_only([Known]):
            pass
        assert torch.load(file, weights_only=False)["weights"].tolist() == [0, 1, 2], (
            "leaving an inner one forgets nothing"
        )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


def test_what_a_library_has_registered_is_not_ours(place: Path) -> None:
    """Imports register classes for the whole process; files of ours are read by our list and no other."""
    file = place / "state.pt"
    torch.save({"scaler": Known()}, file)
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([Known])
    try:
        assert torch.load(file, weights_only=True)["scaler"].scale == 1.0
        with pytest.raises(CheckpointError, match="it holds more than tensors"):
            refuse_programs([file], [])
        with tensors_only([Known]), tensors_only([]), pytest.raises(pickle.UnpicklingError):
            torch.load(file, weights_only=False)
        assert Known in torch.serialization.get_safe_globals(), "theirs again afterwards"
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_the_process_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    before = set(torch.serialization.get_safe_globals())
    with tensors_only([Known]):
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert set(torch.serialization.get_safe_globals()) == before
