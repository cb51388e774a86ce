"""Laws of packed corpora: nothing lost, nothing padded, built once, and damage never silent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from harness.data import shards
from harness.data.cache import cached_folder
from harness.data.corpus import Corpus, prepare
from harness.data.tokenizer import encode, load_tokenizer
from harness.errors import DataError

from .data_worlds import document, shared_data, spec, write_jsonl

CLS, SEP = 1, 2
ROOT = Path(harness.__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "one.jsonl", [document("corpus", i) for i in range(120)])


# -- packing ---------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(3, 70_000), min_size=1, max_size=40), min_size=1, max_size=30),
    block_length=st.integers(3, 24),
    wide=st.booleans(),
)
def test_packing_round_trips_and_never_pads(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], block_length: int, wide: bool
) -> None:
    vocab = 70_001 if wide else 65_536
    documents = [[min(t, vocab - 1) for t in d] for d in documents]
    folder = tmp_path_factory.mktemp("packing")
    shard = shards.write(
        folder / "x.bin", iter(documents), cls=CLS, sep=SEP, block_length=block_length, vocab_size=vocab
    )
    running = [t for d in documents for t in (SEP, *d)][1:]
    assert shard.blocks == len(running) // (block_length - 2)
    assert (folder / "x.bin").stat().st_size == shard.bytes == shard.blocks * block_length * (4 if wide else 2)
    if shard.blocks:
        blocks = shards.load(folder, shard, vocab_size=vocab)
        assert (blocks[:, 0] == CLS).all()
        assert (blocks[:, -1] == SEP).all()
        assert blocks[:, 1:-1].ravel().tolist() == running[: shard.blocks * (block_length - 2)]


def test_packing_in_pieces_equals_packing_at_once(tmp_path: Path) -> None:
    """More than one megabyte of tokens passes through the writer's buffer in several pieces."""
    documents = [[5 + (i * j) % 900 for j in range(700)] for i in range(3200)]
    shard = shards.write(tmp_path / "x.bin", iter(documents), cls=CLS, sep=SEP, block_length=61, vocab_size=1000)
    running = np.array([t for d in documents for t in (SEP, *d)][1:])
    blocks = shards.load(tmp_path, shard, vocab_size=1000)
    assert len(shard.chunks) > 2
    assert np.array_equal(blocks[:, 1:-1].ravel(), running[: shard.blocks * 59])


def test_a_token_outside_the_vocabulary_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token id 10"):
        shards.write(tmp_path / "x.bin", iter([[3, 10]]), cls=CLS, sep=SEP, block_length=4, vocab_size=10)


# -- corpora ---------------------------------------------------------------------------------------
def test_blocks_hold_the_documents_in_order(source: Path) -> None:
    corpus = prepare(spec(source))
    tokenizer, _ = load_tokenizer()
    for split in ("validation", "test"):
        texts = [d.text for d in corpus.documents(split)]
        running = [t for ids in encode(tokenizer, texts) for t in (corpus.special.sep, *ids)][1:]
        blocks = corpus.blocks(split)
        assert len(blocks) == len(running) // 30
        assert blocks[:, 1:-1].ravel().tolist() == running[: len(blocks) * 30]
        assert corpus.tokens(split) == blocks.size
        assert corpus.special.pad not in blocks


def test_describe_is_plain_json_and_counts_add_up(source: Path) -> None:
    corpus = prepare(spec(source))
    record = json.loads(json.dumps(corpus.describe()))
    part = record["sources"]["one"]
    assert sum(part["documents"].values()) == 120
    assert record["tokens"] == {split: blocks * 32 for split, blocks in part["blocks"].items()}
    text = sum(len(document("corpus", i)) for i in range(120))
    held = sum(len(d.text) for split in ("validation", "test") for d in corpus.documents(split))
    content = part["blocks"]["train"] * 30
    assert corpus.bytes_per_token == pytest.approx((text - held) / content)


