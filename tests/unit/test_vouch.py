"""A teacher hardly better than counts of tokens is told before anything is spent; test_teacher.py has the worse ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness import cli
from harness.evaluate.vouch import frequency_loss
from tests.support.tiny import TinyStudy


def world(blocks: np.ndarray, vocab: int) -> Any:
    return SimpleNamespace(vocab_size=vocab, sources=("a",), blocks=lambda split, source: blocks)


def test_counts_of_tokens_lose_the_cross_entropy_of_their_frequencies() -> None:
    """Tokens 2 and 3, three to one; [CLS] 0 and [SEP] 1 are not counted; every count is raised by one."""
    blocks = np.tile(np.array([0, 2, 2, 2, 3, 1]), (100, 1))
    labels = [SimpleNamespace(labels_N=torch.tensor([2, 3]))]
    p = np.array([301, 101]) / (400 + 4)
    assert frequency_loss(world(blocks, 4), labels) == pytest.approx(-np.log(p).mean())  # type: ignore[arg-type]
    assert frequency_loss(world(blocks[:0], 4), labels) == pytest.approx(np.log(4))  # type: ignore[arg-type]


def test_a_sample_of_a_long_corpus_gives_nearly_the_whole_ones_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.evaluate import vouch

    tokens = np.random.default_rng(0).zipf(1.5, (20_000, 34)) % 50
    labels = [SimpleNamespace(labels_N=torch.from_numpy(tokens[::50].reshape(-1)))]
    sampled = frequency_loss(world(tokens, 50), labels)  # type: ignore[arg-type]
    monkeypatch.setattr(vouch, "COUNTED", 10**9)
    assert sampled == pytest.approx(frequency_loss(world(tokens, 50), labels), abs=0.01)  # type: ignore[arg-type]


def test_a_weak_teacher_is_an_alarm_before_the_first_step_and_in_the_report(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--arms", "no_kd,soft_targets", "--budget", "0.5 Gflop", "--set", "evaluation.readout=null"]
    more = ["--set", "evaluation.main=mlm.loss", "--out", str(out)]
    assert cli.main(["run", "--study", str(tiny.file), *flags, *more]) == 0
    said = capsys.readouterr().out.splitlines()
    alarm = next(i for i, line in enumerate(said) if "alarm: soft_targets: its teacher is not sufficiently" in line)
    assert alarm < next(i for i, line in enumerate(said) if "% of the budget" in line or " steps, " in line)
    report = json.loads((out / "report.json").read_text())
    found = [a["arm"] for a in report["alarms"] if a["kind"] == "weak_teacher" and "not sufficiently" in a["text"]]
    assert found == ["soft_targets"], "the made teacher has random weights; the arm without one raises nothing"
    assert "its teacher is not sufficiently better" in (out / "report.html").read_text()
