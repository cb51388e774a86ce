"""Damaged token files: cut, altered, or holding an id that no vocabulary has."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from harness.chaos.attempts import Attempt, play
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import brief_study, last_words, run_arguments

NUMBER = 15
FAULT = "corrupt or short data shard; token id ≥ vocabulary"
PASSES_WHEN = "shard and offset named; exit 3"

CASES, CASES_SHORT = 60, 6
KINDS = ("short", "altered", "token id")


def damage(shard: Path, kind: str, draw: random.Random) -> None:
    """Break one file; ids are 16 bits wide, and no tokenizer here has 65,535 entries."""
    data = bytearray(shard.read_bytes())
    if kind == "short":
        data = data[: draw.randrange(len(data))]
    elif kind == "altered":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    else:
        place = draw.randrange(len(data) // 2) * 2
        data[place : place + 2] = b"\xff\xff"
    shard.write_bytes(data)


def run(seed: int, short: bool, folder: Path) -> Outcome:
    draw = random.Random(seed)
    file = brief_study(folder)
    # The first attempt builds a cache of its own (and is refused before it trains); the others get broken copies.
    clean = folder / "cache"
    built = Attempt(run_arguments(file, folder / "first"), {"ISOBUDGET_CACHE": str(clean)})
    play([built], folder=folder)
    shards = sorted(p.relative_to(clean) for p in clean.rglob("*.bin"))
    if not shards:
        return Outcome(False, f"no token file was built: {last_words(built.said)}")
    rows: list[Attempt] = []
    names: list[str] = []
    for number in range(CASES_SHORT if short else CASES):
        broken, shard = folder / f"cache-{number}", draw.choice(shards)
        shutil.copytree(clean, broken)
        damage(broken / shard, KINDS[number % len(KINDS)], draw)
        names.append(shard.name)
        rows.append(Attempt(run_arguments(file, folder / f"run-{number}"), {"ISOBUDGET_CACHE": str(broken)}))
    wrong = []
    for number, (row, name) in enumerate(zip(play(rows, folder=folder), names, strict=True)):
        if row.code != 3 or row.crashed or f"{name} at offset" not in row.said:
            wrong.append(f"{KINDS[number % len(KINDS)]}: exit {row.code}, {last_words(row.said)}")
    saw = f"{len(rows) - len(wrong)}/{len(rows)} damaged token files named with the offset, exit 3"
    return Outcome(not wrong, "; ".join([saw, *wrong[:3]]))
