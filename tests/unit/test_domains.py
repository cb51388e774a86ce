"""Laws of domains: nothing of the training text in them, one account of every block, and mistakes refused at the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import cli
from harness.data import corpus as corpora
from harness.data import domains
from harness.data.overlap import WINDOW, overlaps, running_text
from harness.data.stream import domain_batches, evaluation_batches, evaluation_choice
from harness.errors import ConfigError, DataError
from harness.study import EvaluationSpec, SourceSpec, validate
from tests.support.tiny import TinyStudy

from .data_worlds import corpus_of, document, spec, write_jsonl

OTHER = [document("other", i) for i in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def training(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "train" / "docs.jsonl", [document("docs", i) for i in range(150)])


def listed(*paths: Path | str, **more: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"domains": [{"path": str(p), **more} for p in paths]})


# -- overlap ---------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    train=st.lists(st.integers(5, 9), min_size=0, max_size=120),
    text=st.lists(st.integers(5, 9), min_size=0, max_size=60),
    copied=st.tuples(st.integers(0, 100), st.integers(0, 60)),
)
def test_overlap_is_the_share_of_windows_found_word_for_word(
    train: list[int], text: list[int], copied: tuple[int, int]
) -> None:
    text = text + train[copied[0] : copied[0] + copied[1]]

    def windows(ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[i : i + WINDOW]) for i in range(len(ids) - WINDOW + 1)]

    known, mine = set(windows(train)), windows(text)
    expected = sum(w in known for w in mine) / len(mine) if mine else 0.0
    assert overlaps([text, []], [np.asarray(train)]).tolist() == [pytest.approx(expected), 0.0]


def test_packed_blocks_are_read_as_the_running_text_they_were_cut_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a copied passage crosses blocks, and where the text is read in several pieces."""
    text = np.arange(5, 5 + 40 * 14)
    blocks = np.hstack((np.full((40, 1), 2), text.reshape(40, 14), np.full((40, 1), 3)))
    monkeypatch.setattr("harness.data.overlap._CHUNK", 100)
    passages = [text[start : start + 50].tolist() for start in range(0, 500, 7)]
    assert overlaps(passages, running_text(blocks)).tolist() == [1.0] * len(passages)


# -- domains ---------------------------------------------------------------------------------------
def test_without_a_list_there_are_no_domains(training: Path) -> None:
    assert domains.prepare(EvaluationSpec(), corpora.prepare(spec(training))) == {}


def test_the_mixtures_sources_are_domains_by_their_own_test_blocks(training: Path, tmp_path: Path) -> None:
    second = write_jsonl(tmp_path / "train" / "more.jsonl", [document("more", i) for i in range(150)])
    corpus = corpora.prepare(spec(training, second))
    found = domains.prepare(listed(write_jsonl(tmp_path / "other.jsonl", OTHER), name="other"), corpus)
    assert list(found) == ["docs", "more", "other"]
    assert [d.trained_on for d in found.values()] == [True, True, False]
    for label in ("docs", "more"):
        assert np.array_equal(found[label].blocks, corpus.blocks("test", label))
    assert len({d.fingerprint for d in found.values()}) == 3
    assert json.loads(json.dumps(found["other"].describe()))["documents"] == len(OTHER)


def test_all_text_of_a_source_that_nobody_trains_on_is_held_out_but_its_own_test_split_goes_first(
    training: Path, tmp_path: Path
) -> None:
    corpus = corpora.prepare(spec(training))
    whole = domains.prepare(listed(write_jsonl(tmp_path / "whole.jsonl", OTHER), name="x"), corpus)["x"]
    write_jsonl(tmp_path / "own" / "train.jsonl", OTHER)
    write_jsonl(tmp_path / "own" / "test.jsonl", OTHER[:20])
    own = domains.prepare(listed(tmp_path / "own", name="x"), corpus)["x"]
    assert whole.facts["documents"] == 60
    assert own.facts["documents"] == 20


