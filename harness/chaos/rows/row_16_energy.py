"""Energy counters that are absent, die, start again or stand still, as a fake NVML library gives them to real runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.chaos.faults import Fault, slow_steps
from harness.chaos.outcome import CannotRun, Outcome
from harness.chaos.service_faults import fake_nvml
from harness.chaos.trial_runs import brief_study, last_words, launch, record

NUMBER = 16
FAULT = "NVML absent; dies mid-run; counter resets or stalls (fake library)"
PASSES_WHEN = (
    "the run completes; energy marked partial with its coverage; never negative, never 0 for unknown; "
    "an energy budget stops safely"
)

SOURCE = Path(__file__).parents[3] / "tests" / "fake_nvml" / "fake_nvml.c"
UUID = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
POWER_W = 200
# Each step is drawn out to this: 18 of them outlast the two seconds after which a still counter counts as stalled.
STEP_S = 0.25
BUDGET_J = 400.0  # eight such steps
# What happens at a moment of training happens at this step; the fake's time is then this.
STEP, MISHAP_S = 3, 10_000.0
HEALTHY, PARTIAL, UNKNOWN, REFUSED = "healthy", "partial", "unknown", "refused"


@dataclass(frozen=True)
class Case:
    """What the driver does, whether the budget is in joules, and what must come of it."""

    name: str
    driver: str | None
    expected: str
    budgeted: bool = False


CASES = (
    Case("dies", f"lost_at {MISHAP_S}", PARTIAL),
    Case("dies under an energy budget", f"lost_at {MISHAP_S}", PARTIAL, budgeted=True),
    Case("no library", None, UNKNOWN),
    Case("no driver", "init 9", UNKNOWN),
    Case("starts again", f"reset_at {MISHAP_S}", PARTIAL),
    Case("stalls", "stall 0.5 1e9", PARTIAL),
    Case("never moves", "stall 0 1e9", UNKNOWN),
    Case("healthy under an energy budget", "", HEALTHY, budgeted=True),
    Case("no driver under an energy budget", "init 9", REFUSED, budgeted=True),
)


def library(folder: Path) -> Path:
    """The compiled fake.

    Raises:
        CannotRun: no source or no compiler here.
    """
    if not SOURCE.is_file():
        raise CannotRun("the fake NVML library is in the source tree, and this is an installed wheel")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotRun("no C compiler to build the fake NVML library with")
    made = folder / "libnvidia-ml.so.1"
    # Its soname is the real one's: whoever asks the loader for NVML later gets what is loaded already.
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(made)], check=True, capture_output=True)
    return made


def wrong_in(case: Case, out: Path, codes: list[int | None], said: str) -> str:
    """What is not as promised; "" when all is."""
    if case.expected == REFUSED:
        spent = list(out.rglob("ledger.jsonl"))
        return "" if codes == [2, 2] and not spent else f"left with {codes}, not refused"
    if codes != [0, 0]:
        return f"left with {codes}: {last_words(said)}"
    energy, row = record(out)["energy"], record(out)
    joules, coverage = energy["joule"], energy["coverage"]
    lines = (out / "arms" / "no_kd" / "seed-1" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    posted = [c[1] for line in map(json.loads, lines) for c in line["charges"] if c[2] == "joule"]
    if any(amount <= 0 for amount in posted):
        return f"posted {min(posted)} J"
    if case.budgeted and not 0 < row["charged"] <= BUDGET_J + row["step_price"]:
        return f"charged {row['charged']} of {BUDGET_J} J"
    if case.expected == UNKNOWN:
        return "" if joules is None and not coverage else f"{joules} J of nothing, coverage {coverage}"
    if joules is None or joules <= 0 or coverage is None:
        return f"{joules} J, coverage {coverage}"
    whole = coverage == 1.0
    return "" if whole == (case.expected == HEALTHY) else f"{case.expected}, but coverage {coverage:.2f}"


def run(seed: int, short: bool, folder: Path) -> Outcome:
    fake = library(folder)
    flops = brief_study(folder)
    place = folder / "joules"
    place.mkdir()
    joules = brief_study(place, budget=f"{BUDGET_J:g} joule")
    wrong, coverages = [], []
    cases = CASES[:2] if short else CASES
    for number, case in enumerate(cases):
        scenario = folder / f"scenario-{number}.txt"
        head = case.driver if case.driver and case.driver.startswith("init") else ""
        own = "" if head else case.driver or ""
        device = f"device {UUID}\npower_w {POWER_W}\nupdate_s 0.02\n"
        scenario.write_text(f"{head}\n{'' if head else device}{own}\n", encoding="utf-8")
        mishap_s = MISHAP_S if str(MISHAP_S) in own else 0.0
        given = (str(fake) if case.driver is not None else "", str(scenario), UUID, STEP, mishap_s)
        faults = [Fault(fake_nvml, given), Fault(slow_steps, (0, STEP_S)), Fault(slow_steps, (1, STEP_S))]
        out = folder / f"run-{number}"
        started = launch(joules if case.budgeted else flops, out, faults=faults)
        what = wrong_in(case, out, started.wait(), started.outputs())
        if what:
            wrong.append(f"{case.name}: {what}")
        elif case.expected == PARTIAL:
            coverages.append(record(out)["energy"]["coverage"])
    saw = f"{len(cases) - len(wrong)}/{len(cases)} as promised"
    saw += f"; partial energy with coverage {min(coverages):.2f} to {max(coverages):.2f}" if coverages else ""
    return Outcome(not wrong, "; ".join([saw, *wrong]))
