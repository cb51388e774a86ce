"""A teacher that cannot be used: found before the first step, with nothing charged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from harness.chaos.attempts import Attempt, play
from harness.chaos.outcome import Outcome
from harness.chaos.tiny import write_teacher
from harness.chaos.trial_runs import BRIEF, last_words, parts, run_arguments

NUMBER = 14
FAULT = "teacher missing, hash mismatch, missing weights, other tokenizer or vocabulary"
PASSES_WHEN = "exit 3 before step 1; nothing charged"


def spoilt(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """What is wrong → (the study's teacher block, a word that must be said of it)."""
    from safetensors.torch import load_file, save_file

    good = parts().teacher

    def copy(name: str) -> Path:
        return Path(shutil.copytree(good, folder / name))

    incomplete = copy("incomplete") / "model.safetensors"
    weights = load_file(incomplete)
    lost = next(name for name in weights if name.endswith("attention.self.key.weight"))
    save_file({k: v for k, v in weights.items() if k != lost}, incomplete, metadata={"format": "pt"})
    (copy("weightless") / "model.safetensors").unlink()
    truncated = copy("truncated") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    tokenizer = copy("other-tokenizer") / "tokenizer.json"
    tree = json.loads(tokenizer.read_text(encoding="utf-8"))
    words = tree["model"]["vocab"]
    names = [name for name in words if name.isalpha()][:2]
    words[names[0]], words[names[1]] = words[names[1]], words[names[0]]
    tokenizer.write_text(json.dumps(tree), encoding="utf-8")
    config = copy("small-vocabulary") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 1000}), encoding="utf-8")
    wide = write_teacher(folder / "large-vocabulary", extra_vocab=7)
    return {
        "missing": ({"path": str(folder / "nowhere")}, "no such folder"),
        "other weights": ({"path": str(good), "weights": "0" * 16}, "teacher.weights"),
        "incomplete": ({"path": str(incomplete.parent)}, lost.removeprefix("student.")),
        "weightless": ({"path": str(folder / "weightless")}, "safetensors"),
        "truncated": ({"path": str(truncated.parent)}, "safetensors"),
        "other tokenizer": ({"path": str(tokenizer.parent)}, "tokenizer"),
        "small vocabulary": ({"path": str(config.parent)}, "1000"),
        "large vocabulary": ({"path": str(wide)}, "logits cannot be compared"),
    }


def run(seed: int, short: bool, folder: Path) -> Outcome:
    cases = spoilt(folder)
    rows, outs = [], []
    for name, (block, _) in cases.items():
        out = folder / f"run-{name.replace(' ', '-')}"
        changes = {**BRIEF, "arms": [{"name": "taught", "objective": "soft_targets"}]}
        file = parts().write(folder / f"{out.name}.yaml", **changes, teacher={**block, "allow_worse": True})
        rows.append(Attempt(run_arguments(file, out)))
        outs.append(out)
    wrong = []
    for (name, (_, word)), row, out in zip(cases.items(), play(rows, folder=folder), outs, strict=True):
        charged = [p for p in out.rglob("ledger.jsonl") if p.read_text(encoding="utf-8").strip()]
        if row.code != 3 or row.crashed or word not in row.said or charged:
            wrong.append(f"{name}: exit {row.code}, {last_words(row.said)}")
    saw = f"{len(cases) - len(wrong)}/{len(cases)} refused with exit 3, nothing charged"
    return Outcome(not wrong, "; ".join([saw, *wrong]))
