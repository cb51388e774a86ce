"""Services that are down: trackers, the Hub, folders that take no file. A run that needs none of them completes."""

from __future__ import annotations

import time
from pathlib import Path

from harness.chaos.attempts import Attempt, play
from harness.chaos.faults import Fault
from harness.chaos.outcome import Outcome
from harness.chaos.service_faults import services_down
from harness.chaos.trial_runs import (
    BRIEF,
    brief_study,
    differences,
    last_words,
    launch,
    parts,
    run_arguments,
    uninterrupted,
)

NUMBER = 25
FAULT = "tracker or Hub down, directory read-only"
PASSES_WHEN = "the run completes; retries bounded"

# No folder of this kernel file system takes a file, whoever asks.
READ_ONLY = "/proc/isobudget"
NOBODY_LISTENS = "http://127.0.0.1:9"
# A tracker is given up after this many attempts: three rows, three times each.
ATTEMPTS = 9
HUB_WITHIN_S = 60.0


def run(seed: int, short: bool, folder: Path) -> Outcome:
    file = brief_study(folder)
    reference, out = uninterrupted(file, folder / "uninterrupted", evaluate=True), folder / "down"
    count = folder / "attempts"
    variables = {
        "MPLCONFIGDIR": READ_ONLY,
        "XDG_CONFIG_HOME": READ_ONLY,
        "HF_HOME": READ_ONLY,
        "HF_ENDPOINT": NOBODY_LISTENS,
    }
    faults = [Fault(services_down, (str(count), NOBODY_LISTENS, READ_ONLY))]
    started = launch(file, out, "--track", "jsonl", faults=faults, evaluate=True, environment=variables)
    codes = started.wait()
    if codes != [0, 0]:
        return Outcome(False, f"the ranks left with {codes}: {last_words(started.outputs())}")
    tried = {p.suffix[1:]: len(p.read_text(encoding="utf-8")) for p in folder.glob("attempts.*")}
    dropped = all(f"tracker {name} failed" in started.output(0) for name in tried)
    differ = differences(out, reference)
    report = (out / "report.html").exists()

    # What only the Hub has is refused within a minute, with a word about the network.
    needy = parts().write(folder / "needy.yaml", **{**BRIEF, "arms": [{"name": "kd", "objective": "soft_targets"}]},
                          teacher={"path": "nobody/no-such-teacher"})  # fmt: skip
    begun = time.monotonic()
    refusal = play([Attempt(run_arguments(needy, folder / "needy"), variables)], folder=folder)[0]
    took = time.monotonic() - begun
    refused = refusal.code == 3 and not refusal.crashed and took < HUB_WITHIN_S
    saw = f"run completed with its report: {report}; attempts per tracker {sorted(tried.values())}, dropped and told: {dropped}; "
    saw += f"a teacher only the Hub has: exit {refusal.code} after {took:.0f} s"
    saw += f"; {', '.join(differ)} differ" if differ else "; results bit-identical"
    bounded = len(tried) == 2 and all(0 < n <= ATTEMPTS for n in tried.values())
    return Outcome(report and dropped and bounded and refused and not differ, saw)
