"""Laws of a plan's GLUE: priced at real lengths where they are here, bounded where not, and refused where a run would."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from harness.data.tokenizer import load_tokenizer
from harness.ds_config import default
from harness.errors import ConfigError, DataError
from harness.plan import glue as module
from harness.plan.estimate import estimate
from harness.plan.machines import parse_on
from harness.plan.outline import Sketch, sketch
from harness.study import load, validate
from harness.units import Unit, format_amount
from tests.support.glue_worlds import write_glue
from tests.support.tiny import TinyStudy

from .data_worlds import shared_data

GRID = {"lrs": [1e-3], "batches": [16], "epochs": 2}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "cache"))


def look(tiny: TinyStudy, *, main: str = "mlm.loss", **block: Any) -> Sketch:
    evaluation = {"main": main, "curve_points": 0, "mlm_blocks": 8, "readout": None, "glue": {"grid": GRID, **block}}
    study = validate(tiny.tree(evaluation=evaluation), where="test")
    return sketch(study, default(bf16=True), world=1, tell=lambda _line: None)


def elsewhere(**block: Any) -> Sketch:
    """A study at the paper's size, of which nothing is on this machine."""
    changes = [f"evaluation.glue.{key}={value}" for key, value in block.items()]
    return sketch(load("paper_6l_1epoch", assignments=changes), default(bf16=True), world=8, tell=lambda _line: None)


def glue_flop(found: Sketch) -> int:
    table = estimate(found, machine=parse_on("8xh200" if found.world == 8 else "h200"))
    return max(arm["evaluation_flop"]["afterwards"]["glue"] for arm in table["arms"])


def notes(found: Sketch) -> str:
    return "\n".join(estimate(found, machine=parse_on("8xh200" if found.world == 8 else "h200"))["notes"])


# -- what is here ------------------------------------------------------------------------------------------------
def test_a_sample_of_the_lengths_prices_a_large_folder_to_a_few_percent_and_tokens_in_the_cache_exactly(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = {"path": str(write_glue(tmp_path / "glue", train=1500)), "tasks": ["cola", "mnli", "stsb"], "length": 64}
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    monkeypatch.setattr(module, "SAMPLE", 300)
    sampled = look(tiny, **block)
    monkeypatch.setattr(module, "SMALL_BYTES", 10**9)
    read = look(tiny, **block)
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    again = look(tiny, **block)
    assert glue_flop(sampled) == pytest.approx(glue_flop(read), rel=0.02)
    assert glue_flop(again) == glue_flop(read)
    assert "the lengths of 300 examples" in notes(sampled)
    assert "the lengths of" not in notes(read) + notes(again)
    assert read.complete, "how GLUE is known has no part in how the corpus is"


def test_a_fetched_dataset_of_the_hub_is_priced_at_its_lengths_without_the_network(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "hub" / "datasets--nyu-mll--glue"
    write_glue(home / "snapshots" / ("0" * 40), tasks=("cola",))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    local = glue_flop(look(tiny, path=str(home / "snapshots" / ("0" * 40)), tasks=["cola"]))
    assert glue_flop(look(tiny, tasks=["cola"])) == local
    assert "upper bound" in notes(look(tiny, tasks=["cola", "rte"])), "RTE has not been fetched"


def test_a_cap_that_a_run_would_refuse_is_refused_by_the_plan(tiny: TinyStudy, tmp_path: Path) -> None:
    block = {"path": str(write_glue(tmp_path / "glue")), "tasks": ["cola", "mnli"]}
    prices = look(tiny, **block).glue
    assert prices is not None
    low = min(prices.plan.flop.values())
    with pytest.raises(ConfigError, match="the cheapest task"):
        look(tiny, **block, max_flop=f"{low - 1} flop")
    (kept,) = (name for name, price in prices.plan.flop.items() if price == low)
    (dropped,) = set(prices.plan.flop) - {kept}
    found = look(tiny, **block, max_flop=f"{low} flop")
    assert glue_flop(found) == low
    assert f"these did not fit: {dropped}" in notes(found)
    with pytest.raises(ConfigError, match=f"evaluation.main glue.{dropped}"):
        look(tiny, main=f"glue.{dropped}", **block, max_flop=f"{low} flop")


def test_too_few_examples_are_refused_from_a_sample_as_from_the_whole(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    with pytest.raises(DataError, match="has 12 training examples"):
        look(tiny, path=str(write_glue(tmp_path / "glue", tasks=("rte",), train=12)), tasks=["rte"])


# -- what is not here --------------------------------------------------------------------------------------------
def test_where_glue_is_not_here_the_plan_says_so_and_keeps_its_other_notes() -> None:
    said = notes(elsewhere(select_on="validation", train_examples=50_000))
    assert "every example at full length, an upper bound" in said
    assert "the scores are optimistic" in said
    assert "cut to 50,000 examples: sst2 (67,349), qqp (363,846), mnli (392,702), qnli (104,743)" in said


def test_a_cap_on_what_is_not_here_bounds_the_price_and_names_what_may_not_fit() -> None:
    def seen(**block: Any) -> tuple[module.GlueOutlook, int, str]:
        found = elsewhere(**block)
        assert found.glue is not None
        price = max(found.glue.flop(arm.shape) for arm in found.arms.values())
        return found.glue, price, "\n".join([*found.glue.notes, *found.glue.plan.notes])

    whole, price, _ = seen()
    prices = whole.plan.flop
    assert price == sum(prices.values())
    # In round FLOPs, which a float holds exactly.
    cap = (price - max(prices.values())) // 10**12 * 10**12 + 10**12
    _, price, said = seen(max_flop=f"{cap} flop")
    assert price == cap
    assert f"at full length these would not fit: mnli ({format_amount(prices['mnli'], Unit.FLOP)})" in said
    # Under the cheapest task's bound some may still fit: the plan refuses nothing, and names them all.
    least = min(prices.values()) // 10**12 * 10**12
    _, price, said = seen(max_flop=f"{least} flop")
    assert price == least
    assert all(f"{task} ({format_amount(flop, Unit.FLOP)})" in said for task, flop in prices.items())


def test_a_cap_that_examples_without_a_word_would_exceed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the cheapest task, \w+, costs at least"):
        elsewhere(max_flop="'1e9 flop'")


# -- real text ---------------------------------------------------------------------------------------------------
def test_real_glue_is_planned_within_seconds_at_a_fraction_of_its_padded_price(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, vocabulary = shared_data("glue"), shared_data("bert-base-uncased")
    if folder is None or vocabulary is None:
        pytest.skip("no real GLUE here: set ISOBUDGET_TEST_DATA to a folder with glue and bert-base-uncased")
    tokenizer, fingerprint = load_tokenizer(str(vocabulary))
    setting = look(tiny, path=str(folder), tasks=["cola", "sst2", "mrpc", "stsb"]).setting
    setting.tokenizer, setting.tokenizer_fingerprint = tokenizer, fingerprint
    begun = time.process_time()
    real = module.outlook(setting)
    assert time.process_time() - begun < 10
    monkeypatch.setattr(module.glue_files, "at_hand", lambda *_: None)
    padded = module.outlook(setting)
    assert real is not None
    assert padded is not None
    assert {task: data.available for task, data in real.plan.data.items()} == {
        task: data.available for task, data in padded.plan.data.items()
    }
    assert sum(real.plan.flop.values()) < 0.5 * sum(padded.plan.flop.values())
