"""A teacher that cannot be used is named with its reason, before anything is spent (exit code 3)."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import TeacherError
from harness.models.teacher import Teacher, inspect, weights_fingerprint

from . import model_zoo as zoo

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete teacher; tests break their own copy."""
    zoo.build(zoo.config("bert")).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def load(folder: Path, **kwargs: Any) -> Teacher:
    return Teacher(inspect(str(folder)), device=CPU, dtype=torch.float32, **kwargs)


def refuses(folder: Path | str, message: str) -> None:
    with pytest.raises(TeacherError, match=message) as error:
        load(Path(folder))
    assert error.value.exit_code == 3
    assert error.value.remedy


def test_a_complete_folder_loads(folder: Path) -> None:
    teacher = load(folder)
    assert not teacher.family.model.training
    assert not any(p.requires_grad for p in teacher.family.model.parameters())
    assert teacher.info.training_flop is None


@pytest.mark.parametrize("lost", ["encoder.layer.1.attention.self.key.weight", "cls.predictions.transform.dense.bias"])
def test_a_missing_weight_is_named_and_never_drawn_at_random(folder: Path, lost: str) -> None:
    """Defect 9 of the published code: such a teacher loaded silently."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    names = [n for n in weights if not n.endswith(lost)]
    assert len(names) == len(weights) - 1
    save_file({n: weights[n] for n in names}, file, metadata={"format": "pt"})
    refuses(folder, f"lacks 1 weights, first .*{lost}")


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("encoder.layer.0.output.dense.weight"))
    save_file({**weights, name: weights[name][:, :-1].contiguous()}, file, metadata={"format": "pt"})
    refuses(folder, "mismatch|lacks|cannot be loaded")


def test_no_code_of_a_model_folder_runs(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    edit(folder, auto_map={"AutoModelForMaskedLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.EvilConfig"})
    refuses(folder, "remote code")
    assert not canary.exists()


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_pickled_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(canary))))
    refuses(folder, "safetensors")
    assert not canary.exists()


def test_truncated_safetensors_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    refuses(folder, "cannot be loaded")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"model_type": kind, "architectures": None}, "unusable config") for kind in ("mistral", "opt", "gpt_neox")),
        ({"model_type": "gpt2", "architectures": None, "scale_attn_by_inverse_layer_idx": True}, "1/√d"),
        ({"model_type": "llama", "architectures": None, "head_dim": 4}, "heads are hidden / heads wide"),
        ({"model_type": "llama", "architectures": None, "num_key_value_heads": 2}, "they divide them"),
        ({"is_decoder": True}, "causal"),
        ({"architectures": ["BertLMHeadModel", "BertForCausalLM"]}, "causal"),
        ({"model_type": "t5", "architectures": None}, "unusable config"),
        ({"model_type": None}, "unusable config"),
        ({"model_type": "no-such-type"}, "unusable config"),
        ({"hidden_size": "wide"}, "unusable config"),
        ({"num_attention_heads": 0}, "unusable config"),
    ],
    ids=str,
)
def test_a_teacher_of_another_kind_is_refused_by_its_config_alone(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(TeacherError, match=message) as error:
        inspect(str(folder))
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "message"), [("{", "no readable config"), ("[1]", "no mapping"), (None, "no readable config")]
)
def test_a_broken_config_is_refused(folder: Path, text: str | None, message: str) -> None:
    (folder / "config.json").unlink() if text is None else (folder / "config.json").write_text(text)
    refuses(folder, message)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "a/b/c/d", "../up/there"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(TeacherError, match=r"no such folder"):
        inspect(path)


def test_a_hub_name_without_a_network_is_told_apart_from_a_missing_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TeacherError, match="Hub"):
        inspect("nobody/no-such-model-isobudget")


@pytest.mark.parametrize("text", ["{", "[]", '{"training_flop": "lots"}'])
def test_an_unreadable_card_is_refused(folder: Path, text: str) -> None:
    (folder / "isobudget.json").write_text(text)
    refuses(folder, r"isobudget\.json is unreadable")


def test_a_card_tells_what_training_the_teacher_cost(folder: Path) -> None:
    (folder / "isobudget.json").write_text('{"training_flop": 2.5e12, "corpus": "abc"}')
    info = inspect(str(folder))
    assert info.training_flop == 2.5e12
    assert info.provenance["corpus"] == "abc"


def test_the_fingerprint_is_that_of_the_weights(folder: Path) -> None:
    before = weights_fingerprint(str(folder))
    edit(folder, note="a comment")
    assert weights_fingerprint(str(folder)) == before
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert weights_fingerprint(str(folder)) != before
