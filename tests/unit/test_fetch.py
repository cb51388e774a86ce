"""`prefetch`: what a login node fetched is enough for a run that may ask nobody; a Hub out of reach is exit code 3."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import TinyStudy


def hub_copy(home: Path, kind: str, name: str, folder: Path) -> None:
    """Lay a folder into a Hub cache as a download would: blobs, a snapshot of links, and a ref."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit, encoding="ascii")
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = root / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))


def program(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_OFFLINE"))}
    return subprocess.run(
        [sys.executable, "launch.py", *words],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=400,
        env={**kept, **environment},
    )


def test_what_prefetch_found_in_the_hubs_layout_is_enough_offline(root: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    home, cache = tmp_path / "hf", tmp_path / "cache"
    hub_copy(home, "models", "team/big-teacher", tiny.teacher)
    study = tiny.write(
        tmp_path / "study.yaml", teacher={"path": "team/big-teacher", "allow_worse": True},
        data={"sources": [{"path": str(tiny.corpus)}], "tokenizer": "team/big-teacher", "block_length": 32},
    )  # fmt: skip
    # Nobody listens there: an answer can only come from the cache.
    where = {
        "HF_HOME": str(home),
        "ISOBUDGET_CACHE": str(cache),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "1",
    }
    said = program(root, "prefetch", "--study", str(study), "--json", **where)
    assert said.returncode == 0, said.stderr
    table = json.loads(said.stdout)
    assert table["offline"] is True
    items = {item["what"]: item for item in table["items"]}
    weights = (tiny.teacher / "model.safetensors").stat().st_size
    assert items["teacher"]["size_bytes"] >= weights
    assert str(home) in items["teacher"]["folder"]
    assert str(home) in items["tokenizer"]["folder"]
    assert items["corpus"]["size_bytes"] > 1000
    assert str(cache) in items["corpus"]["folder"]


def test_a_corpus_that_is_not_built_is_missed_by_the_check(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import fetch
    from harness.ds_config import default
    from harness.errors import DataError
    from harness.study import load

    study = load(str(tiny.file))
    for key in fetch.OFFLINE:
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(DataError, match="is not 1"):
        fetch.check(study, default(bf16=False))
    for key, value in fetch.OFFLINE.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("ISOBUDGET_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="run prefetch"):
        fetch.check(study, default(bf16=False))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"teacher": {"path": "nobody/none"}}, id="teacher"),
        # The library asks for most of a minute before it gives up.
        pytest.param(
            {"data": {"sources": [{"path": "nobody/none"}], "block_length": 32}}, id="data", marks=pytest.mark.slow
        ),
    ],
)
def test_a_hub_out_of_reach_is_one_line_and_exit_code_3(
    root: Path, tiny: TinyStudy, tmp_path: Path, change: dict
) -> None:
    study = tiny.write(tmp_path / "study.yaml", **change)
    said = program(
        root, "prefetch", "--study", str(study), HF_HOME=str(tmp_path / "hf"), ISOBUDGET_CACHE=str(tmp_path / "cache"),
        HF_ENDPOINT="http://127.0.0.1:9",
    )  # fmt: skip
    assert said.returncode == 3, said.stderr
    errors = [line for line in said.stderr.splitlines() if line.startswith("isobudget:")]
    assert len(errors) == 1
    assert "nobody/none" in errors[0]
    assert "network" in errors[0]
    assert "Traceback" not in said.stderr


def test_what_a_teachers_own_training_needs_is_fetched_before_there_is_a_teacher(
    root: Path, tiny: TinyStudy, tmp_path: Path
) -> None:
    study = tiny.write(tmp_path / "study.yaml", teacher={"path": "./not-trained-yet", "weights": 16 * "0"})
    data = {"sources": [{"path": str(tiny.corpus)}], "block_length": 16}
    arms = [{"name": "big", "objective": "mlm"}]
    teacher = tiny.write(tmp_path / "teacher.yaml", name="its-teacher", teacher=None, arms=arms, data=data)
    words = ["prefetch", "--study", str(study), "--teacher-study", str(teacher)]
    cache = {"ISOBUDGET_CACHE": str(tmp_path / "cache")}
    missed = program(root, *words, "--check", **cache)
    assert missed.returncode == 3
    assert "its-teacher" in missed.stderr
    said = program(root, *words, "--json", **cache)
    assert said.returncode == 0, said.stderr
    items = json.loads(said.stdout)["items"]
    corpora = {item["folder"] for item in items if item["what"] == "corpus"}
    assert len(corpora) == 2, "the teacher is trained on blocks of another length"
    assert not [item for item in items if item["what"] == "teacher"], "there is none yet"
    assert program(root, *words, "--check", **cache).returncode == 0
    two = tiny.write(tmp_path / "two.yaml", teacher=None, arms=[*arms, {"name": "other", "objective": "mlm"}])
    assert program(root, "prefetch", "--study", str(study), "--teacher-study", str(two), **cache).returncode == 2
