"""Laws of the benchmarks: parts add up, a loop that learns something else gets no figure, bad input names itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from harness import cli
from harness.bench import match, peers
from harness.bench.ablation import SHIPPED, _rows, padded, variations
from harness.bench.breakdown import PARTS
from harness.bench.kernels import relative_error
from harness.bench.scaling import packed, predicted_s, scale
from harness.bench.timing import percentiles
from harness.data.batch import Batch
from harness.errors import ConfigError
from harness.models import attention
from tests.support.tiny import TinyStudy


def test_percentiles_are_those_of_the_sorted_times() -> None:
    found = percentiles([0.005, 0.001, 0.003, 0.002, 0.004, 0.010])
    assert found == {"p20_ms": 2.0, "p50_ms": 3.0, "p80_ms": 5.0}


def test_the_parts_of_a_step_are_told_and_drawn(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, figure = tmp_path / "bench.csv", tmp_path / "bench.svg"
    flags = ["--steps", "2", "--json", "--csv", str(table), "--figure", str(figure)]
    assert cli.main(["bench", "--study", str(tiny.file), *flags]) == 0
    measured = json.loads(capsys.readouterr().out)
    for row in measured["arms"]:
        parts = row["breakdown_ms"]
        assert set(parts) == set(PARTS)
        assert min(parts["backward"], parts["student forward"]) > 0
        assert (parts["teacher"] > 0) == ("over_scratch" in row)
        assert 0 < row["mfu"] < 1
        assert 0 < row["step"]["p20_ms"] <= row["step"]["p50_ms"] <= row["step"]["p80_ms"]
        assert row["engine_over_bare"] == pytest.approx(row["step"]["p50_ms"] / row["bare_step"]["p50_ms"])
        assert row["tokens_per_s"] == pytest.approx(8 * 32 / row["step"]["p50_ms"] * 1e3)
    assert measured["peak"]["flop_per_s"] > max(row["flop_per_s"] for row in measured["arms"])
    with table.open(encoding="utf-8") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == [row["name"] for row in measured["arms"]]
    assert "<svg" in figure.read_text(encoding="utf-8")


@pytest.mark.slow
def test_peers_train_the_same_student(tiny: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--study", str(tiny.file), "--peers", "--steps", "4", "--json"]) == 0
    objectives = json.loads(capsys.readouterr().out)["objectives"]
    assert set(objectives) == {"mlm", "soft_targets", "minilmv2"}
    for rows in objectives.values():
        found = {row["name"]: row for row in rows}
        assert found[match.OURS]["ok"]
        assert found[match.OURS]["over_ours"] == 1.0
        for row in rows:
            assert ("step" in row) != ("why" in row)
            assert row.get("ok", True) or "loss" in row["why"]
    plain = next(row for row in objectives["mlm"] if row["name"] == "plain PyTorch loop")
    assert plain["ok"]


def test_a_loop_that_learnt_something_else_gets_no_figure() -> None:
    rows = {
        name: {"name": name, "held_out_loss": loss}
        for name, loss in ((match.OURS, 5.0), ("plain", 5.0001), ("broken", 5.2))
    }
    match._judge(rows, {name: [0.1, 0.1] for name in rows}, tokens=100, tolerance=1e-3)
    assert rows[match.OURS]["ok"]
    assert rows["plain"]["over_ours"] == 1.0
    assert "step" not in rows["broken"]
    assert "5.2000" in rows["broken"]["why"]


def test_every_peer_names_what_it_needs() -> None:
    found = peers.discover()
    assert {peer.NAME for peer in found} >= {"plain PyTorch loop", "Hugging Face Trainer", "TextBrewer", "torchdistill"}
    for peer in found:
        assert set(peer.OBJECTIVES) <= {"mlm", "soft_targets", "minilmv2"}
        assert isinstance(peer.REQUIRES, tuple)


@pytest.mark.parametrize("sizes", [[], [0, 1], [2, 1], [1, 1], [1, 3]])
def test_impossible_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ConfigError):
        scale(sizes, sequences=16, steps=1, arguments=[])


def test_a_packed_machine_runs_more_when_ranks_scale_badly() -> None:
    table = {
        "strong": [
            {"ranks": 1, "tokens_per_s": {"a": 100.0}},
            {"ranks": 2, "tokens_per_s": {"a": 120.0}},
        ]
    }
    (row,) = packed(table, tokens={"a": 3600.0})
    assert row["own_rank"] == 200.0
    assert row["all_ranks"] == 120.0


def test_a_predicted_step_is_the_first_ones_share_and_a_rings_exchange() -> None:
    first = {"ranks": 1, "sequences": 16, "step_s": {"a": 0.1}}
    arm = {"name": "a", "trained_parameters": 1_000_000, "accumulation": 1}
    alone = {"link": None, "zero_stage": 0}
    assert predicted_s(first, first, arm, alone) == pytest.approx(0.1)
    link = {"byte_s": 1e9, "round_s": 1e-4}
    for sequences, computing in ((32, 0.1), (16, 0.05)):
        row = {"ranks": 2, "sequences": sequences}
        found = predicted_s(first, row, arm, {"link": link, "zero_stage": 0})
        # Two rounds of half of 4 MB each.
        assert found == pytest.approx(computing + 2 * (1e-4 + 2e6 / 1e9))


def test_kernels_are_timed_only_where_they_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--kernels", "scores B16", "--steps", "2", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert {row["backend"] for row in table["rows"]} == {"reference", "eager"}
    for row in table["rows"]:
        assert row["right"]
        assert row["error"] < 1e-4
        assert row["p50_ms"] > 0
    assert relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")


def test_an_ablation_changes_time_and_not_the_loss(tiny: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--arms", "no_kd,soft_targets,minilmv2", "--steps", "2", "--ablation", "--json"]
    assert cli.main(["bench", "--study", str(tiny.file), *flags]) == 0
    table = json.loads(capsys.readouterr().out)
    arms, every = table["arms"], {variation.name for variation in variations()}
    named = {name: {row["variation"] for row in rows} for name, rows in arms.items()}
    heads = "heads at masked positions only taken away"
    assert every - named["minilmv2"] == {heads}, "an objective without a head"
    assert every - named["soft_targets"] == {"teacher's cut taken away", "student's cut taken away"}
    untouched = {"teacher's cut taken away", "student's cut taken away"} | {v.name for v in variations() if v.name.startswith(
        ("half-precision", "compiled teacher", "teacher", "fp8"))}  # fmt: skip
    assert every - named["no_kd"] == untouched
    assert 0 < table["pads"] < 1
    for rows in arms.values():
        assert all("step" in row for row in rows), [row.get("why") for row in rows]
        assert rows[0]["over_shipped"] == 1.0


def test_padding_keeps_tokens_and_predictions() -> None:
    ids = torch.arange(24).view(2, 12)
    batch = Batch(ids, torch.tensor([1, 5, 13, 23]), ids.flatten()[[1, 5, 13, 23]], 4.0, 24.0, 2.0)
    wide = padded(batch, 0.25, 99)
    assert wide.input_ids_BT.shape == (2, 16)
    assert wide.attention_mask_BT is not None
    assert torch.equal(wide.input_ids_BT[wide.attention_mask_BT.bool()].view(2, 12), ids)
    assert (wide.input_ids_BT[~wide.attention_mask_BT.bool()] == 99).all()
    assert torch.equal(wide.input_ids_BT.flatten()[wide.positions_N], batch.labels_N)
    assert wide.token_count == batch.token_count


def test_attention_written_out_is_the_fused_one() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 7, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(2, 2, 7, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    module = torch.nn.Module()
    real = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None, :]
    for causal, mask in ((False, None), (True, None), (False, real), (False, real.double().log())):
        module.is_causal = causal  # type: ignore[assignment]
        fused = attention.attention(module, query, key, value, mask)[0]
        with attention.written_out():
            explicit = attention.attention(module, query, key, value, mask)[0]
        torch.testing.assert_close(explicit, fused, rtol=1e-12, atol=1e-12)


def test_a_variation_with_another_loss_gets_no_time() -> None:
    names = [variation.name for variation in variations()[:2]]
    assert names[0] == SHIPPED.name
    times = {name: [0.1, 0.1] for name in names}
    right, wrong = _rows(dict(zip(names, (2.0, 2.1), strict=True)), times, tolerance=1e-4)
    assert "step" in right
    assert "step" not in wrong