def test_fingerprint_is_of_contents_not_of_places(source: Path, tmp_path: Path) -> None:
    first = prepare(spec(source))
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(source, tmp_path / "elsewhere" / "one.jsonl")
    assert prepare(spec(Path(copy))).fingerprint == first.fingerprint
    assert prepare(spec(source, block_length=48)).fingerprint != first.fingerprint
    assert prepare(spec(source, limit_tokens=640)).fingerprint != first.fingerprint
    write_jsonl(source, [document("corpus", i) for i in range(1, 121)])
    assert prepare(spec(source)).fingerprint != first.fingerprint


@settings(max_examples=20, deadline=None)
@given(shares=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
def test_a_larger_limit_contains_the_smaller(nested_source: Path, shares: list[float]) -> None:
    whole = prepare(spec(nested_source)).tokens("train")
    limits = [max(1, round(share * whole)) for share in shares]
    small, large = (prepare(spec(nested_source, limit_tokens=n)) for n in limits)
    rows = [{row.tobytes() for row in c.blocks("train")} for c in (small, large)]
    assert rows[0] <= rows[1]
    for corpus, limit in zip((small, large), limits, strict=True):
        assert corpus.tokens("train") == max(32, limit // 32 * 32)


def test_a_limit_above_what_there_is_is_refused_with_both_figures(source: Path, nested_source: Path) -> None:
    """A point of a sweep stands at its limit: less text than that would be another point."""
    whole = prepare(spec(nested_source)).tokens("train")
    assert prepare(spec(nested_source, limit_tokens=whole)).tokens("train") == whole
    more = whole + 32  # a block; what is less asks for the same blocks
    assert prepare(spec(nested_source, limit_tokens=more - 1)).tokens("train") == whole
    with pytest.raises(DataError, match=rf"limit_tokens {more:,}: nested is to fill it, .* has {whole:,} tokens"):
        prepare(spec(nested_source, limit_tokens=more))
    with pytest.raises(DataError, match=rf"nested is to fill {more:,} of it, .* has {whole:,} tokens"):
        prepare(spec(nested_source, source, limit_tokens=2 * more))


@pytest.fixture(scope="module")
def nested_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("nested") / "nested.jsonl", [document("nested", i) for i in range(100)])


def test_two_sources_need_two_labels(source: Path) -> None:
    with pytest.raises(DataError, match="share this label"):
        prepare(spec(source, source))


def test_a_vocabulary_larger_than_the_model_is_refused(source: Path) -> None:
    with pytest.raises(DataError, match=r"ids up to 4095.*4000 entries"):
        prepare(spec(source), vocab_limit=4000)


def test_too_little_text_for_a_block_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "short.jsonl", [f"word number {i} here" for i in range(40)])
    with pytest.raises(DataError, match="fewer tokens than one block"):
        prepare(spec(path, block_length=512))


# -- the cache -------------------------------------------------------------------------------------
BUILDER = """
import os, sys, time
from harness.data.cache import cached_folder
def build(into):
    with open(sys.argv[1], "a") as log:
        log.write(f"{os.getpid()}\\n")
    (into / "half").write_text("x")
    time.sleep(0.5)
    (into / "whole").write_text("y")
folder = cached_folder("things", {"a": 1}, build)
print(sorted(p.name for p in folder.iterdir()))
"""


def test_processes_that_ask_at_once_build_once_and_see_the_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", BUILDER, str(log)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["['half', 'whole']\n"] * 3
    assert len(log.read_text(encoding="utf-8").split()) == 1


