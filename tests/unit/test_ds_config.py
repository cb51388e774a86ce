"""A ds_config says engine facts only; the study's facts in it are refused with both places named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import ds_config
from harness.errors import ConfigError


def write(path: Path, tree: object) -> str:
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return str(path)


def test_every_shipped_ds_config_is_valid(root: Path) -> None:
    files = sorted((root / "ds_configs").glob("*.json"))
    assert len(files) >= 10
    for file in files:
        config = ds_config.read(str(file))
        assert f"zero{config.stage}" in file.name
        assert config.precision.replace("-", "_") in file.name


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("{not json", "line 1 column 2.*malformed JSON"),
        ("[]", "JSON object"),
        ({"train_batch_size": 64}, "train_batch_size in .*study owns it as batch.sequences"),
        ({"optimizer": {"type": "AdamW"}}, "study owns it"),
        ({"scheduler": {}}, "study owns it"),
        ({"gradient_clipping": 1.0}, "optimizer.clip"),
        ({"zero_optimisation": {"stage": 2}}, "unknown key"),
        ({"zero_optimization": {"stage": 4}}, "stages 0, 1, 2 and 3"),
        ({"zero_optimization": 2}, "is an object"),
        ({"train_micro_batch_size_per_gpu": 0}, "positive integer"),
        ({"train_micro_batch_size_per_gpu": "lots"}, "positive integer"),
        ({"activation_checkpointing": {"partition_activations": True}}, "whole layers are recomputed or none"),
        ({"activation_checkpointing": {"enabled": "yes"}}, "whole layers are recomputed or none"),
        ({"teacher": {"divided": True}}, "only ZeRO-3 does"),
        ({"teacher": {"shared": True}}, "only ZeRO-3 does"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "one precision"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "'float16' in .*use fp16.*or bf16 autocast"),
        ({"torch_autocast": {"enabled": True, "dtype": "torch.float16"}}, "skipped updates .* cannot be seen"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.dtype = None"),  # on a GPU torch would take float16
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}, "zero_optimization": {"stage": 2}}, "bf16 autocast"),
        ({"fp16": {"enabled": True}}, "fp16 with zero_optimization.stage = 0 in .*use stage 1"),
    ],
)
def test_a_bad_file_names_key_and_rule(tmp_path: Path, tree: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ds_config.read(write(tmp_path / "c.json", tree))


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", "torch.bfloat16"])
def test_every_spelling_of_bf16_autocast_is_taken_and_a_precision_that_is_off_never_matters(
    tmp_path: Path, dtype: str
) -> None:
    tree = {"torch_autocast": {"enabled": True, "dtype": dtype}, "fp16": {"enabled": False}}
    assert ds_config.read(write(tmp_path / "c.json", tree)).precision == "bf16-autocast"
    off = {"torch_autocast": {"enabled": False, "dtype": "float16"}}
    assert ds_config.read(write(tmp_path / "c.json", off)).precision == "fp32"


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        ds_config.read(str(tmp_path / "absent.json"))


def test_accumulation_is_derived_from_the_studys_global_batch(tmp_path: Path) -> None:
    config = ds_config.read(write(tmp_path / "c.json", {"train_micro_batch_size_per_gpu": 4}))
    resolved = config.resolved(sequences=64, world=2, clip=1.0)
    assert resolved["gradient_accumulation_steps"] == 8
    assert resolved["gradient_clipping"] == 1.0


def test_batch_sizes_that_do_not_divide_name_every_number(tmp_path: Path) -> None:
    config = ds_config.read(write(tmp_path / "c.json", {"train_micro_batch_size_per_gpu": 16}))
    with pytest.raises(ConfigError, match=r"1000 is not micro 16 × accumulation 8 × world 8 \(= 1024\).*c\.json"):
        config.micro_batch(sequences=1000, world=8)
    with pytest.raises(ConfigError, match="same number of sequences"):
        config.micro_batch(sequences=9, world=2)


def test_auto_takes_the_largest_micro_batch_that_divides() -> None:
    config = ds_config.default(bf16=False)
    assert config.micro_batch(sequences=16, world=2) == 8
    assert config.micro_batch(sequences=1024, world=2) == 256
    assert config.micro_batch(sequences=2 * 257 * 3, world=2) == 3