def test_text_that_students_learn_from_is_left_out_and_a_source_of_it_refused(training: Path, tmp_path: Path) -> None:
    corpus = corpora.prepare(spec(training))
    held = {d.text for split in ("validation", "test") for d in corpus.documents(split)}
    learnt = [t for t in (document("docs", i) for i in range(150)) if t not in held]
    few = write_jsonl(tmp_path / "few.jsonl", [*OTHER, *learnt[:3]])
    found = domains.prepare(listed(few, name="few"), corpus)["few"]
    assert found.facts["in_training_text"] == 3
    assert found.facts["documents"] == len(OTHER)
    many = write_jsonl(tmp_path / "many.jsonl", [*OTHER, *learnt[:30]])
    with pytest.raises(DataError, match=r"many: 30 of 90 documents stand in the training text"):
        domains.prepare(listed(many, name="many"), corpus)


def test_a_cached_domain_is_made_anew_for_other_training_text(training: Path, tmp_path: Path) -> None:
    """The same file is another domain once its text is trained on."""
    other = write_jsonl(tmp_path / "other.jsonl", OTHER)
    assert domains.prepare(listed(other, name="x"), corpora.prepare(spec(training)))["x"].facts["in_training_text"] == 0
    copy = write_jsonl(tmp_path / "copy.jsonl", OTHER)
    with pytest.raises(DataError, match="stand in the training text"):
        domains.prepare(listed(other, name="x"), corpora.prepare(spec(training, copy)))


def test_a_large_source_is_sampled_by_hash_and_texts_count_once(
    training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domains, "MAX_CHARACTERS", 8000)
    corpus = corpora.prepare(spec(training))
    texts = [document("many", i) for i in range(200)]
    found = [
        domains.prepare(listed(write_jsonl(tmp_path / f"{name}.jsonl", rows), name="x"), corpus)["x"]
        for name, rows in (("one", texts), ("turned", texts[::-1] + texts[:50]))
    ]
    assert found[0].fingerprint == found[1].fingerprint, "neither order nor repeats matter"
    assert 0 < found[0].facts["documents"] < 40


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"path": "a/x"}, {"path": "b/x"}], "domain 'x' is listed twice"),
        ([{"path": "elsewhere/wiki"}], "domain 'wiki' has the name of a data source"),
        ([{"path": "team/wiki", "name": "mine"}], "is the text of data source 'wiki'"),
        ([{"path": "python-cod"}], "unknown source 'python-cod': embedded are python-docs"),
        ([{"path": "x", "weight": 2}], "unknown key"),
        ([{"path": "a/b c"}], "needs a name"),
    ],
)
def test_a_domain_that_cannot_be_meant_is_refused(tiny: TinyStudy, entries: list[Any], message: str) -> None:
    tree = tiny.tree(
        data={"sources": [{"path": "team/wiki"}], "block_length": 32},
        evaluation={"readout": {"steps": 2}, "domains": entries},
    )
    with pytest.raises(ConfigError, match=message):
        validate(tree, where="test")


def test_a_source_may_be_listed_by_its_own_name_and_domains_need_a_readout() -> None:
    assert (
        EvaluationSpec.model_validate({"domains": [{"path": "team/wiki"}]}).domains_beside(
            [SourceSpec(path="team/wiki")]
        )
        == []
    )
    with pytest.raises(ValueError, match="read-out's head"):
        EvaluationSpec.model_validate({"readout": None, "domains": [{"path": "a"}]})


def test_every_domain_has_a_score_that_may_decide(tiny: TinyStudy) -> None:
    evaluation = {"main": "domain.other.loss", "readout": {"steps": 2}, "domains": [{"path": "x", "name": "other"}]}
    study = validate(tiny.tree(evaluation=evaluation), where="test")
    assert "domain.corpus.accuracy" in study.evaluation.scores(sources=study.data.sources)
    with pytest.raises(ConfigError, match=r"domain\.none\.loss.*is not a score"):
        validate(tiny.tree(evaluation={**evaluation, "main": "domain.none.loss"}), where="test")


