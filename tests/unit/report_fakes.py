"""Study directories as a run writes them, with the sizes of a real CPU study, made up deterministically."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

BUDGET = 10_000_000_000_000
VOCABULARY_LOSS = 8.32


@dataclass(frozen=True)
class FakeArm:
    """Truth of one arm: final scores, the price of a step and the device seconds of a run."""

    name: str
    objective: Any
    loss: float
    accuracy: float
    own: float | None
    student: int
    teacher: int
    extra: int
    seconds: float
    start: float
    differs: dict[str, Any]


ARMS = (
    FakeArm("no_kd", "mlm", 4.22, 0.32, 4.21, 6_233_000_000, 0, 0, 109.0, 8.3, {}),
    FakeArm("soft_targets", {"name": "soft_targets", "temperature": 2.0}, 4.97, 0.21, 5.03, 6_233_000_000, 13_900_000_000, 233_000_000, 54.0, 21.0, {}),
    FakeArm("minilmv2", "minilmv2", 4.335, 0.29, None, 5_100_000_000, 12_100_000_000, 1_440_000_000, 54.0, 5.2, {"optimizer.lr": 2e-3}),
    FakeArm("tinybert", "tinybert", 4.07, 0.335, None, 5_100_000_000, 12_100_000_000, 1_440_000_000, 57.0, 41.0, {}),
)  # fmt: skip


def write_study(
    directory: Path,
    *,
    seeds: int = 3,
    arms: tuple[FakeArm, ...] = ARMS,
    noise: float = 0.03,
    unit: str = "flop",
    references: bool = True,
    question: str = "At the same cost, which student is better: pretrained from scratch, or distilled?",
    evaluation: dict[str, Any] | None = None,
) -> Path:
    """Write a finished study of `arms` × `seeds` and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tasks = ["package", "order", "summary"]
    study = {
        "name": "quickstart",
        "question": question,
        "budget": "10 TFLOP" if unit == "flop" else "100 gpu-seconds",
        "accounting": {"charged": ["OBJECTIVE", "STUDENT_STEP", "TEACHER_FORWARD"]},
        "data": {"sources": [{"path": "python-docs"}], "block_length": 64, "tokenizer": "builtin"},
        "student": {"family": "roberta-prelayernorm", "layers": 2, "hidden": 128, "heads": 4},
        "teacher": {"path": "builtin", "trained_on": "same"},
        "batch": {"sequences": 32},
        "optimizer": {"lr": 3e-3},
        "arms": [{"name": a.name, "objective": a.objective, "differs": a.differs} for a in arms],
        "seeds": list(range(1, seeds + 1)),
        "baseline": None,
        "evaluation": {"main": "readout.loss", "probes": {"tasks": tasks, "test_examples": 800}, **(evaluation or {})},
    }
    (directory / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    _json(directory / "environment.json", ENVIRONMENT)
    _json(directory / "status.json", {"state": "done", "exit_code": 0, "message": ""})
    if references:
        _json(directory / "references.json", REFERENCES)
    for arm in arms:
        for seed in study["seeds"]:
            write_run(directory, arm, seed, noise=noise, unit=unit)
    return directory


def write_run(directory: Path, arm: FakeArm, seed: int, *, noise: float = 0.03, unit: str = "flop") -> Path:
    """Write one finished run: record, metrics and ledger. Seeds share part of their noise across arms."""
    shared = np.random.default_rng(seed)
    own = np.random.default_rng([seed, sum(arm.name.encode())])
    offset = 0.7 * noise * shared.normal() + 0.7 * noise * own.normal()
    price = arm.student + arm.teacher + arm.extra
    steps = BUDGET // price
    limit, step_price = (BUDGET, price) if unit == "flop" else (100.0, 100.0 / steps * 0.999)
    charged = steps * step_price
    seconds = arm.seconds * (1 + 0.02 * own.normal()) if unit == "flop" else charged
    share = {
        "STUDENT_STEP": arm.student / price,
        "TEACHER_FORWARD": arm.teacher / price,
        "OBJECTIVE": arm.extra / price,
    }
    weights = {"STUDENT_STEP": arm.student, "TEACHER_FORWARD": arm.teacher, "OBJECTIVE": arm.extra}
    accounts: dict[str, Any] = {
        name: {"flop": weights[name] * steps, "gpu-second": seconds * share[name]} for name in weights if weights[name]
    }
    accounts["EVALUATION"] = {"flop": 900_000_000_000, "gpu-second": 9.0}
    accounts["STARTUP"] = {"gpu-second": 2.5}
    scores = {
        "readout.loss": arm.loss + offset,
        "readout.accuracy": arm.accuracy - 0.1 * offset,
        "mlm.loss": VOCABULARY_LOSS + own.normal() * 0.01 if arm.own is None else arm.own + offset,
        "mlm.accuracy": 0.004 if arm.own is None else arm.accuracy - 0.1 * offset,
        "probe.package": 0.72 - 0.09 * (arm.loss - 4) + 0.012 * own.normal(),
        "probe.order": 0.51 + 0.012 * own.normal(),
        "probe.summary": 0.81 - 0.06 * (arm.loss - 4) + 0.012 * own.normal(),
    }
    record = {
        "name": arm.name,
        "seed": seed,
        "state": "done",
        "objective": arm.objective if isinstance(arm.objective, dict) else {"name": arm.objective},
        "differs": arm.differs,
        "steps": steps,
        "tokens": steps * 2048,
        "unique_tokens": min(steps * 2048, 2_900_000),
        "epochs": steps * 2048 / 2_900_000,
        "charged": charged,
        "unspent": limit - charged,
        "step_price": step_price,
        "seconds": seconds,
        "wall_seconds": seconds + 14.0,
        "accounts": accounts,
        "scores": scores,
        "warnings": [],
        "head_trained": arm.own is not None,
        "parameters": 942_000,
        "untrained_parameters": [] if arm.own is not None else ["lm_head.dense.weight"],
    }
    folder = directory / "arms" / arm.name / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "record.json", record)
    rows: list[dict[str, Any]] = []
    ledger: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        fraction = step / steps
        fall = _fall(fraction)
        loss = arm.start * (0.28 + 0.72 * (1 - fall)) * (1 + 0.03 * own.normal())
        row = {
            "step": step,
            "fraction": fraction,
            "spent": step * step_price,
            "loss": loss,
            "terms": {"total": loss},
            "lr": 3e-3 * min(fraction / 0.06, (1 - fraction) / 0.94),
            "tokens": step * 2048,
            "seconds": seconds * fraction,
        }
        rows.append(row)
        if step in {round(steps * k / 8) for k in range(1, 9)}:
            evaluated = {"fraction": fraction, "spent": step * step_price}
            evaluated["readout_loss"] = 5.99 + (scores["readout.loss"] - 5.99) * fall + 0.01 * own.normal()
            evaluated["readout_accuracy"] = 0.09 + (scores["readout.accuracy"] - 0.09) * fall
            if arm.own is not None:
                evaluated["mlm_loss"] = VOCABULARY_LOSS + (scores["mlm.loss"] - VOCABULARY_LOSS) * fall
            rows.append(evaluated)
        ledger.append({"step": step, "charges": [], "spent": step * step_price})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger[-3:]))
    return folder


