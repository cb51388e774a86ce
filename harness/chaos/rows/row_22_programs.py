"""Files that would run a program when read: a checkpoint vouched for by its manifest, a teacher, a config."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from harness import checkpoint, manifest
from harness.chaos.interrupted import checkpoints_of, copy_of, stopped
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import BRIEF, brief_study, last_words, launch, parts

NUMBER = 22
FAULT = "pickle-bomb checkpoint (with a matching manifest) or teacher; a config that wants remote code"
PASSES_WHEN = (
    "0 canaries executed: weights from safetensors only, state through `weights_only=True` with an allow-list "
    "before DeepSpeed sees it"
)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.canary,)


def run(seed: int, short: bool, folder: Path) -> Outcome:
    canary, wrong, played = folder / "canary", [], 0
    for what, code, codes, said in [*bad_checkpoints(folder, canary, short), *bad_teachers(folder, canary)]:
        played += 1
        if codes != [code]:
            wrong.append(f"{what}: left with {codes} instead of {code}, said {said!r}")
        if canary.exists():
            wrong.append(f"{what}: the canary was executed")
            canary.rmdir()
    return Outcome(not wrong, "; ".join(wrong) or f"{played} files with programs in them: 0 canaries executed")


def bad_checkpoints(folder: Path, canary: Path, short: bool) -> list[tuple[str, int, list[int | None], str]]:
    """A bomb in place of each kind of state, alone and inside a real one, its manifest sealed anew."""
    file = brief_study(folder)
    out = stopped(file, folder / "run", ranks=1)
    seen = []
    for kind in ("zip",) if short else ("zip", "raw", "inside"):
        copy = copy_of(out, f"bomb-{kind}")
        for candidate in checkpoint.candidates(checkpoints_of(copy)):
            for path in candidate.glob("engine/*.pt"):
                if kind == "raw":
                    path.write_bytes(pickle.dumps(Bomb(canary)))
                elif kind == "zip":
                    torch.save({"module": Bomb(canary)}, path)
                else:
                    torch.save({**torch.load(path, weights_only=True), "more": [Bomb(canary)]}, path)
            manifest.seal(candidate, manifest.describe(candidate, manifest.files_of(candidate)))
        resumed = launch(file, copy, "--resume", ranks=1)
        seen.append((f"a checkpoint with a bomb ({kind})", 4, resumed.wait(), last_words(resumed.output(0))))
    return seen


def bad_teachers(folder: Path, canary: Path) -> list[tuple[str, int, list[int | None], str]]:
    """A teacher with pickled weights only, and one whose config names a class of its own."""
    pickled, remote = (Path(shutil.copytree(parts().teacher, folder / name)) for name in ("pickled", "remote"))
    (pickled / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Bomb(canary)}, pickled / "pytorch_model.bin")
    config = json.loads((remote / "config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForMaskedLM": "evil.EvilModel"}}
    (remote / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (remote / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    seen = []
    for what, teacher in (("a teacher with a bomb", pickled), ("a config that wants remote code", remote)):
        name = teacher.name
        file = parts().write(
            folder / f"{name}.yaml",
            **{**BRIEF, "arms": [{"name": "kd", "objective": "soft_targets"}]},
            teacher={"path": str(teacher), "trained_on": "unknown", "allow_worse": True},
        )
        refused = launch(file, folder / f"with-{name}", ranks=1)
        seen.append((what, 3, refused.wait(), last_words(refused.output(0))))
    return seen
