"""Laws of equality: the other currency is read from curves, controls split a difference, unequal costs are told."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.report import build_report
from harness.report.analysis import Analysis, analyse
from harness.report.chance import at_chance
from harness.report.ledger_path import POINTS, LedgerPath, read_path
from harness.report.on_curve import at_cost, curve
from harness.report.source import read
from harness.units import Unit

from .report_fakes import ARMS, edit_record, write_run, write_study

DEVICES = {"hardware": {"devices": ["H200"]}, "world_size": {"ranks": 8}}


def analysed(directory: Path) -> Analysis:
    return analyse(read(directory))


def change_rows(directory: Path, arm: str, change: Any) -> None:
    for path in directory.glob(f"arms/{arm}/*/metrics.jsonl"):
        rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row))


# -- the ledger's path -------------------------------------------------------------------------------


def ledger(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_time_posted_now_and_then_is_a_straight_line_in_between(tmp_path: Path) -> None:
    rows = [
        {"step": i, "spent": 10 * (i + 1), "charges": [["STUDENT_STEP", 10, "flop", "analytic"]]}
        | ({"charges": [["STUDENT_STEP", 10, "flop", "analytic"], ["STUDENT_STEP", 8.0, "gpu-second", "measured"]]} if i % 4 == 3 else {})
        for i in range(8)
    ]  # fmt: skip
    path = read_path(ledger(tmp_path / "l", rows), ["STUDENT_STEP"])
    assert path.total("gpu-second") == 16.0
    assert path.amount("gpu-second", 40) == 8.0
    assert path.amount("gpu-second", 60) == pytest.approx(12.0)
    assert path.amount("gpu-second", 20) == pytest.approx(4.0)
    assert path.amount("gpu-second", 10_000) == 16.0
    assert path.amount("flop", 35) == pytest.approx(35)
    assert path.amount("joule", 35) is None


def test_accounts_that_are_not_charged_cost_nothing_here(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "spent": 0, "charges": [["EVALUATION", 99.0, "gpu-second", "measured"]]},
        {"step": 1, "spent": 5, "charges": [["STUDENT_STEP", 2.0, "gpu-second", "measured"]]},
    ]
    assert read_path(ledger(tmp_path / "l", rows), ["STUDENT_STEP"]).total("gpu-second") == 2.0


@pytest.mark.parametrize(
    "junk", [None, 1, "x", [], {"spent": "x"}, {"spent": 1, "charges": [1, None, ["A"], [1, "x", 2]]}]
)
def test_a_torn_ledger_is_read_as_far_as_it_goes(tmp_path: Path, junk: Any) -> None:
    good = {"step": 1, "spent": 5, "charges": [["STUDENT_STEP", 2.0, "gpu-second", "measured"]]}
    path = read_path(ledger(tmp_path / "l", [junk, good]), ["STUDENT_STEP"])
    assert path.total("gpu-second") == 2.0
    assert path.last == good
    assert read_path(tmp_path / "none", ["STUDENT_STEP"]) == LedgerPath()


def test_a_long_ledger_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    rows = [{"step": i, "spent": i + 1, "charges": [["STUDENT_STEP", 1, "flop", "analytic"]]} for i in range(5000)]
    path = read_path(ledger(tmp_path / "l", rows), ["STUDENT_STEP"])
    assert len(path.units["flop"]) == POINTS
    assert path.total("flop") == 5000
    assert path.amount("flop", 2345.5) == pytest.approx(2345.5)


# -- the other currency ------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 100_000), st.floats(-9, 9)), min_size=1, max_size=9), st.integers(0, 120_000))
def test_a_score_read_from_a_curve_lies_between_its_neighbours(points: list[tuple[float, float]], cost: int) -> None:
    points = sorted(dict(points).items())
    value = at_cost(points, cost)
    assert min(y for _, y in points) - 1e-9 <= value <= max(y for _, y in points) + 1e-9
    assert all(at_cost(points, x) == pytest.approx(y) for x, y in points)


def test_the_cheapest_arm_is_read_at_its_end_and_dearer_ones_earlier(tmp_path: Path) -> None:
    analysis = analysed(write_study(tmp_path / "s", seeds=3, noise=0.02))
    (currency,) = analysis.currencies
    assert (currency.unit, currency.metric, currency.flip) == ("gpu-second", "readout.loss", "no")
    for seed in (1, 2, 3):
        runs = {arm.name: next(r for r in arm.done if r.seed == seed) for arm in analysis.arms}
        cheapest = min(runs, key=lambda name: runs[name].record["seconds"])
        assert currency.scores[cheapest][seed] == runs[cheapest].scores["readout.loss"]
        points = curve(analysis, runs["no_kd"], "readout.loss", Unit.GPU_SECOND)
        cost = runs[cheapest].record["seconds"]
        below, above = ([y for x, y in points if x <= cost][-1], next(y for x, y in points if x > cost))
        assert min(below, above) <= currency.scores["no_kd"][seed] <= max(below, above)


def test_a_verdict_that_turns_round_in_device_time_flips_and_the_page_says_so(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=5, arms=(ARMS[0], ARMS[2]))
    report = build_report(directory)
    (currency,) = report["verdict"]["currencies"]
    assert report["verdict"]["better"] == "no_kd"  # at equal FLOPs, with twice the device time
    assert currency["flip"] in ("no", "possible")

    def slower(row: dict[str, Any]) -> dict[str, Any]:  # no_kd had learnt little by the time minilmv2 was done
        if "readout_loss" in row and row["fraction"] < 0.9:
            row["readout_loss"] += 0.8
        return row

    change_rows(directory, "no_kd", slower)
    report = build_report(directory)
    (currency,) = report["verdict"]["currencies"]
    assert currency["flip"] == "yes"
    assert currency["verdict"]["better"] == "minilmv2"
    assert report["verdict"]["flips"] == ["gpu-second"]
    assert currency["sentence"].startswith("The verdict flips in device time: minilmv2 beats no_kd")
    assert '--budget "' in currency["sentence"]
    assert "the verdict flips" in (directory / "report.html").read_text()
    assert "**The verdict flips" in (directory / "report.md").read_text()


def test_an_order_without_its_proof_holds_in_no_currency(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3, arms=ARMS[:2])
    assert analysed(directory).verdict.better == "no_kd"
    for seed, amount in ((1, 0.0), (2, -0.9), (3, 0.9)):  # no_kd took twice the device time and is read half-way

        def uneven(row: dict[str, Any], amount: float = amount) -> dict[str, Any]:
            return row | {"readout_loss": 4.5 + amount} if "readout_loss" in row and row["fraction"] < 0.9 else row

        path = directory / f"arms/no_kd/seed-{seed}/metrics.jsonl"
        rows = [uneven(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (currency,) = analysed(directory).currencies
    assert currency.verdict is not None
    assert currency.verdict.kind == "cannot tell"
    (comparison,) = currency.comparisons
    assert (comparison.mean_difference or 0) < 0, "no_kd is ahead there too"
    assert currency.flip == "unknown"


def test_without_the_deciding_score_on_the_curve_another_stands_in_and_is_named(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3, arms=ARMS[:3])

    def without(row: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in row.items() if not k.startswith("readout_")}

    for arm in ARMS[:3]:
        change_rows(directory, arm.name, without)
    (currency,) = analysed(directory).currencies
    assert currency.metric == "mlm.loss"
    assert "MLM loss stands in" in currency.basis
    assert "nothing can be read for minilmv2" in currency.basis  # it never trained a head
    assert "minilmv2" not in currency.scores


def test_without_any_curve_only_what_costs_imply_is_said(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3, arms=ARMS[:2])
    for arm in ARMS[:2]:
        change_rows(directory, arm.name, lambda row: row if "loss" in row else None)
    (currency,) = analysed(directory).currencies
    assert currency.metric is None
    assert currency.flip == "possible"  # no_kd won with twice the device time
    assert "readout.on_curve" in currency.sentence


@pytest.mark.parametrize(("unit", "others"), [("flop", ["gpu-second"]), ("gpu-second", ["flop"])])
def test_whatever_the_budget_the_verdict_is_told_in_flops_and_in_device_time(
    tmp_path: Path, unit: str, others: list[str]
) -> None:
    directory = write_study(tmp_path / "s", seeds=3, unit=unit)
    for arm in ARMS:  # a real ledger, for the fakes' holds no charges
        for folder in directory.glob(f"arms/{arm.name}/*"):
            record = json.loads((folder / "record.json").read_text())
            share, flop = record["step_price"], arm.student + arm.teacher + arm.extra
            per = {"flop": flop, "gpu-second": record["seconds"] / record["steps"]}
            rows = [
                {"step": i, "spent": share * (i + 1), "charges": [["STUDENT_STEP", per[u], u, "x"] for u in per]}
                for i in range(record["steps"])
            ]
            ledger(folder / "ledger.jsonl", rows)
    analysis = analysed(directory)
    assert [c.unit for c in analysis.currencies] == others
    assert all(c.metric == "readout.loss" and c.verdict is not None for c in analysis.currencies)


# -- the equal-tokens control ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["baseline", "arm"])
def test_a_control_splits_the_difference_into_gain_and_price_and_is_no_contestant(tmp_path: Path, kind: str) -> None:
    directory = write_study(tmp_path / "s", seeds=3, arms=ARMS[:2])
    without = build_report(directory)
    base, arm = ARMS[0], ARMS[1]
    tokens = {
        a.name: json.loads((directory / f"arms/{a.name}/seed-1/record.json").read_text())["tokens"] for a in (base, arm)
    }
    of, like = (base, arm) if kind == "baseline" else (arm, base)
    objective = of.objective if isinstance(of.objective, dict) else {"name": of.objective}
    for seed in (1, 2, 3):
        folder = write_run(directory, ARMS[3], seed)
        target = directory / "controls" / "equal_tokens" / "soft_targets" / f"seed-{seed}"
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        scores = {"readout.loss": 4.6 + 0.01 * seed}
        control = {"kind": "equal_tokens", "arm": of.name, "of": like.name}
        overrides = [{"kind": "hardware", "key": "devices", "was": "an elder machine", "now": "H200"}]
        edit_record(
            target, name=of.name, control=control, objective=objective, tokens=tokens[like.name], scores=scores,
            overrides=overrides if seed == 2 else [],
        )  # fmt: skip
    (directory / "arms" / "tinybert").rmdir()
    report = build_report(directory)
    assert {run["name"] for run in report["arms"]} == {base.name, arm.name}
    assert report["verdict"]["sentence"] == without["verdict"]["sentence"]
    assert len(report["controls"]) == 3
    (split,) = report["control_splits"]
    net, gain, price = (split[part]["mean_difference"] for part in ("net", "gain", "price"))
    assert net == pytest.approx(gain + price)
    assert split["tokens"] == tokens[like.name]
    # The gain compares with equal tokens: soft_targets (4.97) against 4.6, or 4.6 against no_kd (4.22).
    assert gain == pytest.approx(-0.36 if kind == "baseline" else -0.40, abs=0.08)
    text = (directory / "report.md").read_text()
    assert "Gain per token" in text
    # A control that was trained on other hardware says so, like a contestant.
    assert "an elder machine" in text
    assert f"{of.name} at {like.name}'s tokens, seed 2" in text
    assert f"{of.name} at {like.name}'s tokens, seed 1" not in text


def test_a_control_of_an_arm_that_the_score_does_not_measure_splits_nothing(tmp_path: Path) -> None:
    """minilmv2 never trained a head: its own loss is chance, and so is whatever part of a difference it is put into."""
    directory = write_study(tmp_path / "s", seeds=3, arms=(ARMS[0], ARMS[2]), evaluation={"main": "mlm.loss"})
    tokens = json.loads((directory / "arms/minilmv2/seed-1/record.json").read_text())["tokens"]
    for seed in (1, 2, 3):
        folder = write_run(directory, ARMS[3], seed)
        target = directory / "controls" / "equal_tokens" / "no_kd" / f"seed-{seed}"
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        control = {"kind": "equal_tokens", "arm": "no_kd", "of": "minilmv2"}
        scores = {"mlm.loss": 4.6 + 0.01 * seed**2}
        edit_record(
            target,
            name="no_kd",
            control=control,
            objective={"name": "mlm"},
            tokens=tokens,
            scores=scores,
            head_trained=True,
        )
    (directory / "arms" / "tinybert").rmdir()
    (split,) = build_report(directory)["control_splits"]
    assert [split[part]["meaningful"] for part in ("net", "gain", "price")] == [False, False, True]
    assert split["price"]["family_size"] == 1  # what is flagged widens no honest interval
    section = (directory / "report.md").read_text().partition("## Gain per token")[2].splitlines()
    row = next(line for line in section if line.startswith("| minilmv2"))
    assert [cell.strip() for cell in row.split("|")][4:6] == ["–", "–"]
    records = (directory / "tables" / "control.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in records] == ["comparable", "False", "False", "True"]


# -- what equal cost really was ----------------------------------------------------------------------


def test_a_measured_budget_spent_unequally_is_flagged_and_a_counted_one_never(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=2, arms=ARMS[:2], unit="gpu-second")
    assert not any("did not cost the same" in w for w in build_report(directory)["warnings"])
    for seed in (1, 2):
        edit_record(directory / f"arms/soft_targets/seed-{seed}", charged=98.9)
    report = build_report(directory)
    (warning,) = [w for w in report["warnings"] if "did not cost the same" in w]
    assert "no_kd took 1." in warning
    counted = write_study(tmp_path / "f", seeds=2, arms=ARMS[:2])
    edit_record(counted / "arms/soft_targets/seed-1", charged=9 * 10**12)
    assert not any("did not cost the same" in w for w in build_report(counted)["warnings"])


@pytest.mark.parametrize("unit", ["flop", "gpu-second"])
def test_arms_on_unlike_hardware_are_not_compared_by_what_was_measured(tmp_path: Path, unit: str) -> None:
    directory = write_study(tmp_path / "s", seeds=3, arms=(ARMS[0], ARMS[3]), unit=unit)
    for arm, device in (("no_kd", "H200"), ("tinybert", "A100")):
        for seed in (1, 2, 3):
            identity = {**DEVICES, "hardware": {"devices": [device]}}
            edit_record(directory / f"arms/{arm}/seed-{seed}", identity=identity)
    report = build_report(directory)
    assert any("no_kd ran on H200 × 8 ranks and tinybert on A100" in w for w in report["warnings"])
    (currency,) = report["verdict"]["currencies"]
    if unit == "flop":
        assert report["verdict"]["kind"] == "beats"  # counted: the same on any machine
        assert currency["flip"] == "unknown"
        assert "not comparable" in currency["sentence"]
    else:
        assert report["verdict"]["kind"] == "cannot tell"
        assert "the same hardware" in report["verdict"]["sentence"]


def test_seeds_may_move_together_to_another_machine(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=2, arms=ARMS[:2])
    for arm in ("no_kd", "soft_targets"):
        for seed, device in ((1, "H200"), (2, "A100")):
            edit_record(directory / f"arms/{arm}/seed-{seed}", identity={**DEVICES, "hardware": {"devices": [device]}})
    assert analysed(directory).unlike_hardware == ""


# -- copied errors, overrides, energy, GLUE ----------------------------------------------------------


def test_copied_errors_are_an_alarm_against_an_equally_large_baseline_only(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=2, arms=ARMS[:2])
    for seed in (1, 2):
        edit_record(directory / f"arms/no_kd/seed-{seed}", copied={"errors": 3000, "mlm": 0.15, "readout": 0.14})
        edit_record(directory / f"arms/soft_targets/seed-{seed}", copied={"errors": 3000, "mlm": 0.35, "readout": 0.2})
    (alarm,) = [a for a in build_report(directory)["alarms"] if a["kind"] == "copied_errors"]
    assert alarm["arm"] == "soft_targets"
    assert "35\u202f%" in alarm["text"]
    for seed in (1, 2):
        edit_record(directory / f"arms/soft_targets/seed-{seed}", parameters=3_000_000)
    assert not [a for a in build_report(directory)["alarms"] if a["kind"] == "copied_errors"]


def test_copied_errors_are_held_against_a_student_without_a_teacher_whichever_arm_is_the_baseline(
    tmp_path: Path,
) -> None:
    """The declared baseline is distilled and repeats as much: that excuses nothing; alone, it is no measure of copying."""
    directory = write_study(tmp_path / "s", seeds=2, arms=ARMS[:3])
    study = yaml.safe_load((directory / "study.yaml").read_text())
    (directory / "study.yaml").write_text(yaml.safe_dump({**study, "baseline": ARMS[2].name}))
    for seed in (1, 2):
        for arm, share in ((ARMS[0].name, 0.14), (ARMS[1].name, 0.35), (ARMS[2].name, 0.35)):
            copied = {"errors": 3000, "mlm": share, "readout": share}
            edit_record(directory / f"arms/{arm}/seed-{seed}", copied=copied)
    found = [a for a in build_report(directory)["alarms"] if a["kind"] == "copied_errors"]
    assert {a["arm"] for a in found} == {ARMS[1].name, ARMS[2].name}
    assert all(f"where {ARMS[0].name}, equally large" in a["text"] for a in found)
    shutil.rmtree(directory / "arms" / ARMS[0].name)
    study["arms"] = [arm for arm in study["arms"] if arm["name"] != ARMS[0].name]
    (directory / "study.yaml").write_text(yaml.safe_dump({**study, "baseline": ARMS[2].name}))
    edit_record(directory / f"arms/{ARMS[2].name}/seed-1", copied={"errors": 3000, "mlm": 0.1, "readout": 0.1})
    assert not [a for a in build_report(directory)["alarms"] if a["kind"] == "copied_errors"]


def test_overrides_energy_and_glue_reach_every_form_of_the_report(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3, arms=ARMS[:2])
    override = {"kind": "code", "key": "torch", "was": "2.12", "now": "2.13"}
    for arm, score in (("no_kd", 0.40), ("soft_targets", 0.30)):
        for seed in (1, 2, 3):
            by_seed = {"1": score + 0.01 * seed, "2": score + 0.02, "3": score - 0.013 * seed}
            task = {"score": sum(by_seed.values()) / 3, "by_seed": by_seed, "lr": 5e-5, "batch": 32, "at_edge": True}
            energy = {"joule": 1234.0, "source": "NVML counter", "coverage": 0.97, "uncertainty_j": 12.0}
            folder = directory / f"arms/{arm}/seed-{seed}"
            scores = json.loads((folder / "record.json").read_text())["scores"]
            glue = {"tasks": {"cola": task}, "recipe": {"seeds": [1, 2, 3], "chosen_on": "a held-out part of train"}}
            edit_record(
                folder, glue=glue, energy=energy, overrides=[override], scores={**scores, "glue.cola": task["score"]}
            )
    report = build_report(directory)
    (model,) = [m for m in report["mixed_models"] if m["metric"] == "glue.cola"]
    assert (model["fine"], model["degrees"]) == (3, 2)
    assert model["pairs"][0]["difference"] == pytest.approx(0.10)
    html, text = (directory / "report.html").read_text(), (directory / "report.md").read_text()
    for shown in (html, text):
        assert "NVML counter" in shown
        assert "Overrides" in shown
        assert "2.13" in shown
    assert "3 fine-tuning seeds in each run" in html
    names = {path.stem for path in (directory / "tables").iterdir()}
    assert {"glue", "energy", "overrides", "components", "mixed_model", "spent", "steps", "currencies"} <= names


def test_energy_that_was_not_measured_is_never_printed_as_0(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=1, arms=ARMS[:1])
    edit_record(directory / "arms/no_kd/seed-1", energy={"joule": None, "source": None})
    build_report(directory)
    assert "not measured" in (directory / "report.html").read_text()


def test_a_stand_in_that_cannot_measure_the_main_verdict_s_arms_leaves_the_headline_to_costs(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3, noise=0.02)  # tinybert wins, and never trained a head
    for arm in ARMS:
        change_rows(directory, arm.name, lambda row: {k: v for k, v in row.items() if not k.startswith("readout_")})
    (currency,) = analysed(directory).currencies
    assert currency.metric == "mlm.loss"  # soft_targets is compared in the table
    assert currency.verdict is None
    assert currency.flip == "no"  # tinybert won with less device time
    assert "tinybert used" in currency.sentence


def test_a_kept_record_is_reported_like_a_run(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=2, arms=ARMS[:2])
    expected = build_report(directory)
    for folder in list(directory.glob("arms/*/*")):
        text = (folder / "ledger.jsonl").read_text()
        with gzip.open(folder / "ledger.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(text)
        (folder / "ledger.jsonl").unlink()
        folder.rename(directory / f"{folder.parent.name}-{folder.name}")
    report = build_report(directory)
    assert report["arms"] == expected["arms"]
    assert report["warnings"] == expected["warnings"]
    assert report["verdict"] == expected["verdict"]


# -- what stands in, and what is said where nothing can ------------------------------------------------


def glue_study(directory: Path, **evaluation: Any) -> Path:
    """A study decided by GLUE, which nobody fine-tunes along the way."""
    write_study(directory, seeds=3, arms=(ARMS[0], ARMS[3]), noise=0.02, evaluation={"main": "glue.mean", **evaluation})
    for arm in (ARMS[0], ARMS[3]):
        for seed in (1, 2, 3):
            folder = directory / f"arms/{arm.name}/seed-{seed}"
            scores = json.loads((folder / "record.json").read_text())["scores"]
            glue = arm.accuracy + 0.01 * seed * (arm.accuracy - 0.3)
            edit_record(folder, scores={**scores, "glue.mean": glue})
    return directory


def test_where_glue_decides_the_read_outs_loss_stands_in(tmp_path: Path) -> None:
    (currency,) = analysed(glue_study(tmp_path / "s", readout={"on_curve": True}, curve_points=3)).currencies
    assert currency.metric == "readout.loss"
    assert currency.verdict is not None
    assert set(currency.scores) == {"no_kd", "tinybert"}  # an arm without a head of its own is measured too
    assert "Readout loss stands in: GLUE: mean is measured at the end alone" in currency.basis
    assert "set " not in currency.basis  # there is nothing left to set


def test_another_order_by_the_stand_in_is_no_flip_where_it_has_that_order_at_the_equal_budget_too(
    tmp_path: Path,
) -> None:
    """GLUE says TinyBERT, the read-out scratch, at the end already: that is two scores, and nothing of device time."""
    directory = glue_study(tmp_path / "s", readout={"on_curve": True}, curve_points=3)
    first = analysed(directory)
    (before,) = first.currencies
    assert before.flip == "no"
    for seed in (1, 2, 3):
        folders = [directory / f"arms/{name}/seed-{seed}" for name in ("no_kd", "tinybert")]
        scores = [json.loads((folder / "record.json").read_text())["scores"] for folder in folders]
        for folder, own, other in zip(folders, scores, reversed(scores), strict=True):
            edit_record(folder, scores={**own, "glue.mean": other["glue.mean"]})
    swapped = analysed(directory)
    (currency,) = swapped.currencies
    assert swapped.verdict.better != first.verdict.better
    assert currency.metric == "readout.loss"
    assert currency.flip == "unknown"
    assert "by that score the answer is another one at the equal budget too" in currency.sentence
    assert "flip" not in currency.sentence.split(".")[0]
    assert not swapped.flips


@pytest.mark.parametrize(
    ("evaluation", "schedule", "named", "never"),
    [
        ({"main": "readout.loss", "curve_points": 3}, {}, ["(set evaluation.readout.on_curve: true)"], ["curve_points"]),
        ({"main": "readout.loss", "curve_points": 0}, {}, ["evaluation.readout.on_curve: true and evaluation.curve_points: 4"], []),
        ({"main": "readout.loss", "curve_points": 0, "readout": {"on_curve": True}}, {}, ["(set evaluation.curve_points: 4)"], ["on_curve"]),
        ({"main": "mlm.loss", "curve_points": 0}, {}, ["(set evaluation.curve_points: 4)"], ["readout"]),
        ({"main": "glue.mean", "curve_points": 3}, {}, ["at the end alone", "can stand in (set evaluation.readout.on_curve: true)"], []),
        ({"main": "glue.mean", "curve_points": 3, "readout": None}, {}, ["can stand in (set evaluation.readout: {on_curve: true})"], []),
        ({"main": "readout.loss", "curve_points": 0}, {"keep_trunk": True}, ["share a trunk", "whole sweep"], ["set evaluation"]),
    ],
)  # fmt: skip
def test_a_remedy_is_named_only_where_it_would_help(
    tmp_path: Path, evaluation: dict[str, Any], schedule: dict[str, Any], named: list[str], never: list[str]
) -> None:
    directory = glue_study(tmp_path / "s", **evaluation)
    study = yaml.safe_load((directory / "study.yaml").read_text())
    (directory / "study.yaml").write_text(yaml.safe_dump({**study, "schedule": schedule}))
    for arm in (ARMS[0], ARMS[3]):
        change_rows(directory, arm.name, lambda row: row if "loss" in row else None)
    (currency,) = analysed(directory).currencies
    assert currency.metric is None
    for text in named:
        assert text in currency.sentence
    for text in never:
        assert text not in currency.sentence


def test_a_charged_cost_without_a_price_in_the_other_currency_is_said_and_nothing_is_compared(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3, arms=(ARMS[0], ARMS[3]))
    study = yaml.safe_load((directory / "study.yaml").read_text())
    study["accounting"]["charged"].append("TEACHER_TRAINING")
    (directory / "study.yaml").write_text(yaml.safe_dump(study))

    def owe(**amounts: float) -> None:
        for seed in (1, 2, 3):
            folder = directory / f"arms/tinybert/seed-{seed}"
            accounts = json.loads((folder / "record.json").read_text())["accounts"]
            edit_record(folder, accounts={**accounts, "TEACHER_TRAINING": {"flop": 10**12, **amounts}})

    owe()
    (currency,) = analysed(directory).currencies
    assert (currency.verdict, currency.flip) == (None, "unknown")
    assert "teacher training is charged and nobody said what it cost in device time" in currency.sentence
    owe(**{"gpu-second": 20.0})
    analysis = analysed(directory)
    (currency,) = analysis.currencies
    assert currency.verdict is not None
    run = next(arm for arm in analysis.arms if arm.name == "tinybert").done[0]
    points = dict(curve(analysis, run, "readout.loss", Unit.GPU_SECOND))
    assert points[0.0] == points[20.0]  # until its teacher is paid for, its student is untrained
    elsewhere = {"hardware": {"devices": ["CPU of ours"]}}
    for seed in (1, 2, 3):
        folder = directory / f"arms/tinybert/seed-{seed}"
        edit_record(folder, identity=elsewhere, teacher_training=[{"unit": "gpu-second", "devices": ["H200"]}])
        edit_record(directory / f"arms/no_kd/seed-{seed}", identity=elsewhere)
    (currency,) = analysed(directory).currencies
    assert currency.verdict is None
    assert "teacher training is charged and took place on H200, not on CPU of ours" in currency.sentence


# -- GLUE's chance -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "majority", "chance"),
    [
        ({"accuracy": 0.69, "f1": 0.81}, 0.684, True),  # MRPC's majority, on 408 examples
        ({"accuracy": 0.78, "f1": 0.85}, 0.684, False),
        ({"matthews": 0.04}, None, True),
        ({"matthews": 0.25}, None, False),
        ({"pearson": 0.05, "spearman": 0.06}, None, True),
        ({"pearson": 0.30, "spearman": 0.02}, None, False),
        ({"accuracy": 0.9}, None, None),
    ],
)
def test_a_fine_tuned_score_is_at_chance_where_no_model_would_do_as_well(
    metrics: dict[str, float], majority: float | None, chance: bool | None
) -> None:
    shares = {} if majority is None else {"majority": {"validation": majority}}
    facts = {"metrics": {"validation": metrics}, "examples": {"validation": 408}, **shares}
    assert at_chance(facts) is chance


@pytest.mark.parametrize(("task", "n"), [("accuracy", 277), ("matthews", 1043), ("pearson", 1500)])
def test_guessers_are_said_to_be_at_chance_in_all_but_one_of_a_hundred(task: str, n: int) -> None:
    rng = np.random.default_rng(n)
    found = 0
    for _ in range(1000):
        labels, guesses = rng.random(n) < 0.53, rng.random(n) < 0.5
        value = float(np.mean(labels)) if task == "accuracy" else float(np.corrcoef(labels, guesses)[0, 1])
        hits = float(rng.binomial(n, 0.53)) / n if task == "accuracy" else value
        facts = {
            "metrics": {"validation": {task: hits}},
            "examples": {"validation": n},
            "majority": {"validation": 0.53},
        }
        found += at_chance(facts) is False
    assert found / 1000 <= 0.02