def edit_record(folder: Path, **changes: Any) -> None:
    """Change fields of a run's record."""
    path = folder / "record.json"
    _json(path, {**json.loads(path.read_text()), **changes})


def _fall(fraction: float) -> float:
    """Share of the whole fall reached at this fraction of the budget: fast, then slow, ending at 1."""
    return (1 - math.exp(-5 * fraction)) / (1 - math.exp(-5))


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


ENVIRONMENT: dict[str, Any] = {
    "command": "python launch.py run --study quickstart --seeds 1,2,3",
    "git": {"commit": "1f0c9a7d2b", "dirty": False},
    "versions": {"python": "3.11.9", "torch": "2.13.0+cpu", "deepspeed": "0.19.8", "transformers": "5.23.0"},
    "hardware": {"device": "cpu", "name": "Intel Xeon (2 cores)", "memory_bytes": 16_000_000_000},
    "world_size": 1,
    "precision": "bf16",
    "fingerprints": {"data": "sha256:0b1d6e2f", "tokenizer": "sha256:91aa03cc", "teacher": "sha256:5f7e2b10"},
    "ds_config": {"zero_optimization": {"stage": 0}, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 32},
}

# What is measured of an exported student, as a record holds it.
MODEL: dict[str, Any] = {
    "parameters": 600_000, "parameters_without_embeddings": 100_000, "bytes": 2_400_000,
    "latency": {
        "device": "A CPU", "threads": 2, "length": 128, "precision": "fp32", "warm_up_runs": 2,
        "batch_1": {"p20_ms": 5.474, "p50_ms": 5.697, "p80_ms": 6.288, "runs": 20},
        "batch_32": {"p20_ms": 66.179, "p50_ms": 70.6, "p80_ms": 177.3, "runs": 7},
    },
}  # fmt: skip

REFERENCES: dict[str, Any] = {
    "teacher": {
        "scores": {
            "mlm.loss": 3.57, "mlm.accuracy": 0.387, "readout.loss": 3.61, "readout.accuracy": 0.381,
            "probe.package": 0.79, "probe.order": 0.52, "probe.summary": 0.86,
        }
    },
    "untrained": {
        "scores": {
            "readout.loss": 5.99, "readout.accuracy": 0.09,
            "probe.package": 0.48, "probe.order": 0.50, "probe.summary": 0.60,
        }
    },
    "bag_of_words": {"scores": {"probe.package": 0.70, "probe.order": 0.50, "probe.summary": 0.74}},
    "teacher_training": {"flop": 210_000_000_000_000, "tokens": 5_120_000, "note": "2,500 steps on the train split"},
}  # fmt: skip
