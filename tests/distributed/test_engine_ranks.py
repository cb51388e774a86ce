"""What two ranks and an engine promise: resumes bit by bit, other numbers of ranks, shipped configurations, memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import ds_config
from harness.chaos import workers
from harness.plan.memory import model_states
from tests.support import engine_ranks

# Every engine that a shipped ds_config asks for, and autocast and fp32 in all stages; fp16 needs a stage of ZeRO.
ENGINES = [
    *[(stage, precision) for precision in ("fp32", "bf16", "fp16") for stage in range(4) if (stage, precision) != (0, "fp16")],
    (2, "bf16 offloaded"), (3, "bf16 offloaded"), *[(stage, "bf16-autocast") for stage in range(4)],
]  # fmt: skip
IN_FP32 = [case for case in ENGINES if case[1] == "fp32"]
# One of each precision, and of each way that DeepSpeed keeps an optimizer.
FEW = [*IN_FP32, (0, "bf16"), (1, "bf16"), (3, "bf16"), (1, "fp16"), (2, "bf16 offloaded"), (0, "bf16-autocast")]
EXTENT = pytest.mark.parametrize(
    "cases", [FEW, pytest.param(ENGINES, marks=pytest.mark.slow)], ids=["a few engines", "every engine"]
)


def on_ranks(count: int, action: object, *arguments: object, folder: Path) -> str:
    launch = workers.start(action, *arguments, folder=folder, ranks=count)  # type: ignore[arg-type]
    codes = launch.wait(timeout_s=300.0)
    assert codes == [0] * count, launch.outputs()[-3000:]
    return launch.output(0)


def losses(folder: Path, case: tuple[int, str]) -> list[float]:
    """Of the undisturbed run, from the middle on."""
    return json.loads((folder / f"{case[0]}-{case[1]}" / "end.json").read_text())[0]


@EXTENT
@pytest.mark.parametrize("count", [1, 2])
def test_a_resume_with_as_many_ranks_is_exact_to_the_bit(
    count: int, cases: list[tuple[int, str]], tmp_path: Path
) -> None:
    """Accumulating two (or four) micro-batches a step; fp16 with a loss scale that overflows now and then."""
    on_ranks(count, engine_ranks.save_and_resume, str(tmp_path), cases, folder=tmp_path / "logs")
    reference = losses(tmp_path, (0, "fp32"))
    for stage, precision in cases:
        if precision != "fp16":  # there another number of steps is skipped
            # Two roundings of bfloat16, 2⁻⁸ each; the same updates whatever engine makes them.
            assert losses(tmp_path, (stage, precision)) == pytest.approx(reference, rel=2**-7), (stage, precision)


@EXTENT
def test_a_state_that_another_number_of_ranks_took_over_and_gave_back_is_the_same_to_the_bit(
    cases: list[tuple[int, str]], tmp_path: Path
) -> None:
    """Through DeepSpeed's universal form twice: weights, moments, their count of steps and the loss scale."""
    logs = tmp_path / "logs"
    on_ranks(2, engine_ranks.save_and_resume, str(tmp_path), cases, folder=logs)
    on_ranks(1, engine_ranks.pass_on, str(tmp_path), cases, folder=logs)
    on_ranks(2, engine_ranks.take_back, str(tmp_path), cases, folder=logs)


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
