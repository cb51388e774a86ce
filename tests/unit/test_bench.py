"""Laws of the benchmarks: parts add up, a loop that learns something else gets no figure, bad input names itself."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import cli, teaching
from harness.bench import liger, match, peers, random_tokens, scaling, steps
from harness.bench.bare import incomparable
from harness.bench.breakdown import PARTS
from harness.bench.kernels import _rows, relative_error
from harness.bench.peak import measured_peak, product_dtype
from harness.bench.problems import soft_problem
from harness.bench.scaling import predicted_s, scale
from harness.bench.stepper import padded
from harness.bench.timing import percentiles
from harness.bench.variation import variations
from harness.data.batch import Batch
from harness.ds_config import DsConfig
from harness.errors import ConfigError
from harness.models import attention
from harness.study import load
from harness.trainee import Trainee, parameter_groups
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
        assert row["check"]["loss"] < 1e-5
        assert row["check"]["gradient"] < 1e-5
        assert 0 <= row["input_stall"] < 1
        assert 0 < row["bookkeeping"] < 1
        # What 2 GFLOP buy, whole steps.
        assert row["tokens_per_run"] == 2_000_000_000 // row["flop_per_step"] * 8 * 32
    assert measured["peak"]["flop_per_s"] > max(row["flop_per_s"] for row in measured["arms"])
    with table.open(encoding="utf-8") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == [row["name"] for row in measured["arms"]]
    assert "<svg" in figure.read_text(encoding="utf-8")


def test_every_model_is_held_against_the_peak_of_its_own_type(
    tiny: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bf16 engine beside an fp32 teacher: else one of them could use more than all of its peak."""
    rates = {torch.float32: 1e12, torch.bfloat16: 4e12}
    monkeypatch.setattr(steps, "measured_peak", lambda _, dtype: {"flop_per_s": rates[dtype], "of": str(dtype)})
    monkeypatch.setattr(teaching, "teacher_dtype", lambda: torch.float32)
    engine = tmp_path / "engine.json"
    engine.write_text('{"bf16": {"enabled": true}}', encoding="utf-8")
    flags = ["--steps", "1", "--json", "--arms", "minilmv2", "--ds_config", str(engine)]
    assert cli.main(["bench", "--study", str(tiny.file), *flags]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["peak"]["of"] == "torch.bfloat16"
    assert [peak["of"] for peak in measured["teacher_peaks"]] == ["torch.float32"]
    (row,) = measured["arms"]
    asked = row["teacher_mfu"] * 1e-3 * row["breakdown_ms"]["teacher"] * 1e12
    assert 0 < asked < row["flop_per_step"]
    busy = (row["flop_per_step"] - asked) / 4e12 + asked / 1e12
    assert row["mfu"] == pytest.approx(busy / (1e-3 * row["step"]["p50_ms"]))
    assert row["engine_over_bare"] is None, "its bare loop would keep weights in fp32"
    assert "this engine in bf16" in row["engine_over_bare_why"]


def test_only_engines_that_compute_as_the_bare_loop_does_are_compared_with_it() -> None:
    compared = {p for p in ("fp32", "bf16-autocast", "bf16", "fp16", "fp16-autocast") if not incomparable(p, world=1)}
    assert compared == {"fp32", "bf16-autocast"}
    assert incomparable("fp32", world=2)
    assert product_dtype("fp16-autocast") == product_dtype("fp16") == torch.float16
    assert product_dtype("bf16-autocast") == product_dtype("bf16") == torch.bfloat16
    assert measured_peak(torch.device("cpu"), torch.float32)["of"].endswith("float32 matrices")


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
    """Judged by the reference alone, wherever it stands: one wrong loop must not take the others' figures."""
    losses = {match.OURS: 5.0, "compiled": 5.2, "plain": 5.0001, "broken": math.nan}
    rows: dict[str, dict[str, Any]] = {name: {"name": name, "held_out_loss": loss} for name, loss in losses.items()}
    match._judge(rows, {name: [0.1, 0.1] for name in rows}, tokens=100, tolerance=1e-3, reference="plain")
    assert {name for name, row in rows.items() if "step" in row} == {match.OURS, "plain"}
    assert rows["plain"]["over_ours"] == 1.0
    assert "5.2000" in rows["compiled"]["why"]
    assert "plain's" in rows["compiled"]["why"]


def test_no_loop_gets_a_figure_without_the_reference() -> None:
    rows: dict[str, dict[str, Any]] = {
        match.OURS: {"name": match.OURS, "held_out_loss": 5.0},
        "compiled": {"name": "compiled", "held_out_loss": 5.0},
        "plain": {"name": "plain", "why": "failed"},
    }
    match._judge(rows, {name: [0.1] for name in rows}, tokens=100, tolerance=1e-3, reference="plain")
    assert all("step" not in row for row in rows.values())
    assert "plain did not run" in rows[match.OURS]["why"]


def test_the_reference_of_every_objective_is_one_of_its_peers() -> None:
    peers_of = {
        objective: {p.NAME for p in peers.discover() if objective in p.OBJECTIVES} for objective in match.REFERENCE
    }
    assert set(match.REFERENCE) == {*match.OBJECTIVES, "minilmv2"}
    assert all(match.REFERENCE[objective] in names for objective, names in peers_of.items())


def test_every_peer_names_what_it_needs() -> None:
    found = peers.discover()
    assert {peer.NAME for peer in found} >= {"plain PyTorch loop", "Hugging Face Trainer", "TextBrewer", "torchdistill"}
    for peer in found:
        assert set(peer.OBJECTIVES) <= {"mlm", "soft_targets", "minilmv2"}
        assert isinstance(peer.REQUIRES, tuple)


@pytest.mark.parametrize("sizes", [[], [0, 1], [2, 1], [1, 1]])
def test_impossible_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ConfigError):
        scale(sizes, sequences=16, steps=1, arguments=[])


