"""Going on with something that is not what it was: refused by name, or allowed in so many words and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.chaos.faults import Fault
from harness.chaos.interrupted import copy_of, stopped
from harness.chaos.outcome import Outcome
from harness.chaos.save_faults import other_code, other_hardware
from harness.chaos.tiny import write_corpus
from harness.chaos.trial_runs import brief_study, launch, record
from harness.report import build_report

NUMBER = 20
FAULT = "resume with changed study, data, code, hardware or world size"
PASSES_WHEN = "refused with the difference; an explicit override is recorded in the report"

STEP = 6


def untold(out: Path, overrides: list[dict[str, Any]]) -> list[str]:
    """The overrides of this directory that its report keeps from the reader, of JSON or of Markdown."""
    report = build_report(out)
    listed = [override["key"] for run in report["arms"] for override in run.get("overrides", [])]
    table = (out / "report.md").read_text(encoding="utf-8").partition("Overrides")[2].partition("\n#")[0]
    return [key for override in overrides if (key := override["key"]) not in listed or key not in table]


def run(seed: int, short: bool, folder: Path) -> Outcome:
    corpus = write_corpus(folder / "corpus")
    changes = {"data": {"sources": [{"path": str(corpus)}], "block_length": 32}}
    file = brief_study(folder, **changes)
    out = stopped(file, folder / "run", ranks=1, step=STEP)
    faults = {
        "code": [Fault(other_code, ("0123456789abcdef",))],
        "hardware": [Fault(other_hardware, ("a machine of another make",))],
    }
    wrong, played = [], 0
    # (kind, extra flags, ranks, faults, exit code when refused, words of the refusal)
    cases = [
        ("code", (), 1, faults["code"], 4, ("code: source", "0123456789abcdef")),
        ("world_size", (), 2, (), 4, ("world_size: ranks was 1, is 2",)),
        ("hardware", (), 1, faults["hardware"], 4, ("hardware: devices", "another make")),
        ("study", ("--set", "optimizer.lr=0.002"), 1, (), 2, ("optimizer.lr", "0.001", "0.002")),
        ("data", (), 1, (), 4, ("data: corpus",)),
    ]
    for kind, flags, ranks, put, code, words in cases[: 2 if short else None]:
        played += 1
        if kind == "data":
            write_corpus(corpus, documents=410, seed=3)
        refused = launch(file, copy_of(out, f"{kind}-refused"), "--resume", *flags, faults=put, ranks=ranks)
        codes, said = refused.wait(), refused.output(0)
        if codes != [code] * ranks or not all(word in said for word in words):
            wrong.append(f"{kind}: not refused by name: {codes}, {said[-300:]!r}")
        copy = copy_of(out, f"{kind}-allowed")
        allowed = launch(file, copy, "--resume", "--allow", kind, *flags, faults=put, ranks=ranks)
        codes = allowed.wait()
        kinds = {override["kind"] for override in record(copy)["overrides"]} if not any(codes) else set()
        kept = json.loads((copy / "identity.json").read_text(encoding="utf-8"))["overrides"]
        if any(codes) or kinds != {kind} or {override["kind"] for override in kept} != {kind}:
            wrong.append(f"{kind}: allowed, but {codes}, recorded {sorted(kinds)}: {allowed.output(0)[-300:]!r}")
        elif (played == 1 or not short) and (hidden := untold(copy, kept)):
            wrong.append(f"{kind}: allowed and recorded, but the report does not name {hidden}")
    saw = f"{played} kinds of change: refused with the difference, recorded when allowed, and told by the report"
    return Outcome(not wrong, "; ".join(wrong) or saw)
