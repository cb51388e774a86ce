"""GLUE as data: all nine tasks in the Hub's layout, refused when broken, cut and held out alike for everyone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import glue, glue_files, glue_price
from harness.data.glue_tasks import TASKS
from harness.data.tokenizer import load_tokenizer
from harness.errors import ConfigError, DataError
from harness.models.shapes import Shape
from harness.plan.glue import GLUE_SIZES
from harness.study import GlueSpec, glue_spec
from harness.study.glue import NAMES
from tests.support.glue_worlds import rows, write_glue, write_split

SHAPE = Shape("bert", 2, 32, 4, 128, 4096, 32, 128)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import os

    os.environ["ISOBUDGET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def prepare(folder: Path, **keys: object) -> dict[str, glue.TaskData]:
    tokenizer, fingerprint = load_tokenizer("builtin")
    spec = glue_spec({"path": str(folder), **keys}, where="the test")
    return glue.prepare(spec, tokenizer, tokenizer_fingerprint=fingerprint, longest=128)


def texts(part: glue.Part) -> list[tuple[int, ...]]:
    return [
        tuple(part.tokens[start : start + length])
        for start, length in zip(part.starts_E, part.lengths_E, strict=True)
    ]  # fmt: skip


def test_the_study_knows_the_tasks_that_the_data_knows() -> None:
    assert tuple(TASKS) == NAMES


# As `nyu-mll/glue` on the Hub declares them: columns, class names by label, judged splits and the examples of each, train.
HUB: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, int], int]] = {
    "cola": (("sentence",), ("unacceptable", "acceptable"), {"validation": 1043}, 8551),
    "sst2": (("sentence",), ("negative", "positive"), {"validation": 872}, 67349),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent"), {"validation": 408}, 3668),
    "stsb": (("sentence1", "sentence2"), (), {"validation": 1500}, 5749),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate"), {"validation": 40430}, 363846),
    "mnli": (
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
        {"validation_matched": 9815, "validation_mismatched": 9832}, 392702,
    ),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment"), {"validation": 5463}, 104743),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment"), {"validation": 277}, 2490),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment"), {"validation": 71}, 635),
}  # fmt: skip


def test_the_nine_tasks_are_those_that_the_hub_declares() -> None:
    """Written out by hand: whatever else tests GLUE here makes its data from the table under test."""
    assert {name: (t.columns, t.classes, t.judged) for name, t in TASKS.items()} == {
        name: (columns, classes, tuple(judged)) for name, (columns, classes, judged, _) in HUB.items()
    }
    assert {name: (train, sum(judged.values())) for name, (_, _, judged, train) in HUB.items()} == GLUE_SIZES


def test_all_nine_tasks_are_read_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    data = prepare(write_glue(tmp_path))
    assert tuple(data) == NAMES
    tokenizer, _ = load_tokenizer("builtin")
    for name, task in data.items():
        assert len(task.train) + len(task.selection or []) == 120
        assert list(task.judged) == list(TASKS[name].judged)
        first = task.judged[TASKS[name].judged[0]]
        source = rows(TASKS[name], 40, f"{name} {TASKS[name].judged[0]} 0")
        words = tokenizer.decode(texts(first)[7]).replace("[CLS]", "").split("[SEP]")
        assert [w.strip() for w in words[:-1]] == [source[column][7] for column in TASKS[name].columns]
        assert first.labels_E.tolist() == source["label"]


def test_the_second_text_begins_behind_the_first_separator(tmp_path: Path) -> None:
    part = prepare(write_glue(tmp_path, tasks=("rte",)), tasks=["rte"])["rte"].train
    tokenizer, _ = load_tokenizer("builtin")
    for ids, second, length in zip(texts(part), part.seconds_E, part.lengths_E, strict=True):
        assert ids[0] == tokenizer.cls_token_id
        assert ids[second - 1] == ids[length - 1] == tokenizer.sep_token_id
        assert ids.count(tokenizer.sep_token_id) == 2


@given(st.lists(st.integers(), max_size=40), st.lists(st.integers(), max_size=40), st.integers(0, 50))
def test_the_longer_text_is_cut_first_as_if_one_token_at_a_time(a: list[int], b: list[int], room: int) -> None:
    first, second = list(a), list(b)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    assert glue.cut(a, b, room=room) == (first, second)


def test_examples_are_no_longer_than_asked(tmp_path: Path) -> None:
    data = prepare(write_glue(tmp_path, tasks=("mrpc", "sst2")), tasks=["mrpc", "sst2"], length=12)
    for task in data.values():
        for part in (task.train, *task.judged.values()):
            assert part.lengths_E.max() <= 12
            assert all(ids[-1] == 3 for ids in texts(part)), "a cut example still ends in [SEP]"


def test_what_is_held_out_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    table = rows(TASKS["cola"], 200, "order")
    for place, shuffled in (("a", False), ("b", True)):
        order = list(range(200))
        if shuffled:
            random.Random(1).shuffle(order)
        write_split(tmp_path / place, "cola", "train", {k: [v[i] for i in order] for k, v in table.items()})
        write_split(tmp_path / place, "cola", "validation", rows(TASKS["cola"], 20, "v"))
    kept = [
        (sorted(texts(t.train)), sorted(texts(t.selection)))
        for place in "ab"
        if (t := prepare(tmp_path / place, tasks=["cola"], train_examples=150)["cola"]).selection is not None
    ]
    assert kept[0] == kept[1]
    assert len(kept[0][0]) + len(kept[0][1]) == 150
    assert len(kept[0][1]) == 15


def test_equal_texts_are_never_on_both_sides(tmp_path: Path) -> None:
    table = rows(TASKS["sst2"], 30, "few")
    doubled = {k: v * 4 for k, v in table.items()}
    write_split(tmp_path, "sst2", "train", doubled)
    write_split(tmp_path, "sst2", "validation", rows(TASKS["sst2"], 10, "v"))
    task = prepare(tmp_path, tasks=["sst2"])["sst2"]
    assert task.selection is not None
    assert not set(texts(task.train)) & set(texts(task.selection))
    assert len(task.selection) >= 4


def test_the_papers_protocol_trains_on_all_of_train(tmp_path: Path) -> None:
    task = prepare(write_glue(tmp_path, tasks=("rte",)), tasks=["rte"], select_on="validation")["rte"]
    assert task.selection is None
    assert len(task.train) == 120


def test_the_fingerprint_is_the_datas_and_not_the_places(tmp_path: Path) -> None:
    there, copy = (write_glue(tmp_path / n, tasks=("cola",)) for n in "ab")
    other = write_glue(tmp_path / "c", tasks=("cola",), seed=1)
    names = [prepare(folder, tasks=["cola"])["cola"].fingerprint for folder in (there, copy, other)]
    assert names[0] == names[1] != names[2]


def _no_label(folder: Path) -> None:
    table = rows(TASKS["rte"], 40, "x")
    del table["label"]
    write_split(folder, "rte", "train", table)


def _no_column(folder: Path) -> None:
    table = rows(TASKS["rte"], 40, "x")
    del table["sentence2"]
    write_split(folder, "rte", "train", table)


def _label(value: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        import pyarrow.parquet as pq

        path = folder / "rte" / "validation-00000-of-00001.parquet"
        table = pq.read_table(path)
        labels = table.column("label").to_pylist()
        labels[3] = value
        index = table.column_names.index("label")
        pq.write_table(table.set_column(index, "label", [labels]), path)

    return spoil


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: [p.unlink() for p in (f / "rte").iterdir()] and (f / "rte").rmdir(), "has no folder"),
    "no validation": (lambda f: (f / "rte" / "validation-00000-of-00001.parquet").unlink(), "no validation split"),
    "no train": (lambda f: (f / "rte" / "train-00000-of-00001.parquet").unlink(), "no train split"),
    "half a split": (
        lambda f: (f / "rte" / "train-00000-of-00001.parquet").rename(f / "rte" / "train-00001-of-00002.parquet"),
        "train lacks part 00000",
    ),
    "no label": (_no_label, "no column 'label'"),
    "no text": (_no_column, "no column 'sentence2'"),
    "label 2": (_label(2), "row 3: label 2"),
    "hidden": (_label(-1), "hidden"),
    "pointer": (
        lambda f: (f / "rte" / "train-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "torn": (lambda f: (f / "rte" / "train-00000-of-00001.parquet").write_bytes(b"PAR1"), "not a readable parquet"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_data_is_refused_in_words(tmp_path: Path, what: str) -> None:
    spoil, message = BROKEN[what]
    folder = write_glue(tmp_path, tasks=("rte",))
    spoil(folder)
    with pytest.raises(DataError, match=message):
        prepare(folder, tasks=["rte"])
    with pytest.raises(DataError, match=message):
        glue_files.check(folder, ["rte"])


def test_whole_data_passes_the_check_that_reads_no_text(tmp_path: Path) -> None:
    glue_files.check(write_glue(tmp_path), list(NAMES))


def test_a_similarity_outside_its_range_is_refused(tmp_path: Path) -> None:
    folder = write_glue(tmp_path, tasks=("stsb",))
    table = rows(TASKS["stsb"], 40, "x")
    table["label"][5] = 5.2
    write_split(folder, "stsb", "train", table)
    with pytest.raises(DataError, match=r"row 5: label 5\.19"):
        prepare(folder, tasks=["stsb"])


def test_a_place_that_is_nowhere_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        prepare(tmp_path / "absent", tasks=["cola"])
    with pytest.raises(DataError, match="the Hub would give"):
        prepare(Path("nobody/nothing"), tasks=["cola"])  # tests are offline


# -- prices ----------------------------------------------------------------------------------------------
def test_the_price_is_the_sum_of_its_jobs_and_a_longer_grid_costs_its_share(tmp_path: Path) -> None:
    data = prepare(write_glue(tmp_path, tasks=("cola",)), tasks=["cola"])["cola"]
    outputs = 2
    train, held, judged = (
        glue_price.forward_flop(SHAPE, part, outputs)
        for part in (data.train, data.selection, data.judged["validation"])
        if part is not None
    )
    one = glue_price.job_flop(SHAPE, data, batch=32, epochs=3, steps=glue_price.full_steps(data, batch=32, epochs=3))
    assert one == 3 * 3 * train + held + judged
    quick, paper = (glue_spec({"grid": g}, where="") for g in ("quick", "paper"))
    assert glue_price.task_flop(SHAPE, data, quick) == 2 * one
    assert glue_price.task_flop(SHAPE, data, paper) == 8 * (3 * 5 * train + held + judged)
    seeds = glue_spec({"grid": "quick", "seeds": [1, 2, 3]}, where="")
    assert glue_price.task_flop(SHAPE, data, seeds) == 6 * one


def test_successive_halving_costs_less_than_the_grid_it_searches(tmp_path: Path) -> None:
    data = prepare(write_glue(tmp_path, tasks=("cola",), train=4000), tasks=["cola"])["cola"]
    staged, paper = (glue_price.task_flop(SHAPE, data, glue_spec({"grid": g}, where="")) for g in ("staged", "paper"))
    assert staged < 0.6 * paper


@given(examples=st.integers(20, 400_000))
def test_rivals_of_a_round_read_the_same_share_and_none_takes_fewer_steps_than_the_fewest(examples: int) -> None:
    spec = glue_spec({"grid": "staged"}, where="")
    full = {batch: 5 * -(-examples // batch) for batch in (16, 32)}
    before = 0.0
    for stage in glue_price.stages(spec, examples):
        assert before <= stage.share <= 1
        before = stage.share
        for batch, steps in full.items():
            assert min(steps, glue_price.FEWEST_STEPS) <= stage.steps(steps) <= steps
            assert stage.steps(steps) / steps == pytest.approx(stage.share, abs=1 / full[batch])
    assert before == 1


def test_a_forwards_price_is_what_the_shape_says(tmp_path: Path) -> None:
    part = prepare(write_glue(tmp_path, tasks=("mnli",)), tasks=["mnli"])["mnli"].judged["validation_matched"]
    expected = 0
    for length in part.lengths_E:
        for layer in (1, 2):
            expected += SHAPE.layer_flops(layer, sequences=1, length=int(length))
        expected += 2 * 32 * 3
    assert glue_price.forward_flop(SHAPE, part, 3) == expected


@given(st.integers(0, 2**62))
def test_a_cap_keeps_the_cheapest_tasks_and_is_never_exceeded(cap: int) -> None:
    prices = {"cola": 3 * 10**15, "rte": 10**14, "mnli": 4 * 10**17}
    found = _capped(prices, cap)
    if found is None:
        assert cap < min(prices.values())
        return
    assert sum(found.flop.values()) <= cap
    assert set(found.flop) | set(found.dropped) == set(prices)
    if found.dropped:
        assert sum(found.flop.values()) + min(found.dropped.values()) > cap
        assert max(found.flop.values()) <= min(found.dropped.values())
        assert all(task in found.notes[0] for task in found.dropped)


def test_a_cap_below_the_cheapest_task_is_refused_with_its_price() -> None:
    spec = glue_spec({"tasks": ["cola", "rte"], "max_flop": "1e9 flop"}, where="")
    with pytest.raises(ConfigError, match="the cheapest task, rte, costs 100 TFLOP"):
        glue_price.capped(spec, {}, {"cola": 10**15, "rte": 10**14}, length=128)


def _capped(prices: dict[str, int], cap: int) -> glue_price.GluePlan | None:
    spec: GlueSpec = glue_spec({"tasks": list(prices), "max_flop": str(max(cap, 1))}, where="")
    try:
        return glue_price.capped(spec, dict.fromkeys(prices), prices, length=128)  # type: ignore[arg-type]
    except ConfigError:
        return None


def test_token_arrays_are_not_copied_by_views(tmp_path: Path) -> None:
    part = prepare(write_glue(tmp_path, tasks=("cola",)), tasks=["cola"])["cola"].train
    assert part.take(np.array([0, 2])).tokens is part.tokens