def test_the_size_that_does_not_divide_the_batch_is_the_one_named() -> None:
    with pytest.raises(ConfigError, match="at 3 ranks"):
        scale([1, 3], sequences=16, steps=1, arguments=[])


def test_scaling_tells_runs_per_hour_and_leaves_out_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bench(ranks: int, arguments: list[str], threads: int) -> dict[str, Any]:
        right = {
            "name": "a", "tokens_per_s": {1: 100.0, 2: 120.0}[ranks], "step": {"p50_ms": 10.0}, "trained_parameters": 8,
            "breakdown_ms": {"communication": 1.0}, "accumulation": 1, "tokens_per_run": 3600,
        }  # fmt: skip
        timed = {**right, "name": "measured", "tokens_per_run": None}
        return {"arms": [right, timed, {"name": "b", "why": "its gradient is 6 of its size away"}], "link": None}

    monkeypatch.setattr(scaling, "_bench", bench)
    table = scale([1, 2], sequences=16, steps=1, arguments=[])
    assert table["packed"] == [{"arm": "a", "ranks": 2, "own_ranks": 200.0, "all_ranks": 120.0}]
    assert table["why"] == {"b": "its gradient is 6 of its size away"}
    assert [row["efficiency"]["a"] for row in table["strong"]] == [1.0, 0.6]
    scaling.show_scaling(table)
    told = capsys.readouterr().out
    assert "200.00 runs per hour" in told
    assert "b: no figures" in told


def test_efficiency_over_an_earlier_bench_is_tokens_per_rank() -> None:
    def made(ranks: int, rate: float) -> dict[str, Any]:
        return {
            "world_size": ranks,
            "arms": [{"name": "a", "tokens_per_s": rate, "step": {}}, {"name": "b", "why": ""}],
        }

    assert scaling.compared(made(16, 720.0), made(8, 400.0)) == {"ranks": 8, "efficiency": {"a": 0.9}}


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


