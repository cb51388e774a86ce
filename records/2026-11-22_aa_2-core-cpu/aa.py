"""Real A/A studies: runs of one recipe under independent seeds, dealt into studies of two arms, judged by the harness.

    python aa.py RUN_DIR SEEDS_PER_ARM OUT

RUN_DIR is a finished study of one arm with many seeds. Arms of one seed share data order, masks and initial weights, so
two equal arms at one seed would be bit-equal: here arm a and arm b of every study have seeds of their own. Each study is laid
out as a run directory, and read, compared and judged as its report would be; a verdict that names a winner is a false alarm. Writes
OUT/scores.csv, OUT/verdicts-N.csv and OUT/summary-N.json, N the seeds per arm.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import binomtest

from harness.compare import against_baseline
from harness.report.analysis import analyse
from harness.report.checks import check
from harness.report.source import read
from harness.report.verdict import headline

ARMS = ("a", "b")
RESHUFFLED = 2000
SIZES = (2, 3, 5, 10)


def finished(run: Path) -> dict[int, dict[str, Any]]:
    """{seed: record} of the runs that were trained and scored."""
    records = [json.loads(path.read_text()) for path in run.glob("arms/*/seed-*/record.json")]
    return {r["seed"]: r for r in sorted(records, key=lambda r: r["seed"]) if r["state"] == "done" and r["scores"]}


def lay_out(run: Path, dealt: dict[str, list[int]], place: Path) -> Path:
    """A run directory of two arms whose runs are those of these seeds, in order, renumbered from 1."""
    study = yaml.safe_load((run / "study.yaml").read_text())
    arm = study["arms"][0]
    count = len(dealt[ARMS[0]])
    study |= {"arms": [{**arm, "name": n} for n in ARMS], "baseline": "a", "seeds": list(range(1, count + 1))}
    place.mkdir()
    (place / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    for name in ("environment.json", "status.json", "references.json"):
        shutil.copy(run / name, place / name)
    for name, seeds in dealt.items():
        for number, seed in enumerate(seeds, start=1):
            source, target = run / "arms" / arm["name"] / f"seed-{seed}", place / "arms" / name / f"seed-{number}"
            target.mkdir(parents=True)
            record = json.loads((source / "record.json").read_text()) | {"name": name, "seed": number}
            (target / "record.json").write_text(json.dumps(record))
            for file in ("metrics.jsonl", "ledger.jsonl"):
                shutil.copy(source / file, target / file)
    return place


def judged(run: Path, each: int, main: str) -> list[dict[str, Any]]:
    """One row per study: disjoint sets of seeds, in order."""
    records = finished(run)
    seeds = list(records)
    rows = []
    for number in range(len(seeds) // (2 * each)):
        mine = seeds[2 * each * number : 2 * each * (number + 1)]
        dealt = {"a": mine[:each], "b": mine[each:]}
        with tempfile.TemporaryDirectory() as folder:
            analysis = analyse(read(lay_out(run, dealt, Path(folder) / "study")))
            check(analysis)
        (c,) = analysis.compared(main, "baseline")
        rows.append(
            {
                "study": number + 1, "seeds_a": " ".join(map(str, dealt["a"])), "seeds_b": " ".join(map(str, dealt["b"])),
                "difference": c.mean_difference, "low": c.low, "high": c.high, "p": c.p_corrected,
                "kind": analysis.verdict.kind, "sentence": analysis.verdict.sentence, "alarms": len(analysis.alarms),
            }
        )  # fmt: skip
    return rows


def reshuffled(scores: dict[int, float], each: int, main: str, margin: float) -> float:
    """Share of false alarms over many random deals of the same scores; the deals overlap, so this has no interval."""
    generator, seeds, alarms = np.random.default_rng(each), np.array(list(scores)), 0
    for _ in range(RESHUFFLED):
        mine = generator.permutation(seeds)[: 2 * each]
        table = {
            name: {i: scores[int(seed)] for i, seed in enumerate(part)}
            for name, part in zip(ARMS, (mine[:each], mine[each:]), strict=True)
        }
        verdict = headline(against_baseline(table, "a", metric=main), margin=margin)
        alarms += verdict.kind == "beats"
    return alarms / RESHUFFLED


def main() -> None:
    run, each, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    study = yaml.safe_load((run / "study.yaml").read_text())
    metric = study["evaluation"]["main"]
    records = finished(run)
    with (out / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = sorted({name for r in records.values() for name in r["scores"]})
        writer.writerow(["seed", "steps", "charged_flop", *names])
        for seed, r in records.items():
            writer.writerow([seed, r["steps"], r["charged"], *(r["scores"].get(name) for name in names)])
    rows = judged(run, each, metric)
    with (out / f"verdicts-{each}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    wrong = sum(row["kind"] == "beats" for row in rows)
    interval = binomtest(wrong, len(rows), 0.05).proportion_ci(method="exact")
    values = {seed: r["scores"][metric] for seed, r in records.items()}
    margin = study["evaluation"].get("margin") or 0.02
    summary = {
        "metric": metric, "runs": len(values), "mean": float(np.mean(list(values.values()))),
        "sd": float(np.std(list(values.values()), ddof=1)), "studies": len(rows), "seeds_per_arm": each, "false_alarms": wrong,
        "share": wrong / len(rows), "interval_95": [interval.low, interval.high],
        "p_of_so_many_or_more_at_5_percent": binomtest(wrong, len(rows), 0.05, alternative="greater").pvalue,
        "kinds": {kind: sum(row["kind"] == kind for row in rows) for kind in dict.fromkeys(r["kind"] for r in rows)},
        "reshuffled": {str(n): reshuffled(values, n, metric, margin) for n in SIZES if 2 * n <= len(values)},
    }  # fmt: skip
    (out / f"summary-{each}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
