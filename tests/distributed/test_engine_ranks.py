"""What two ranks and an engine promise: resumes bit by bit, other numbers of ranks, shipped configurations, memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import ds_config
from harness.chaos import workers
from harness.plan.memory import model_states
from tests.support import engine_ranks

EXACT = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")]
IN_FP32 = [case for case in EXACT if case[1] == "fp32"]


def on_ranks(count: int, action: object, *arguments: object, folder: Path) -> str:
    launch = workers.start(action, *arguments, folder=folder, ranks=count)  # type: ignore[arg-type]
    codes = launch.wait(timeout_s=300.0)
    assert codes == [0] * count, launch.outputs()[-3000:]
    return launch.output(0)


@pytest.mark.parametrize("count", [1, 2])
def test_a_resume_with_as_many_ranks_is_exact_to_the_bit(count: int, tmp_path: Path) -> None:
    """ZeRO 0 to 3, accumulating two (or four) micro-batches a step."""
    on_ranks(count, engine_ranks.save_and_resume, str(tmp_path), EXACT, folder=tmp_path / "logs")


def test_two_ranks_then_one_then_two_train_the_same_in_fp32(tmp_path: Path) -> None:
    """Loss within 1e-5 relative, weights within 1e-6, at every ZeRO stage."""
    logs = tmp_path / "logs"
    on_ranks(2, engine_ranks.save_and_resume, str(tmp_path), IN_FP32, folder=logs)
    middle = engine_ranks.MIDDLE
    on_ranks(1, engine_ranks.go_on, str(tmp_path), IN_FP32, "middle", "alone", 2, middle, folder=logs)
    on_ranks(2, engine_ranks.go_on, str(tmp_path), IN_FP32, "alone", "", 1, middle + 1, folder=logs)


@pytest.mark.parametrize("count", [1, 2])
def test_every_shipped_ds_config_trains_or_is_refused_with_its_reason(count: int, tmp_path: Path, root: Path) -> None:
    files = sorted(map(str, (root / "ds_configs").glob("*.json")))
    said = on_ranks(count, engine_ranks.every_config, files, folder=tmp_path)
    for file in files:
        (line,) = (row for row in said.splitlines() if row.split(" ")[1:2] == [Path(file).name])
        if line.startswith("REFUSED"):
            assert ds_config.read(file).precision == "fp16", line
            assert "DeepSpeed refuses it here: Type fp16 is not supported" in line


def test_each_of_two_ranks_holds_what_the_plan_says(tmp_path: Path) -> None:
    """ZeRO 0 to 3 on two ranks hold no less than the closed form's states, no more than those and its buckets (3 %)."""
    on_ranks(2, engine_ranks.weigh, str(tmp_path), [0, 1, 2, 3], 256, folder=tmp_path / "logs")
    held = []
    for stage in range(4):
        found = json.loads((tmp_path / f"zero{stage}.json").read_text())
        form = model_states(ds_config.DsConfig(found["tree"]), total=found["total"], trained=found["trained"], world=2)
        states = sum(form[key] for key in ("weights_bytes", "gradients_bytes", "optimizer_bytes"))
        for rank_bytes in found["bytes"]:
            assert 0.97 * states <= rank_bytes <= 1.03 * (states + form["buckets_bytes"]), (stage, found["bytes"], form)
        held.append(max(found["bytes"]))
    assert held[1] > held[3], "dividing weights and gradients leaves less on each"


@pytest.mark.parametrize(
    ("width", "layers"), [(128, 12), pytest.param(768, 20, marks=pytest.mark.slow)], ids=["0.8 MiB", "45 MiB"]
)
def test_every_stage_divides_what_the_plan_says_it_divides(width: int, layers: int, tmp_path: Path) -> None:
    """With many equal layers and a bucket of one of them: states and bucket to 1 %, each stage below the one before."""
    bucket = width * width
    on_ranks(2, engine_ranks.weigh, str(tmp_path), [0, 1, 2, 3], width, layers, bucket, folder=tmp_path / "logs")
    held, mib = [], 2**20
    for stage in range(4):
        found = json.loads((tmp_path / f"zero{stage}.json").read_text())
        form = model_states(ds_config.DsConfig(found["tree"]), total=found["total"], trained=found["trained"], world=2)
        states = sum(form[key] for key in ("weights_bytes", "gradients_bytes", "optimizer_bytes"))
        print(
            f"\nZeRO-{stage}, weights {4 * found['total'] / mib:.2f} MiB: held by each rank "
            f"{', '.join(f'{n / mib:.2f}' for n in found['bytes'])} MiB; plan: states {states / mib:.2f}, "
            f"buckets {form['buckets_bytes'] / mib:.2f}; rank 0 after each micro-batch "
            f"{', '.join(f'{n / mib:.2f}' for n in found['points'])}",
            end="",
        )
        for rank_bytes in found["bytes"]:
            assert 0.99 * states <= rank_bytes <= 1.01 * (states + form["buckets_bytes"]), (stage, found["bytes"], form)
        held.append(max(found["bytes"]))
    assert held == sorted(held, reverse=True)
    assert held[3] < held[2] < held[1] < held[0]
