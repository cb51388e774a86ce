"""A teacher that is not trained yet, as far as a plan can know it: shape, tokenizer, and what its training will cost.

No weights: enough to check every point of a sweep and to price it before the first teacher is trained.
"""

from __future__ import annotations

import json
from pathlib import Path

from harness.data.tokenizer import load_tokenizer, special_ids
from harness.models.student import student_config
from harness.sweep.expand import TeacherRun
from harness.units import Unit


def write(run: TeacherRun, folder: Path) -> Path:
    """Put config, tokenizer and card of this teacher into `folder`; returns it.

    The card's cost is the whole budget, which training comes within one step of.
    """
    study = run.study
    tokenizer, _ = load_tokenizer(study.data.tokenizer)
    special = special_ids(tokenizer)
    ids = {"pad": special.pad, "cls": special.cls, "sep": special.sep, "mask": special.mask}
    config = student_config(
        study.student, vocab=len(tokenizer), special=ids, block_length=study.data.block_length
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    limit = study.limit
    card = {"training_flop": limit.limit if limit.unit is Unit.FLOP else None, "accounts": {}}
    if limit.unit is not Unit.FLOP:
        card["accounts"] = {"STUDENT_STEP": {limit.unit.value: limit.limit}}
    if limit.unit is Unit.TOKEN:
        card["tokens"] = limit.limit
    (folder / "isobudget.json").write_text(json.dumps(card) + "\n", encoding="utf-8")
    return folder
