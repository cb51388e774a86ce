"""Laws of splitting, and of refusing data that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import files, neardup
from harness.data.sources import Document, assign, read_documents
from harness.errors import DataError
from harness.study import DataSpec, SourceSpec

from .data_worlds import document, write_jsonl

DATA = DataSpec(validation_fraction=0.25, test_fraction=0.25)


def read(path: Path | str, data: DataSpec = DATA, **source: Any) -> list[Document]:
    return list(read_documents(SourceSpec(path=str(path), **source), data))


def splits(documents: Iterable[Document]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for d in documents:
        found[d.split].add(d.text)
    return found


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> None:
    pq.write_table(pa.table({"id": list(range(len(texts))), column: pa.array(texts, pa.string())}), path)


def test_every_document_is_in_one_split_and_reading_again_agrees(tmp_path: Path) -> None:
    texts = [document(i) for i in range(60)]
    path = write_jsonl(tmp_path / "corpus.jsonl", texts)
    documents = read(path)
    assert sorted(d.text for d in documents) == sorted(texts)
    assert all(splits(documents).values())
    assert read(path) == documents
    # Order in the file is not what decides: a shuffled copy is split alike.
    assert splits(read(write_jsonl(tmp_path / "other.jsonl", texts[::-1]))) == splits(documents)


def test_near_duplicates_never_straddle(tmp_path: Path) -> None:
    families = [document("family", i, sentences=10) for i in range(30)]
    texts = [t.replace(" the ", f" {w} ", 1) for t in families for w in ("the", "this", "that")]
    documents = read(write_jsonl(tmp_path / "corpus.jsonl", texts))
    assert len(documents) == len(texts)
    leaders = neardup.groups(neardup.signatures(d.text for d in documents)).tolist()
    assert len(set(leaders)) == len(families)
    assert all(d.split == documents[leader].split for d, leader in zip(documents, leaders, strict=True))
    # Which member of a group comes first in the file does not move the group.
    reversed_file = write_jsonl(tmp_path / "reversed.jsonl", texts[::-1])
    assert splits(read(reversed_file)) == splits(documents)


def test_own_splits_are_kept_and_train_loses_what_they_hold(tmp_path: Path) -> None:
    held = document("held", sentences=10)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [document("a", i) for i in range(5)])
    write_parquet(
        tmp_path / "train-00001-of-00002.parquet", [document("b"), held.replace(" a ", " the ", 1), None, " "]
    )
    write_parquet(tmp_path / "validation.parquet", [document("v", 1), held])
    write_parquet(tmp_path / "test.parquet", [document("t", 1), document("v", 1)])
    (tmp_path / "README.txt").write_text("Not a document.", encoding="utf-8")
    tally: dict[str, int] = {}
    found = splits(read_documents(SourceSpec(path=str(tmp_path)), DATA, tally=tally))
    assert found["train"] == {*(document("a", i) for i in range(5)), document("b")}
    assert found["validation"] == {held}
    assert found["test"] == {document("t", 1), document("v", 1)}
    assert tally == {"empty": 2, "near_duplicates": 2}


def test_a_missing_split_is_carved_from_train_only(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [document("a", i) for i in range(40)])
    write_jsonl(tmp_path / "test.jsonl", [document("t", i) for i in range(3)])
    found = splits(read(tmp_path))
    assert found["test"] == {document("t", i) for i in range(3)}
    assert found["validation"] < {document("a", i) for i in range(40)}
    assert found["validation"]
    assert found["train"] | found["validation"] == {document("a", i) for i in range(40)}


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from(["train", "train", "validation", "test"])), min_size=1, max_size=25
    ),
    data=st.builds(
        DataSpec, validation_fraction=st.sampled_from([0.1, 0.4]), test_fraction=st.sampled_from([0.1, 0.4])
    ),
)
def test_assignment_keeps_groups_whole_and_held_out_texts_in_place(
    members: list[tuple[int, str]], data: DataSpec
) -> None:
    groups, given_ = [g for g, _ in members], [s for _, s in members]
    assigned = assign([f"key{i}" for i in range(len(members))], given_, groups, data)
    for group in set(groups):
        of_group = [(given_[i], assigned[i]) for i in range(len(members)) if groups[i] == group]
        assert len({after for _, after in of_group} - {None}) == 1
        for before, after in of_group:
            assert after in (before, None) or (before == "train" and after not in given_)
        assert any(after is not None for _, after in of_group)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00007-of-00012.parquet", "train"),
        ("validation.parquet", "validation"),
        ("dev.jsonl", "validation"),
        ("val_1.jsonl", "validation"),
        ("test/part-0.jsonl", "test"),
        ("data/testimony.txt", "train"),
        ("validation/train.txt", "train"),
        ("trainer.txt", "train"),
        ("part-3.txt", "train"),
    ],
)
def test_a_files_split_is_in_its_name(name: str, split: str) -> None:
    assert files.split_of(Path(name)) == split


def test_blank_lines_end_documents_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\n  \nthree\n", encoding="utf-8")
    assert list(files.texts([tmp_path / "a.txt"], "text")) == ["one\ntwo", "three"]


def test_json_is_read_as_lines_or_as_one_list(tmp_path: Path) -> None:
    rows = [{"body": "one"}, {"body": None}, {"body": "three"}]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "b.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert (
        list(files.texts([tmp_path / "a.json"], "body"))
        == list(files.texts([tmp_path / "b.json"], "body"))
        == ["one", "", "three"]
    )


def _absent(root: Path) -> Path:
    return root / "absent"


def _no_text(root: Path) -> Path:
    (root / "picture.png").write_bytes(b"\x89PNG")
    return root


def _no_column(root: Path) -> Path:
    write_parquet(root / "train.parquet", ["x"], column="body")
    return root


def _corrupt(root: Path) -> Path:
    write_parquet(root / "train.parquet", [document(i) for i in range(50)])
    data = bytearray((root / "train.parquet").read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    (root / "train.parquet").write_bytes(data)
    return root


def _truncated(root: Path) -> Path:
    write_parquet(root / "train.parquet", [document(i) for i in range(50)])
    data = (root / "train.parquet").read_bytes()
    (root / "train.parquet").write_bytes(data[: len(data) // 2])
    return root


def _empty_only(root: Path) -> Path:
    return write_jsonl(root / "train.jsonl", ["", "  ", "\n"])


def _bad_line(root: Path) -> Path:
    path = write_jsonl(root / "train.jsonl", ["fine"])
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    return path


def _not_text(root: Path) -> Path:
    (root / "train.jsonl").write_text('{"text": 7}\n', encoding="utf-8")
    return root


def _latin(root: Path) -> Path:
    (root / "train.txt").write_bytes("é".encode("latin-1") * 5)
    return root


def _too_few(root: Path) -> Path:
    return write_jsonl(root / "one.jsonl", [document("only")])


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (_absent, "absent"),
        (_no_text, "no .parquet"),
        (_no_column, "no column 'text'; it has id, body"),
        (_corrupt, "train.parquet"),
        (_truncated, "train.parquet"),
        (_empty_only, "every document is empty"),
        (_bad_line, r"train.jsonl:2"),
        (_not_text, "holds int"),
        (_latin, "train.txt"),
        (_too_few, "1 documents leave"),
    ],
)
def test_unusable_sources_are_named(tmp_path: Path, make: Any, names: str) -> None:
    with pytest.raises(DataError, match=names) as caught:
        read(make(tmp_path))
    assert caught.value.exit_code == 3
    assert caught.value.remedy


def test_an_unreachable_hub_says_so_and_no_remote_code_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[dict[str, Any]] = []

    def load(path: str, **options: Any) -> None:
        asked.append(options)
        raise ConnectionError("Max retries exceeded")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"Max retries exceeded.*git clone"):
        read("someone/some-dataset", config="en")
    assert asked == [{"name": "en"}]


def test_a_hub_dataset_is_read_like_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    made = datasets.DatasetDict(
        {
            s: datasets.Dataset.from_dict({"body": [document(s, i) for i in range(n)]})
            for s, n in (("train", 6), ("dev", 2), ("test", 3))
        }
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None: made)
    found = splits(read("someone/some-dataset", text_column="body"))
    assert {s: len(t) for s, t in found.items()} == {"train": 6, "validation": 2, "test": 3}
    with pytest.raises(DataError, match="no column 'text'; it has body"):
        read("someone/some-dataset")
