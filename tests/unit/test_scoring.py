"""What every student of a study is scored on, whatever the students were allowed to read."""

from __future__ import annotations

from typing import Any

import torch

from harness.ds_config import default
from harness.evaluate.scoring import Scorer
from harness.setting import Setting, prepare
from harness.study import validate
from tests.support.tiny import TinyStudy


def setting(tiny: TinyStudy, **data: Any) -> Setting:
    tree = tiny.tree()
    return prepare(validate({**tree, "data": {**tree["data"], **data}}, where="tiny"), default(bf16=False), world=1)


def test_the_read_out_learns_from_all_train_text_however_little_students_may_see(tiny: TinyStudy) -> None:
    whole, limited = setting(tiny), setting(tiny, limit_tokens=320)
    assert len(limited.corpus.blocks("train")) == 10 < len(whole.corpus.blocks("train"))
    ours, theirs = (Scorer(each).readout_batches["train"] for each in (limited, whole))
    assert len(ours) == len(theirs)
    assert all(torch.equal(a.input_ids_BT, b.input_ids_BT) for a, b in zip(ours, theirs, strict=True))


def test_scores_made_with_a_starved_head_are_made_again(tiny: TinyStudy) -> None:
    """Their key is another than that of a study without a limit, which differs by its corpus anyway."""
    kept, limited = (Scorer(setting(tiny, **data)).items()["readout"] for data in ({}, {"limit_tokens": 320}))
    assert kept != limited