def test_a_killed_build_leaves_nothing_that_is_read(cache: Path) -> None:
    code = (
        "import time; from harness.data.cache import cached_folder\n"
        "def build(into):\n    (into / 'half').write_text('x'); print('started', flush=True); time.sleep(60)\n"
        "cached_folder('things', {'a': 1}, build)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    folder = cached_folder("things", {"a": 1}, lambda into: (into / "whole").write_text("y") and None)
    assert time.monotonic() - started < 10
    assert [p.name for p in folder.iterdir()] == ["whole"]
    assert [p for p in folder.parent.iterdir() if p.is_dir()] == [folder]


def test_a_failed_build_is_not_published(cache: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").write_text("x")
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        cached_folder("things", {}, fail)
    assert not [p for p in (cache / "things").iterdir() if p.is_dir()]


@pytest.mark.skipif(not Path("/proc/1").exists(), reason="no /proc, the one place where even root cannot write")
def test_an_unwritable_cache_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBUDGET_CACHE", "/proc/isobudget")
    with pytest.raises(DataError, match=r"/proc/isobudget.*ISOBUDGET_CACHE"):
        prepare(spec(source))


# -- damage ----------------------------------------------------------------------------------------
@pytest.fixture
def built(source: Path) -> tuple[Corpus, Path]:
    corpus = prepare(spec(source))
    (folder,) = (p for p in Path(os.environ["ISOBUDGET_CACHE"], "corpora").iterdir() if p.is_dir())
    return corpus, folder


def test_a_truncated_shard_is_named_with_its_offset(built: tuple[Corpus, Path], source: Path) -> None:
    _, folder = built
    size = (folder / "train.bin").stat().st_size
    os.truncate(folder / "train.bin", size - 10)
    with pytest.raises(DataError, match=rf"train.bin at offset {size - 10}: has {size - 10} bytes, not {size}"):
        prepare(spec(source))


def test_a_flipped_bit_is_named_with_its_megabyte(built: tuple[Corpus, Path], source: Path) -> None:
    _, folder = built
    data = bytearray((folder / "validation.bin").read_bytes())
    data[77] ^= 1
    (folder / "validation.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"validation.bin at offset (0|76): "):
        prepare(spec(source))


def test_an_id_outside_the_vocabulary_is_named_with_its_offset(built: tuple[Corpus, Path], source: Path) -> None:
    _, folder = built
    tokens = np.fromfile(folder / "test.bin", dtype="<u2")
    tokens[19] = 4096
    tokens.tofile(folder / "test.bin")
    with pytest.raises(DataError, match=r"test.bin at offset 38: token id 4096, but the vocabulary has 4096"):
        prepare(spec(source))


@pytest.mark.parametrize("damage", ["missing shard", "missing manifest", "torn manifest", "missing key"])
def test_an_incomplete_folder_is_named_and_not_trained_on(
    built: tuple[Corpus, Path], source: Path, damage: str
) -> None:
    _, folder = built
    manifest = folder / "manifest.json"
    if damage == "missing shard":
        (folder / "train.bin").unlink()
    elif damage == "missing manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    else:
        manifest.write_text(json.dumps({"shards": {"train": {"file": "train.bin"}}}), encoding="utf-8")
    with pytest.raises(DataError, match=f"{folder.name}.*delete") as caught:
        prepare(spec(source))
    assert caught.value.exit_code == 3


def test_torn_held_out_documents_are_named(built: tuple[Corpus, Path]) -> None:
    corpus, folder = built
    path = folder / "test.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(DataError, match=r"test.jsonl: damaged"):
        list(corpus.documents("test"))
    with pytest.raises(DataError, match="only held-out"):
        list(corpus.documents("train"))


# -- real text -------------------------------------------------------------------------------------
def test_real_articles_pack_with_bert_s_vocabulary(tmp_path: Path) -> None:
    articles, vocabulary = shared_data("wikipedia-en-2015"), shared_data("bert-base-uncased")
    if articles is None or vocabulary is None:
        pytest.skip(
            "no real articles here: set ISOBUDGET_TEST_DATA to a folder with wikipedia-en-2015 and bert-base-uncased"
        )
    folder = tmp_path / "articles"
    folder.mkdir()
    # The held-out files stand in for the whole: 3 % of the text, and validation has to be carved.
    (folder / "train.parquet").symlink_to(articles / "validation.parquet")
    (folder / "test.parquet").symlink_to(articles / "test.parquet")
    corpus = prepare(spec(folder, block_length=128, tokenizer=str(vocabulary)), vocab_limit=30522)
    assert corpus.blocks("train").dtype == np.dtype("<u2")
    assert corpus.tokens("test") > 500_000
    assert 3.5 < corpus.bytes_per_token < 5
    assert corpus.describe()["sources"]["articles"]["documents"]["test"] == 184