def test_the_model_is_within_its_tolerance_of_recorded_steps(root: Path) -> None:
    """Two ranks on two cores, 22 November: a lower bound, and no more than `TOLERANCE` too low."""
    record = root / "records" / "2026-11-22_bench_2-core-cpu" / "scaling.json"
    table = json.loads(record.read_text(encoding="utf-8"))
    quickstart = random_tokens.prepare(load("quickstart"), DsConfig({}), world=1)
    seen = 0
    for name, arm in quickstart.arms.items():
        trainee = Trainee(arm.student(seed=0), arm.shape, arm.plan())
        groups = parameter_groups(trainee, arm.teacher.shape if arm.teacher else None, arm.study.optimizer)
        trained = sum(p.numel() for group in groups.groups for p in group["params"])
        for kind in ("weak", "strong"):
            first, last = table[kind]
            told = {"name": name, "trained_parameters": trained, "accumulation": 1}
            predicted = predicted_s(first, last, told, {"link": last["link"], "zero_stage": 0})
            assert scaling.within(last["step_s"][name], predicted)
            assert last["step_s"][name] >= predicted
            seen += 1
    assert seen == 8
    assert not scaling.within(1.5, 1.0)
    assert not scaling.within(1.0, 1.5)


def test_kernels_are_timed_only_where_they_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--kernels", "scores B16", "--steps", "2", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert {row["backend"] for row in table["rows"]} == {"reference", "eager"}
    for row in table["rows"]:
        assert row["right"]
        assert row["error"] < 1e-4
        assert row["p50_ms"] > 0
    assert table["absent"] == {"liger": "its kernels need a GPU"}
    assert relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")


def test_a_kernel_of_another_project_is_held_against_the_same_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with Liger's signatures and reductions: mean over positions without T², and a sum."""

    class Divergence:
        def __init__(self, jsd_beta: float, temperature: float) -> None:
            assert jsd_beta == 0.0, "the forward KL"
            self.temperature = temperature

        def __call__(self, hidden: Any, weight: Any, taught: Any, head: Any, labels: Any) -> torch.Tensor:
            log_q, log_p = ((x @ w.T / self.temperature).log_softmax(-1) for x, w in ((hidden, weight), (taught, head)))
            return (log_p.exp() * (log_p - log_q)).sum(-1).mean()

    class CrossEntropy:
        def __init__(self, reduction: str) -> None:
            self.reduction = reduction

        def __call__(self, weight: Any, hidden: Any, labels: Any) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction=self.reduction)

    both = SimpleNamespace(LigerFusedLinearJSD=Divergence, LigerFusedLinearCrossEntropyLoss=CrossEntropy)
    monkeypatch.setattr(liger, "_modules", lambda: (both, both))
    monkeypatch.setattr(liger, "obstacle", lambda device: None)
    for temperature in (1.0, 2.0):
        sizes = (12, 50, (16, 24), temperature, torch.float32, "cpu")
        assert liger.NAME not in soft_problem(*sizes).backends, "its divergence knows no bias"
        problem = soft_problem(*sizes, bias=False)
        assert liger.NAME in problem.backends
        rows = {row["backend"]: row for row in _rows(problem, torch.device("cpu"), None, 1)}
        assert rows[liger.NAME]["right"]
        assert rows[liger.NAME]["error"] < 1e-5
        assert rows[liger.NAME]["p50_ms"] > 0


def test_an_ablation_changes_time_and_not_the_loss(tiny: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--arms", "no_kd,soft_targets,minilmv2", "--steps", "2", "--ablation", "--json"]
    assert cli.main(["bench", "--study", str(tiny.file), *flags]) == 0
    table = json.loads(capsys.readouterr().out)
    arms, every = table["arms"], {variation.name for variation in variations()}
    named = {name: {row["variation"] for row in rows} for name, rows in arms.items()}
    heads = "heads at masked positions only taken away"
    plain = "plain teacher put in"  # which is the shipped one here
    assert every - named["minilmv2"] == {heads, plain}, "an objective without a head"
    assert every - named["soft_targets"] == {"teacher's cut taken away", "student's cut taken away", plain}
    untouched = {"teacher's cut taken away", "student's cut taken away"} | {v.name for v in variations() if v.name.startswith(
        ("half-precision", "plain teacher", "compiled teacher", "teacher", "fp8"))}  # fmt: skip
    assert every - named["no_kd"] == untouched
    assert 0 < table["pads"] < 1
    for rows in arms.values():
        assert all("step" in row for row in rows), [row.get("why") for row in rows]
        assert max(row["check"]["gradient"] for row in rows if "half" not in row["variation"]) < 1e-5
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
