"""How often a student gives its teacher's wrong answers, at the masked test positions that every subject is asked about.

A student that learns a teacher's errors repeats its wrong tokens more often than an equally large student that never
saw the teacher; some agreement is owed to the text alone, where frequent tokens tempt everybody. Answers cost
nothing: they are the most likely tokens of forwards that the scores need anyway.
Shapes: N masked test positions, the same for every subject of a study.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

FILE = "answers.safetensors"
# The read-out is the same for every arm, trained head or not; the own head is where logits are copied.
HEADS = ("mlm", "clm", "readout")


def keep(folder: Path, head: str, answers_N: torch.Tensor) -> None:
    """Add one head's most likely tokens to a subject's answers."""
    held = {name: answers for name, answers in _answers(folder).items() if name != head}
    save_file({**held, head: answers_N.to(torch.int32)}, folder / FILE)


def copied(student: Path, teacher: Path, *, labels: torch.Tensor) -> dict[str, Any] | None:
    """{errors, teacher's wrong answers; mlm or clm, and readout, the share of them a student's head repeats}.

    None where the teacher's answers are missing, belong to other test blocks, or hold no error. The teacher answers with
    its own head, which is what it taught.
    """
    answers = _answers(teacher)
    taught = answers.get("mlm", answers.get("clm"))
    if taught is None or taught.shape != labels.shape:
        return None
    wrong_N = taught != labels
    errors = int(wrong_N.sum())
    if not errors:
        return None
    mine = {name: answers for name, answers in _answers(student).items() if answers.shape == labels.shape}
    shares = {head: float((mine[head] == taught)[wrong_N].float().mean()) for head in HEADS if head in mine}
    return {"errors": errors, **shares} if shares else None


def _answers(folder: Path) -> dict[str, torch.Tensor]:
    """What a subject answered, by head; empty where it was never asked or the file is torn."""
    try:
        return load_file(folder / FILE)
    except (OSError, SafetensorError):
        return {}
