"""One rank slow in its save while another dies: nothing is published before all ranks are done."""

from __future__ import annotations

import time
from pathlib import Path

from harness import checkpoint, manifest
from harness.chaos import workers
from harness.chaos.outcome import Outcome
from harness.chaos.save_faults import saves

NUMBER = 3
FAULT = "one rank slow in its save, another killed"
PASSES_WHEN = "the pointer never names an incomplete checkpoint"

STEPS = [1, 2]
SLOW_S = 1.5


def run(seed: int, short: bool, folder: Path) -> Outcome:
    wrong, looks = [], 0
    victims = [1] if short else [0, 1] * 5
    for number, victim in enumerate(victims):
        root = folder / f"root-{number}"
        ranks = workers.start(saves, str(root), STEPS, "shard", victim, SLOW_S, folder=folder / "logs")
        end = time.monotonic() + workers.PATIENCE_S
        while any(p.is_alive() for p in ranks.processes) and time.monotonic() < end:
            for candidate in checkpoint.candidates(root):
                looks += 1
                # One being removed right now may leave between the look and the reading; none is removed here.
                if why := manifest.fault(candidate):
                    wrong.append(f"{candidate.name} was visible and incomplete: {why}")
            time.sleep(0.05)
        codes = ranks.wait()
        found = checkpoint.newest(root)
        if found is None or found[1]["step"] != 1 or codes[victim] != -9 or codes[1 - victim] in (0, None):
            wrong.append(f"rank {victim} killed: found {found and found[1]}, codes {codes}")
    saw = f"{len(victims)} kills beside a rank slow by {SLOW_S} s; {looks} looks, each at complete checkpoints only"
    return Outcome(not wrong and looks > 0, "; ".join(dict.fromkeys(wrong)) or saw)
