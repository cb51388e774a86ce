"""Laws of the report: it says what the files hold, in any state they are in, and nothing in it can run or call home."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.report import build_report, summary_lines
from harness.report.arms import objective_words
from harness.report.informative import two_proportions

from .report_fakes import ARMS, ENVIRONMENT, REFERENCES, edit_record, write_run, write_study

GOLDEN = Path(__file__).parents[1] / "golden" / "report_quickstart.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = write_study(tmp_path_factory.mktemp("runs") / "study", seeds=3, noise=0.02)
    return directory, build_report(directory)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms, two seeds, without metrics: quick to rebuild."""
    directory = write_study(tmp_path_factory.mktemp("small") / "study", seeds=2, arms=ARMS[1:3])
    for path in directory.glob("arms/*/*/metrics.jsonl"):
        path.write_text("")
    return directory


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not balance."""

    VOID = frozenset({"meta", "link", "br", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


# -- what it says ------------------------------------------------------------------------------------


def test_json_holds_the_promised_keys_and_every_run(finished) -> None:
    directory, report = finished
    assert report == json.loads((directory / "report.json").read_text())
    assert {"study", "budget", "arms", "comparisons", "verdict", "references", "environment"} <= set(report)
    assert {"declared_differences", "warnings"} <= set(report)
    assert report["study"] == "quickstart"
    assert (report["budget"]["unit"], report["budget"]["limit"]) == ("flop", 10**13)
    assert [(run["name"], run["seed"]) for run in report["arms"]] == [(a.name, s) for a in ARMS for s in (1, 2, 3)]
    wanted = {"name", "seed", "steps", "tokens", "unique_tokens", "charged", "seconds", "accounts", "scores"}
    assert all(wanted <= set(run) for run in report["arms"])
    assert report["baseline"] == "no_kd"
    assert report["verdict"]["kind"] == "beats"
    assert report["verdict"]["better"] == "tinybert"


def test_scores_in_the_report_are_those_in_the_records(finished) -> None:
    directory, report = finished
    for run in report["arms"]:
        record = json.loads((directory / f"arms/{run['name']}/seed-{run['seed']}/record.json").read_text())
        assert {k: run["scores"][k] for k in record["scores"]} == record["scores"]
        assert run["accounts"] == record["accounts"]


def test_page_and_markdown_open_with_the_verdict(finished) -> None:
    directory, report = finished
    sentence = report["verdict"]["sentence"]
    assert (directory / "report.md").read_text().startswith(f"# {sentence}\n")
    html = (directory / "report.html").read_text()
    heading = re.search(r"<h1>(.*?)</h1>", html, re.DOTALL)
    assert heading is not None
    assert re.sub(r"<[^>]+>", "", heading[1]).replace("\u00a0", " ") == sentence
    assert html.index("<h1>") < html.index("<table")


def test_terminal_lines_are_few_plain_and_start_with_the_verdict(finished) -> None:
    _, report = finished
    lines = summary_lines(report)
    assert lines[0] == report["verdict"]["sentence"] + "."
    assert len(lines) < 15
    assert all("<" not in line and "\x1b" not in line for line in lines)
    assert all(any(line.startswith(arm.name) for line in lines) for arm in ARMS)


def test_every_table_is_a_csv_with_a_header_and_full_precision(finished) -> None:
    directory, report = finished
    tables = {path.stem: list(csv.DictReader(path.open(encoding="utf-8"))) for path in (directory / "tables").iterdir()}
    assert {"scores", "seeds", "data", "accounts", "comparisons_baseline", "comparisons_pairs"} <= set(tables)
    row = next(r for r in tables["scores"] if (r["arm"], r["metric"]) == ("tinybert", "readout.loss"))
    summary = next(s for s in report["summary"] if s["name"] == "tinybert")
    assert float(row["mean"]) == summary["scores"]["readout.loss"]["mean"]
    assert len(tables["data"]) == len(report["arms"])


def test_mlm_figures_of_an_untrained_head_are_flagged_and_decide_nothing(finished) -> None:
    directory, report = finished
    flagged = {(c["a"], c["b"]) for c in report["comparisons"] if c["metric"] == "mlm.loss" and not c["meaningful"]}
    assert {("minilmv2", "no_kd"), ("tinybert", "no_kd")} <= flagged
    assert ("soft_targets", "no_kd") not in flagged
    assert not any(c["significant"] for c in report["comparisons"] if not c["meaningful"])
    assert "minilmv2, tinybert never trained an MLM head" in page_of(directory).text


def test_a_probe_that_a_teacher_does_not_pass_is_uninformative_and_enters_no_average(finished) -> None:
    _, report = finished
    assert {p["metric"]: p["informative"] for p in report["probes"]} == {
        "probe.package": True,
        "probe.order": False,
        "probe.summary": True,
    }
    for run in report["arms"]:
        scores = run["scores"]
        assert scores["probe.mean"] == pytest.approx((scores["probe.package"] + scores["probe.summary"]) / 2)
    assert any("Probe: order is uninformative" in text for text in report["warnings"])


def test_two_proportions_is_the_pooled_z_test() -> None:
    # 60 against 50 of 100: z = 0.1 / sqrt(0.55 × 0.45 × 2 / 100) = 1.4213, one-sided p 0.0776.
    assert two_proportions(0.60, 0.50, 100) == pytest.approx(0.0776, abs=1e-4)
    assert two_proportions(0.5, 0.5, 100) == pytest.approx(0.5)
    assert two_proportions(1.0, 1.0, 100) == 1.0


def test_probes_without_references_are_not_believed(tmp_path: Path) -> None:
    report = build_report(write_study(tmp_path / "s", seeds=2, arms=ARMS[:2], references=False))
    assert {p["informative"] for p in report["probes"]} == {None}
    assert all("probe.mean" not in run["scores"] for run in report["arms"])


# -- the second currency -----------------------------------------------------------------------------


def test_page_and_json_tell_the_verdict_in_the_other_currency(finished) -> None:
    directory, report = finished
    (currency,) = report["verdict"]["currencies"]
    assert (currency["unit"], currency["metric"]) == ("gpu-second", "readout.loss")
    assert currency["verdict"]["better"] == "tinybert"
    text = page_of(directory).text
    assert "In FLOPs, the budget" in text
    assert "In device time" in text
    assert currency["verdict"]["sentence"].replace(" ± ", "\u00a0±\u00a0").split(" by ")[1].split()[0] in text


# -- the books ---------------------------------------------------------------------------------------


def test_an_arm_that_overspent_or_stopped_early_is_reported(small: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(small, tmp_path / "s"))
    edit_record(directory / "arms/soft_targets/seed-1", charged=10**13 + 1)
    edit_record(directory / "arms/soft_targets/seed-2", charged=9 * 10**12)
    warnings = " ".join(build_report(directory)["warnings"])
    assert "soft_targets, seed 1: spent 1 FLOP more than the budget of 10 TFLOP" in warnings
    assert "soft_targets, seed 2: stopped 1 TFLOP below the budget, although a step costs 20.4 GFLOP" in warnings
    assert "soft_targets, seed 2: the ledger ends at 10 TFLOP, the record says 9 TFLOP" in warnings
    assert "minilmv2, seed" not in warnings


def test_failure_signatures_are_named(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3)
    references = json.loads(json.dumps(REFERENCES))
    references["teacher"]["scores"]["readout.loss"] = 4.10
    references["untrained"]["scores"]["readout.loss"] = 4.90
    (directory / "references.json").write_text(json.dumps(references))
    for path in directory.glob("arms/tinybert/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if "loss" in row:
                row["loss"] = 2.0 - min(row["fraction"], 0.3)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = build_report(directory)
    alarms = {(alarm["kind"], alarm["arm"]) for alarm in report["alarms"]}
    assert ("below_baseline", "soft_targets") in alarms
    assert ("no_better_than_untrained", "soft_targets") in alarms
    assert ("weak_teacher", "tinybert") in alarms
    assert ("plateau", "tinybert") in alarms
    assert ("plateau", "no_kd") not in alarms
    assert [line for line in summary_lines(report) if line.startswith("alarm: ")]
    assert "tinybert: the training objective stopped falling" in page_of(directory).text


def test_a_student_below_the_one_without_a_teacher_is_named_whatever_the_baseline_is(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3, noise=0.015)
    study = yaml.safe_load((directory / "study.yaml").read_text())
    for baseline in (None, "soft_targets", "tinybert"):
        (directory / "study.yaml").write_text(yaml.safe_dump({**study, "baseline": baseline}))
        found = {a["arm"] for a in build_report(directory)["alarms"] if a["kind"] == "below_baseline"}
        assert found == {"soft_targets", "minilmv2"}
    # Two arms from scratch: the worse one is no failure of distillation.
    arms = [{**arm, "objective": "mlm"} if arm["name"] == "soft_targets" else arm for arm in study["arms"]]
    (directory / "study.yaml").write_text(yaml.safe_dump({**study, "arms": arms}))
    found = {a["arm"] for a in build_report(directory)["alarms"] if a["kind"] == "below_baseline"}
    assert found == {"minilmv2"}


def test_a_run_whose_loss_jumps_is_named_with_its_seed_and_the_others_are_not(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3)
    assert not [a for a in build_report(directory)["alarms"] if a["kind"] == "instability"]
    path = directory / "arms/tinybert/seed-2/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    jumped = [row for row in rows if "loss" in row][60:63]
    for row in jumped:
        row["loss"] *= 2.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (alarm,) = [a for a in build_report(directory)["alarms"] if a["kind"] == "instability"]
    assert (alarm["arm"], alarm["seed"]) == ("tinybert", 2)
    assert "the training loss jumped" in page_of(directory).text


def test_a_diverged_score_is_null_named_and_left_out(small: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(small, tmp_path / "s"))
    folder = directory / "arms/minilmv2/seed-2"
    scores = json.loads((folder / "record.json").read_text())["scores"]
    edit_record(folder, scores={**scores, "readout.loss": float("nan")}, warnings=["loss became NaN"])
    report = build_report(directory)
    run = next(r for r in report["arms"] if (r["name"], r["seed"]) == ("minilmv2", 2))
    assert run["scores"]["readout.loss"] is None
    assert report["verdict"]["kind"] == "cannot tell"
    assert "minilmv2, seed 2: loss became NaN" in report["warnings"]
    assert any("no finite Readout loss" in text for text in report["warnings"])


# -- any state ---------------------------------------------------------------------------------------


def test_an_interrupted_study_is_reported_with_what_is_missing(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=3)
    (directory / "status.json").write_text(json.dumps({"state": "interrupted", "message": "stopped by the scheduler"}))
    (directory / "environment.json").unlink()
    shutil.rmtree(directory / "arms/tinybert/seed-3")
    running = directory / "arms/tinybert/seed-2"
    edit_record(running, state="running")
    unwritten = directory / "arms/minilmv2/seed-3"
    (unwritten / "record.json").write_text('{"name": "minilmv2", "see')
    with (unwritten / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')
    report = build_report(directory)
    assert report["missing"] == [
        "minilmv2, seed 3: unfinished, 100% of the budget spent",
        "tinybert, seed 2: unfinished, 100% of the budget spent",
        "tinybert, seed 3: not started",
    ]
    assert next(c for c in report["comparisons"] if c["a"] == "tinybert")["n"] == 1
    text = page_of(directory).text
    assert "stopped by the scheduler" in text
    assert "9 of 12 runs are finished" in text
    assert "environment.json is missing." in report["warnings"]
    assert "arms/minilmv2/seed-3/record.json is unreadable." in report["warnings"]


def test_a_study_that_has_not_begun_still_has_a_report(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=1)
    shutil.rmtree(directory / "arms")
    report = build_report(directory)
    assert report["verdict"]["kind"] == "cannot tell"
    assert len(report["missing"]) == 4
    assert page_of(directory).text.count("not started") == 4


def test_runs_without_their_study_still_have_a_report(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=2)
    (directory / "study.yaml").unlink()
    report = build_report(directory)
    assert {run["name"] for run in report["arms"]} == {arm.name for arm in ARMS}
    assert report["baseline"] == "no_kd"
    assert report["budget"] == {"unit": None, "limit": None, "text": None}
    page_of(directory)


def test_a_single_arm_is_told_that_there_is_nothing_to_compare(tmp_path: Path) -> None:
    report = build_report(write_study(tmp_path / "s", seeds=2, arms=ARMS[:1]))
    assert report["comparisons"] == []
    assert "fewer than two arms" in report["verdict"]["sentence"]


@pytest.mark.parametrize("make", [False, True])
def test_a_directory_without_a_study_is_refused(tmp_path: Path, make: bool) -> None:
    directory = tmp_path / "nothing"
    if make:
        directory.mkdir()
    with pytest.raises(ConfigError, match="give the directory"):
        build_report(directory)


def test_rebuilding_changes_nothing(finished) -> None:
    directory, report = finished
    files = [p for p in [*directory.glob("report.*"), *directory.glob("tables/*")] if p.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert build_report(directory) == report
    assert {path: path.read_bytes() for path in files} == before
    assert not list(directory.rglob("*.tmp"))


def test_an_added_arm_keeps_the_colours_of_the_others(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=1, arms=ARMS[:3])

    def colours() -> dict[str, str]:
        build_report(directory)
        html = (directory / "report.html").read_text()
        return {name: colour for colour, name in re.findall(r'<span class="end (arm-\d)"[^>]*>([^<]+)', html)}

    before = colours()
    write_study(directory, seeds=1, arms=ARMS)
    after = colours()
    assert len(after) == 4
    assert len(set(after.values())) == 4
    assert {name: after[name] for name in before} == before


JUNK = [None, "x", -1, float("nan"), float("inf"), [], {}, [None], {"a": {"b": None}}, True, 10**30]
FIELDS = [
    "name", "seed", "state", "objective", "steps", "tokens", "unique_tokens", "epochs", "charged", "unspent",
    "step_price", "seconds", "accounts", "scores", "warnings", "head_trained", "parameters",
]  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(JUNK), min_size=1, max_size=3))
def test_no_value_in_a_record_stops_the_report(small: Path, changes: dict[str, Any]) -> None:
    folder = small / "arms/minilmv2/seed-1"
    kept = (folder / "record.json").read_text()
    try:
        edit_record(folder, **changes)
        report = build_report(small)
        json.dumps(report, allow_nan=False)
        page_of(small)
    finally:
        (folder / "record.json").write_text(kept)


# -- nothing in it can run or call home --------------------------------------------------------------


def test_declared_differences_and_what_the_teacher_was_trained_on_stand_beside_the_verdict(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=2)
    study = yaml.safe_load((directory / "study.yaml").read_text())
    for arm in study["arms"]:
        arm["tuning"] = {"cost": "1 TFLOP", "trials": 5}
    (directory / "study.yaml").write_text(yaml.safe_dump(study))
    for name, on in (("soft_targets", "superset"), ("minilmv2", "superset"), ("tinybert", "unknown")):
        for seed in (1, 2):
            edit_record(directory / f"arms/{name}/seed-{seed}", teacher={"path": name[:1], "trained_on": on})
    build_report(directory)
    page, markdown = page_of(directory).text, (directory / "report.md").read_text()
    for said in (
        "minilmv2 also differs in optimizer.lr: 0.002 where the others have 0.003, found in 5 trials, as many as every arm had.",
        "The teacher of soft_targets (s) was trained on the text that the students learn from, and on more.",
        "The teacher of tinybert (t) was trained on text that nobody has declared.",
    ):
        for text in (page, markdown):
            assert said in text
            assert text.index(said) < text.index("Device time")
    assert "minilmv2 also differs in optimizer.lr, as declared." in summary_lines(build_report(directory))
    for grid, chosen, said in (("staged", "train", True), ("paper", "train", True), ("paper", "validation", False)):
        study["evaluation"]["glue"] = {"path": "g", "tasks": ["cola"], "grid": grid, "select_on": chosen}
        (directory / "study.yaml").write_text(yaml.safe_dump(study))
        build_report(directory)
        for text in (page_of(directory).text, (directory / "report.md").read_text()):
            assert (f"GLUE is searched over the {grid} grid and chosen on a held-out part of train" in text) == said
            assert ("the published protocol" in text) == said
    study["evaluation"].pop("glue")
    study["arms"][2].pop("tuning")
    (directory / "study.yaml").write_text(yaml.safe_dump(study))
    build_report(directory)
    assert "optimizer.lr: 0.002 where the others have 0.003." in page_of(directory).text


def test_a_marked_difference_says_that_a_mark_is_no_praise(tmp_path: Path) -> None:
    """Arms that are surely worse than the baseline are marked too."""
    directory = write_study(tmp_path / "s", seeds=4, noise=0.001)
    build_report(directory)
    sections = (directory / "report.md").read_text().split("\n## ")
    marked = [text for text in sections if re.search(r"\| \*\*[\u2212+]", text)]
    assert any("**\u2212" in text for text in marked)
    assert len(marked) > 1
    assert all("whichever arm is the better one" in text for text in marked)


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def test_hostile_names_and_warnings_are_shown_and_never_run(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=2, question=HOSTILE)
    study = yaml.safe_load((directory / "study.yaml").read_text())
    study["name"] = HOSTILE
    study["arms"][1]["name"] = HOSTILE
    study["arms"][2]["differs"] = {HOSTILE: HOSTILE}
    (directory / "study.yaml").write_text(yaml.safe_dump(study))
    (directory / "environment.json").write_text(json.dumps({**ENVIRONMENT, HOSTILE: HOSTILE, "command": HOSTILE}))
    (directory / "status.json").write_text(json.dumps({"state": HOSTILE, "message": HOSTILE}))
    for seed in (1, 2):
        folder = directory / f"arms/soft_targets/seed-{seed}"
        scores = json.loads((folder / "record.json").read_text())["scores"]
        edit_record(folder, name=HOSTILE, warnings=[HOSTILE], scores={**scores, f"probe.{HOSTILE}": 0.5})
        edit_record(folder, accounts={HOSTILE: {"flop": 1}})
    build_report(directory)
    page = page_of(directory)
    assert HOSTILE in page.text
    assert set(page.tags).isdisjoint({"script", "img", "iframe", "object", "embed", "form"})
    assert not any(name.startswith("on") for name, _ in page.attributes)
    markdown = (directory / "report.md").read_text()
    assert "<script" not in markdown.split("## Reproduce")[0]
    assert "&lt;script&gt;" in markdown


def test_the_page_makes_no_request(finished) -> None:
    directory, _ = finished
    html = (directory / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|srcset", html.replace("http-equiv", ""))
    assert [v for n, v in page.attributes if n in ("src", "href")] in (["data:,"], ["data:,", "#warnings"])
    assert any(value.startswith("default-src 'none'") for _, value in page.attributes)


def test_the_page_is_small_and_knows_both_themes(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=10)
    build_report(directory)
    html = (directory / "report.html").read_bytes()
    assert len(html) <= 2_000_000
    assert b"prefers-color-scheme: dark" in html
    assert b"@media print" in html


# -- golden ------------------------------------------------------------------------------------------


def test_the_quickstart_report_is_the_golden_one(finished) -> None:
    """Regenerate with ISOBUDGET_REGENERATE=1 after a change that is meant to move these figures, and say why."""
    _, report = finished
    keys = (
        "format",
        "study",
        "budget",
        "baseline",
        "verdict",
        "summary",
        "probes",
        "declared_differences",
        "warnings",
        "alarms",
    )
    seen = {key: report[key] for key in keys}
    seen["comparisons"] = [c for c in report["comparisons"] if c["metric"] == "readout.loss"]
    if os.environ.get("ISOBUDGET_REGENERATE"):
        GOLDEN.write_text(json.dumps(seen, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert _close(seen, json.loads(GOLDEN.read_text(encoding="utf-8")))


def _close(seen: Any, golden: Any) -> bool:
    if isinstance(golden, dict):
        return seen.keys() == golden.keys() and all(_close(seen[k], golden[k]) for k in golden)
    if isinstance(golden, list):
        return len(seen) == len(golden) and all(_close(a, b) for a, b in zip(seen, golden, strict=True))
    if isinstance(golden, float):
        return seen == pytest.approx(golden, rel=1e-6)
    return seen == golden


def test_objectives_are_told_in_words() -> None:
    assert objective_words("mlm") == "mlm"
    assert objective_words({"name": "soft_targets", "temperature": 2}) == "soft_targets (temperature 2)"
    assert objective_words({"terms": [{"name": "mlm"}, {"name": "minilm", "weight": 2}]}) == "mlm + 2 × minilm"
    phases = {"phases": [{"until": 0.7, "name": "mlm"}, {"until": 1.0, "name": "minilmv2"}]}
    assert objective_words(phases) == "mlm until 70\u202f%, then minilmv2"


def test_an_unfinished_run_is_drawn_and_not_scored(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "s", seeds=2, arms=ARMS[:2])
    folder = write_run(directory, ARMS[1], 3)
    edit_record(folder, state="running")
    report = build_report(directory)
    assert next(s for s in report["summary"] if s["name"] == "soft_targets")["seeds"] == [1, 2]
    html = (directory / "report.html").read_text()
    assert html.count('class="seed arm-1"') > html.count('class="seed arm-0"')
