"""A teacher that is not trained yet, as far as a plan can know it: shape, tokenizer, and what its training will cost.

No weights, and for a plan no tokenizer where it is not on this machine: enough to check every point of a sweep and to price it
before the first teacher is trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.tokenizer import load_tokenizer
from harness.models.shapes import shape_of
from harness.models.student import student_config
from harness.plan.blueprint import weights_of
from harness.plan.outline import vocabulary
from harness.sweep.expand import TeacherRun
from harness.units import Unit

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def write(run: TeacherRun, folder: Path, *, complete: bool) -> Path:
    """Put config, tokenizer and card of this teacher into `folder`; returns it.

    `complete`: the tokenizer is fetched where it is not on this machine, as a run will. The card's cost is the whole budget, which training comes within one step of.
    """
    study = run.study
    if complete:
        load_tokenizer(study.data.tokenizer)
    config, tokenizer = _config(run)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    limit = study.limit
    card = {"training_flop": limit.limit if limit.unit is Unit.FLOP else None, "accounts": {}}
    if limit.unit is not Unit.FLOP:
        card["accounts"] = {"STUDENT_STEP": {limit.unit.value: limit.limit}}
    if limit.unit is Unit.TOKEN:
        card["tokens"] = limit.limit
    (folder / "isobudget.json").write_text(json.dumps(card) + "\n", encoding="utf-8")
    return folder


def parameters(run: TeacherRun) -> int:
    """How many weights this teacher will have, from its configuration: what its record will say."""
    config, _ = _config(run)
    return weights_of(config, shape_of(config.to_dict()))


def _config(run: TeacherRun) -> tuple[PretrainedConfig, Any]:
    """Its config, and its tokenizer or None where that is not on this machine."""
    study = run.study
    entries, ids, tokenizer, _, _ = vocabulary(study.data.tokenizer)
    return student_config(study.student, vocab=entries, special=ids, block_length=study.data.block_length), tokenizer
