"""kill -9 at random: one study, killed again and again at a random place of a random step, on a random rank."""

from __future__ import annotations

import random
from pathlib import Path

from harness.chaos.faults import PLACES, Fault, signal_at
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, differences, launch, saved_steps, uninterrupted

NUMBER = 1
FAULT = "kill -9 of a random rank at a random step, 30×"
PASSES_WHEN = "30/30 resume; ledger and weights bit-identical to the uninterrupted run"

KILLS, KILLS_SHORT = 30, 2
# Steps past the newest checkpoint at which the next kill comes; a checkpoint is made about every other step.
FURTHER = 4


def run(seed: int, short: bool, folder: Path) -> Outcome:
    draw = random.Random(seed)
    wanted = KILLS_SHORT if short else KILLS
    file = brief_study(folder, **({} if short else {"budget": "3 Gflop", "checkpoints": 18}))
    reference = uninterrupted(file, folder / "uninterrupted")
    lives: list[Path] = []
    kills, places = 0, set[str]()
    while kills < wanted:
        out = folder / f"life-{len(lives) + 1}"
        lives.append(out)
        while kills < wanted:
            rank, place = draw.randrange(2), draw.choice(PLACES[:3])
            step = max(saved_steps(out), default=0) + draw.randint(0, FURTHER)
            again = ["--resume"] if out.exists() else []
            run = launch(file, out, *again, faults=[Fault(signal_at, (rank, step, place, "SIGKILL"))])
            codes = run.wait()
            if codes == [0, 0]:
                break  # it was done before the step came: the next life begins
            if codes[rank] != -9 or codes[1 - rank] in (0, None):
                return Outcome(False, f"kill {kills + 1} on rank {rank} at step {step}: the ranks left with {codes}")
            kills += 1
            places.add(place)
    # A kill in a step of a resumed run shows that it resumed; the last one is shown here.
    codes = launch(file, lives[-1], "--resume").wait()
    differ = [f"{out.name}: {', '.join(what)}" for out in lives if (what := differences(out, reference))]
    saw = f"{kills} kills at {len(places)} kinds of places in {len(lives)} runs of one study, each resumed"
    saw += f"; {'; '.join(differ)} differ" if differ else "; ledger and weights bit-identical"
    return Outcome(not differ and codes == [0, 0] and kills == wanted, saw)