# -- blocks ----------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_evaluated_blocks_follow_the_weights_as_far_as_a_source_goes(
    sizes: list[int], weights: list[int], share: float, seed: int
) -> None:
    labels = [f"s{i}" for i in range(len(sizes))]
    corpus = corpus_of(
        dict(zip(labels, sizes, strict=True)), weights=dict(zip(labels, map(float, weights), strict=False))
    )
    blocks = max(1, int(share * sum(sizes)))
    chosen = evaluation_choice(corpus, "test", blocks, seed=seed)
    assert len(set(chosen.tolist())) == len(chosen) == blocks
    edges = np.cumsum([0, *sizes])
    counts = np.histogram(chosen, bins=edges)[0] if len(sizes) > 1 else np.array([blocks])
    for count, size, label in zip(counts, sizes, labels, strict=True):
        wanted = blocks * corpus.weights[label]
        assert count >= min(size, int(wanted) - len(sizes)), "none gives less than its share while it has blocks"
        if all(blocks * corpus.weights[other] + len(sizes) < n for other, n in zip(labels, sizes, strict=True)):
            assert abs(count - wanted) <= len(sizes)


def test_the_only_source_of_a_study_is_scored_on_the_very_blocks_of_its_evaluation() -> None:
    corpus = corpus_of({"docs": 30})
    settings_ = {"blocks": 12, "batch": 5}
    one = evaluation_batches(corpus, "test", **settings_)
    other = domain_batches(corpus, corpus.blocks("test", "docs"), **settings_)
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.input_ids_BT, b.input_ids_BT)
        assert np.array_equal(a.labels_N, b.labels_N)


# -- at the plan -----------------------------------------------------------------------------------
def study_with(tiny: TinyStudy, folder: Path, *, path: Path) -> Path:
    evaluation = {**tiny.tree()["evaluation"], "domains": [{"path": str(path), "name": "other"}]}
    return tiny.write(folder / "study.yaml", evaluation=evaluation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "no held-out block"),
        ("too short for a block", "less than one block"),
    ],
)
def test_a_domain_without_a_held_out_block_is_refused_at_the_plan(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    file = tmp_path / "domain.jsonl"
    if text is not None:
        write_jsonl(file, [text])
    study = study_with(tiny, tmp_path, path=file)
    assert cli.main(["plan", "--study", str(study), "--on", "h200"]) == 2
    said = capsys.readouterr().err.strip()
    assert "evaluation.domains.other" in said
    assert message in said
    assert "\n" not in said


def test_a_plan_prices_domains_and_a_run_books_no_more(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.ds_config import default
    from harness.plan.evaluation import items
    from harness.plan.outline import sketch

    other = write_jsonl(tmp_path / "other.jsonl", OTHER)
    plain, more = (
        sketch(validate(tiny.tree(evaluation=e), where="test"), default(bf16=False), world=1, tell=lambda _line: None)
        for e in (
            tiny.tree()["evaluation"],
            {**tiny.tree()["evaluation"], "domains": [{"path": str(other), "name": "other"}]},
        )
    )
    shape = more.arms["no_kd"].shape
    before, after = items(plain, shape, curve=True), items(more, shape, curve=True)
    assert {k: v for k, v in after.items() if k != "domains"} == before
    assert after["domains"].flop > 0
    assert after["domains"].flop < after["readout"].flop


def test_the_paper_sized_study_is_planned_without_its_texts() -> None:
    """Every text as many blocks as asked for, two sources and two domains, at the end and at four points of the curve."""
    from harness.ds_config import default
    from harness.evaluate.domains import flops
    from harness.plan.evaluation import items
    from harness.plan.outline import sketch
    from harness.study import load

    found = sketch(load("paper_domains"), default(bf16=True), world=8, tell=lambda _line: None)
    assert not found.complete
    assert "domain ccdv/pubmed-summarization is not on this machine" in found.notes
    shape = found.arms["no_kd"].shape
    blocks = 4 * 2048
    priced = flops(shape, blocks=blocks, length=128, predicted=blocks * found.setting.predicted_per_block)
    assert found.setting.study.evaluation.curve_points == 4
    assert items(found, shape, curve=True)["domains"].flop == 5 * priced > 0
    assert items(found, shape, curve=False)["domains"].flop == priced
