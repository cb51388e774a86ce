"""Laws of tokenizers: known by what they do, complete, and trained the same every time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.data.tokenizer import (
    BUILTIN,
    NO_MASK,
    encode,
    fingerprint,
    load_tokenizer,
    require_mask,
    special_ids,
    train_wordpiece,
    vocabulary_size,
)
from harness.errors import DataError

from .data_worlds import document

TEXTS = [document("vocabulary", i) for i in range(40)]


def test_the_shipped_tokenizer_is_the_recorded_one() -> None:
    tokenizer, mark = load_tokenizer("builtin")
    assert mark == "162dbde4ea53411d"
    assert vocabulary_size(tokenizer) == len(tokenizer) == 4096
    assert special_ids(tokenizer).all == (0, 1, 2, 3, 4)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.decode(encode(tokenizer, ["Returns the default value."])[0]) == "returns the default value."


def test_fingerprint_survives_another_serialisation(tmp_path: Path) -> None:
    tokenizer, mark = load_tokenizer("builtin")
    tokenizer.save_pretrained(tmp_path / "teacher")
    written = tmp_path / "teacher" / "tokenizer.json"
    written.write_text(json.dumps(json.loads(written.read_text(encoding="utf-8")), indent=None), encoding="utf-8")
    assert written.read_bytes() != (BUILTIN / "tokenizer.json").read_bytes()
    assert load_tokenizer(str(tmp_path / "teacher"))[1] == mark


@pytest.mark.parametrize("change", ["a word", "the case", "a special token"])
def test_fingerprint_notices_what_changes_ids(tmp_path: Path, change: str) -> None:
    folder = shutil.copytree(BUILTIN, tmp_path / "other")
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    if change == "a word":
        vocabulary = tree["model"]["vocab"]
        one, other = list(vocabulary)[1000:1002]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    elif change == "the case":
        tree["normalizer"]["lowercase"] = False
    else:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config["mask_token"] = "[UNK]"
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    path.write_text(json.dumps(tree), encoding="utf-8")
    assert load_tokenizer(str(folder))[1] != load_tokenizer("builtin")[1]


def test_training_is_deterministic_and_complete(tmp_path: Path) -> None:
    once, again = (train_wordpiece(TEXTS, tmp_path / name, vocab_size=200) for name in ("a", "b"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (once / file).read_bytes() == (again / file).read_bytes()
    tokenizer, mark = load_tokenizer(str(once))
    assert vocabulary_size(tokenizer) == 200
    assert mark == fingerprint(tokenizer)
    ids = encode(tokenizer, TEXTS[:1])[0]
    assert special_ids(tokenizer).all == (0, 1, 2, 3, 4)
    assert 1 not in ids
    assert len(ids) < len(TEXTS[0]) / 2


def test_special_tokens_written_in_a_text_are_text() -> None:
    tokenizer, _ = load_tokenizer("builtin")
    ids = encode(tokenizer, ["The [MASK] token, [SEP] and [CLS] are names."])[0]
    assert not set(ids) & {special_ids(tokenizer).mask, special_ids(tokenizer).sep, special_ids(tokenizer).cls}
    assert tokenizer.backend_tokenizer.encode_special_tokens is False


def without(tokens: tuple[str, ...], folder: Path, **added: str) -> Path:
    """The shipped tokenizer without some of its roles."""
    shutil.copytree(BUILTIN, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in tokens} | added
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_tokenizer_without_mask_hides_no_token(tmp_path: Path) -> None:
    tokenizer, _ = load_tokenizer(str(without(("mask_token",), tmp_path / "causal")))
    special = special_ids(tokenizer)
    with pytest.raises(DataError, match="has no mask_token"):
        require_mask(special, "causal")
    assert NO_MASK not in special.all


def test_a_causal_vocabulary_begins_and_ends_texts_with_its_own_tokens(tmp_path: Path) -> None:
    roles = ("cls_token", "sep_token", "mask_token", "pad_token")
    tokenizer, _ = load_tokenizer(str(without(roles, tmp_path / "gpt", eos_token="[SEP]")))
    special, end = special_ids(tokenizer), tokenizer.convert_tokens_to_ids("[SEP]")
    assert (special.cls, special.sep, special.pad) == (end, end, end)
    both, _ = load_tokenizer(str(without(roles, tmp_path / "llama", bos_token="[CLS]", eos_token="[SEP]")))
    assert special_ids(both).cls == both.convert_tokens_to_ids("[CLS]")
    with pytest.raises(DataError, match="has no cls_token, sep_token, pad_token"):
        load_tokenizer(str(without(roles, tmp_path / "none")))


def test_an_absent_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.exit_code == 3
