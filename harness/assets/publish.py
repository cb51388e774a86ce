"""Makes a shipped teacher out of the finished run of its study: `python -m harness.assets.publish RUN_DIR`.

Weights are stored in fp16 to keep the package small; they are loaded into fp32 or bf16. Provenance goes with
them: what the training cost, on which corpus, and what the teacher scores.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

FOLDERS = {"quickstart_teacher": "teacher", "quickstart_causal_teacher": "causal_teacher"}


def publish(run: Path, target: Path | None = None) -> None:
    """Copy the run's student to `target` (its study's own folder) in fp16 and write its provenance to isobudget.json."""
    study = yaml.safe_load((run / "study.yaml").read_text(encoding="utf-8"))["name"]
    target = target or Path(__file__).parent / FOLDERS[study]
    trial = run / "arms" / "teacher" / "seed-1"
    record = json.loads((trial / "record.json").read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(trial / "student", target)
    weights = load_file(target / "model.safetensors")
    save_file(
        {k: v.to(torch.float16) for k, v in weights.items()}, target / "model.safetensors", metadata={"format": "pt"}
    )
    provenance = {
        "made_by": f"python launch.py run --study {study}",
        "training_flop": record["accounts"]["STUDENT_STEP"]["flop"],
        "steps": record["steps"],
        "tokens": record["tokens"],
        "unique_tokens": record["unique_tokens"],
        "device_seconds": record["seconds"],
        "scores": record["scores"],
        "corpus": environment["data"]["fingerprint"],
        "tokenizer": environment["tokenizer_fingerprint"],
        "hardware": environment["hardware"]["cpu"],
        "versions": environment["versions"],
    }
    (target / "isobudget.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    publish(Path(sys.argv[1]))
