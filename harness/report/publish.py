"""Write report.json, report.md, report.html and tables/*.csv of a study directory, finished or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.errors import ConfigError
from harness.report import numbers, tables
from harness.report.analysis import Analysis, analyse, describe_unit
from harness.report.arms import Arm
from harness.report.checks import check
from harness.report.fact_tables import declared
from harness.report.files import finite, write_csv, write_text
from harness.report.join import join
from harness.report.markdown import markdown
from harness.report.page import page
from harness.report.reproduce import reproduce
from harness.report.source import Json, Run, Source, mapping, read

FORMAT = 1


def build_report(directory: Path) -> Json:
    """Rebuild every file of the report from what lies in `directory`, and return the JSON object.

    Each file is written beside and renamed, so a reader never sees half of one.

    Raises:
        ConfigError: `directory` holds no study.
    """
    return _publish(read(Path(directory)), Path(directory))


def build_joined(directories: Sequence[Path], out: Path) -> Json:
    """The report of several run directories of one study, written to `out`, which is no run's own directory.

    Raises:
        ConfigError: as `join`; or `out` holds a run, whose report would be lost.
    """
    source = join(directories)
    if (out / "study.yaml").exists():
        raise ConfigError(f"--out {out}", rule="it holds a run with a report of its own", remedy="choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    return _publish(source, out)


def _publish(source: Source, directory: Path) -> Json:
    analysis = analyse(source)
    check(analysis)
    shown = tables.every(analysis)
    report = document(analysis)
    for table in shown:
        write_csv(directory / "tables" / f"{table.name}.csv", table.records)
    write_text(directory / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(directory / "report.md", markdown(analysis, shown, reproduce=report["reproduce"]))
    write_text(directory / "report.html", page(analysis, shown, reproduce=report["reproduce"]))
    return report


def document(analysis: Analysis) -> Json:
    """The report as plain JSON: numbers in base units, nothing rounded, null where nothing was measured."""
    source, budget = analysis.source, analysis.budget
    report = {
        "format": FORMAT,
        "study": analysis.name,
        "question": source.study.get("question") or "",
        "state": source.status or {"state": "unknown"},
        "budget": {
            "unit": analysis.unit,
            "limit": None if budget is None else budget.limit,
            "text": None if budget is None else str(budget),
        },
        "accounting": {"charged": analysis.charged},
        "baseline": analysis.baseline.name if analysis.baseline else None,
        "verdict": {
            **analysis.verdict.as_json(),
            "metric": analysis.main,
            "margin": analysis.margin,
            "margin_declared": analysis.margin_declared,
            "equal": describe_unit(analysis.unit),
            "currencies": [currency.as_json() for currency in analysis.currencies],
            "flips": [currency.unit for currency in analysis.flips],
            "arms": [verdict.as_json() for verdict in analysis.by_arm],
        },
        "arms": [_run(analysis, arm, run) for arm in analysis.arms for run in arm.runs],
        "summary": [_summary(analysis, arm) for arm in analysis.arms],
        "comparisons": [c.as_json() for c in analysis.comparisons],
        "controls": [_run(analysis, None, run) for run in source.controls],
        "control_splits": [split.as_json() for split in analysis.splits],
        "pretraining_first": [found.as_json() for found in analysis.pretraining_first],
        "domains": None if analysis.domains is None else analysis.domains.as_json(),
        "mixed_models": [nesting.as_json() for nesting in analysis.nestings],
        "spent": [vars(spread) for spread in analysis.spreads],
        "alarms": [alarm.as_json() for alarm in analysis.alarms],
        "references": {**source.references, **{k: {"scores": v} for k, v in analysis.references.items()}},
        "probes": [vars(probe) for probe in analysis.probes],
        "declared_differences": declared(analysis),
        "missing": analysis.missing,
        "warnings": analysis.warnings,
        "environment": source.environment,
        "resolved_study": source.study,
        "reproduce": reproduce(source),
    }
    return finite(report)


def _run(analysis: Analysis, arm: Arm | None, run: Run) -> Json:
    record = run.record
    keys = ("steps", "tokens", "unique_tokens", "epochs", "charged", "unspent", "step_price", "seconds", "wall_seconds")
    scores: Json = dict(run.scores)
    for metric, by_arm in analysis.scores.items():
        if arm is not None and metric not in scores and run.seed in by_arm.get(arm.name, {}):
            scores[metric] = by_arm[arm.name][run.seed]
    told = ("glue", "energy", "copied", "control", "overrides", "model", "exported_layers")
    kept = {key: record[key] for key in told if record.get(key)}
    return {
        "name": run.arm,
        "seed": run.seed,
        "state": record.get("state") or "unfinished",
        "objective": record.get("objective", arm.objective if arm else None),
        **{key: record.get(key) for key in keys},
        "parameters": record.get("parameters"),
        "head_trained": record.get("head_trained"),
        "accounts": mapping(record.get("accounts")),
        "scores": scores,
        **kept,
        "warnings": run.warnings,
    }


def _summary(analysis: Analysis, arm: Arm) -> Json:
    means = {metric: analysis.score(arm.name, metric) for metric in analysis.metrics}
    return {
        "name": arm.name,
        "baseline": arm.baseline,
        "objective": arm.objective,
        "seeds": arm.seeds,
        "scores": {
            metric: {"mean": m.mean, "sd": m.sd, "low": m.low, "high": m.high, "n": len(m.values)}
            for metric, m in means.items()
            if m is not None
        },
        "seconds": arm.mean("seconds"),
        "charged": arm.mean("charged"),
    }


def summary_lines(report: Json) -> list[str]:
    """A few plain lines for a terminal: verdict, second currency, one line per arm, warnings counted."""
    verdict = report["verdict"]
    metric = verdict["metric"]
    lines = [
        f"{verdict['sentence']}.",
        f"({verdict['reason']}; {numbers.label(metric)} at {report['budget']['text'] or 'an unknown budget'} per arm)",
    ]
    lines += [currency["sentence"] for currency in verdict["currencies"] if currency["sentence"]]
    lines += [f"{d['arm']} also differs in {d['key']}, as declared." for d in report["declared_differences"]]
    told = len(lines)
    spreads = [s["sd"] for arm in report["summary"] if (s := arm["scores"].get(metric)) and s["sd"]]
    digits = max(spreads, default=None)
    rows = [("arm", numbers.label(metric), "seeds", "charged", "device time")]
    for arm in report["summary"]:
        score = arm["scores"].get(metric)
        text = "–"
        if score is not None:
            text = numbers.score(score["mean"], metric, spread=digits)
            text += "" if score["sd"] is None else f" ± {numbers.amount_of(score['sd'], metric, spread=digits)}"
        costs = numbers.cost(arm["charged"], report["budget"]["unit"]), numbers.cost(arm["seconds"], "gpu-second")
        rows.append((arm["name"], text, str(len(arm["seeds"])), *costs))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += ["", *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
    lines += [f"alarm: {alarm['text']}" for alarm in report["alarms"]]
    for what in ("missing", "warnings"):
        if count := len(report[what]):
            words = ("run", "s unfinished") if what == "missing" else ("warning", "s")
            ending = words[1] if count > 1 else words[1].removeprefix("s")
            lines.append(f"{count} {words[0]}{ending}: see the report")
    # Sentences may hold a study's own line breaks; the table's columns keep their spaces.
    return [" ".join(line.split()) if i < told or line.startswith("alarm: ") else line for i, line in enumerate(lines)]
