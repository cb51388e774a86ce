"""Malformed input: studies, ds_configs and flags, each wrong in one known place that the message must name."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from harness.chaos.attempts import Attempt, play
from harness.chaos.outcome import Outcome
from harness.chaos.trial_runs import BRIEF, last_words, parts, run_arguments

NUMBER = 18
FAULT = "malformed ds_config, study or flags: 200 fuzz cases"
PASSES_WHEN = "exit 2, the key's path named, no traceback"

CASES, CASES_SHORT = 200, 24
# Wrong for every leaf of a study: no key takes a mapping of this kind, and none a list of lists.
NEVER_RIGHT: tuple[Any, ...] = ({"no": "such"}, [[["deep"]]])
# (key, values out of its range)
OUT_OF_RANGE: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("optimizer.lr", (0, -1e-3, "fast", ".inf", ".nan", "yes")),
    ("optimizer.clip", (0, -1)),
    ("optimizer.betas", ([0.9], [0.9, 1.5], "0.9")),
    ("batch.sequences", (0, -8, 2.5, "eight")),
    ("data.block_length", (-1, "long", 0)),
    ("schedule.warmup", (-0.1, 1.0, "slow")),
    ("schedule.decay", ("cubic", 3)),
    ("student.layers", (0, -2, "two")),
    ("student.hidden", (0, "wide")),
    ("teacher.trained_on", ("maybe", 1)),
    ("teacher.dropout", (-0.1, 1.0)),
    ("seeds", ([], [-1], ["one"], "1")),
    ("checkpoints", (-1, "often", 1.5)),
    ("evaluation.curve_points", (-1, "many")),
    ("evaluation.mlm_blocks", (0, "all")),
    ("name", ("a b", "../up", "$(touch x)", "", "<script>")),
)
BUDGETS = ("3 parsecs", "many flop", "-1 flop", "flop", "0 tokens", "1e400 flop", "nan flop", "")
DS_OWNED = ("optimizer", "scheduler", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values that are neither mapping nor list."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))
    else:
        yield path


def mappings(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all mappings, the whole one included."""
    if isinstance(tree, dict):
        yield path
        for key, value in tree.items():
            yield from mappings(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from mappings(value, (*path, index))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


class Cases:
    """Draws malformed inputs; each is an attempt and the word its message must hold."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.draw = random.Random(seed)
        self.folder = folder
        self.tree = parts().tree(
            **{**BRIEF, "arms": [{"name": "a", "objective": {"name": "minilmv2", "relation_heads": 8}}]}
        )
        self.good = self._file("good.yaml", yaml.safe_dump(self.tree))
        self.made = 0
        self.kinds = (
            self.unknown_key, self.wrong_type, self.out_of_range, self.bad_budget, self.torn_study,
            self.unknown_ds_key, self.owned_ds_key, self.bad_stage, self.bad_micro_batch, self.torn_ds_config,
            self.nested_ds_key, self.bad_flag, self.bad_assignment,
        )  # fmt: skip

    def case(self) -> tuple[Attempt, str]:
        """Kinds take turns, so that every one is played whatever the count."""
        kind = self.kinds[self.made % len(self.kinds)]
        self.made += 1
        return kind()

    def _file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def _study(self, tree: Any) -> Attempt:
        text = tree if isinstance(tree, str) else yaml.safe_dump(tree)
        return self._run(self._file(f"study-{self.made}.yaml", text))

    def _run(self, study: Path, *flags: str) -> Attempt:
        return Attempt(run_arguments(study, self.folder / f"out-{self.made}", *flags))

    def _engine(self, tree: Any) -> Attempt:
        text = tree if isinstance(tree, str) else json.dumps(tree)
        return self._run(self.good, "--ds_config", str(self._file(f"engine-{self.made}.json", text)))

    def _word(self) -> str:
        return "x_" + "".join(self.draw.choices("abcdefghijklmnopqrstuvwxyz", k=6))

    # -- studies -------------------------------------------------------------------------------------
    def unknown_key(self) -> tuple[Attempt, str]:
        tree, key = copy.deepcopy(self.tree), self._word()
        at(tree, self.draw.choice(list(mappings(tree))))[key] = 1
        return self._study(tree), key

    def wrong_type(self) -> tuple[Attempt, str]:
        tree = copy.deepcopy(self.tree)
        path = self.draw.choice([p for p in leaves(tree) if at(tree, p) is not None])
        at(tree, path[:-1])[path[-1]] = copy.deepcopy(self.draw.choice(NEVER_RIGHT))
        return self._study(tree), next(str(key) for key in reversed(path) if isinstance(key, str))

    def out_of_range(self) -> tuple[Attempt, str]:
        key, values = self.draw.choice(OUT_OF_RANGE)
        tree, path = copy.deepcopy(self.tree), key.split(".")
        for part in path[:-1]:
            tree.setdefault(part, {})
        at(tree, tuple(path[:-1]))[path[-1]] = self.draw.choice(values)
        return self._study(tree), path[-1]

    def bad_budget(self) -> tuple[Attempt, str]:
        return self._study({**self.tree, "budget": self.draw.choice(BUDGETS)}), "budget"

    def torn_study(self) -> tuple[Attempt, str]:
        text = yaml.safe_dump(self.tree)
        return self._study(text[: self.draw.randrange(len(text) // 2)] + "\n  : [}"), f"study-{self.made}.yaml"

    # -- ds_configs ----------------------------------------------------------------------------------
    def unknown_ds_key(self) -> tuple[Attempt, str]:
        key = self._word()
        return self._engine({"zero_optimization": {"stage": 0}, key: 1}), key

    def owned_ds_key(self) -> tuple[Attempt, str]:
        key = self.draw.choice(DS_OWNED)
        return self._engine({key: self.draw.choice([1, 8, {"type": "AdamW"}])}), key

    def bad_stage(self) -> tuple[Attempt, str]:
        stage = self.draw.choice([4, -1, "2", True, 1.5, None])
        return self._engine({"zero_optimization": {"stage": stage}}), "zero_optimization.stage"

    def bad_micro_batch(self) -> tuple[Attempt, str]:
        value = self.draw.choice([0, -1, "all", 3.5, True, [1]])
        return self._engine({"train_micro_batch_size_per_gpu": value}), "train_micro_batch_size_per_gpu"

    def torn_ds_config(self) -> tuple[Attempt, str]:
        text = json.dumps({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}})
        return self._engine(text[: self.draw.randrange(1, len(text) - 1)]), f"engine-{self.made}.json"

    def nested_ds_key(self) -> tuple[Attempt, str]:
        key = self._word()
        return self._engine({"zero_optimization": {"stage": 1, key: 1}}), key

    # -- flags ---------------------------------------------------------------------------------------
    def bad_flag(self) -> tuple[Attempt, str]:
        word = self._word()
        flags, named = self.draw.choice(
            [
                ([f"--{word}"], word), (["--seeds", word], word), (["--arms", word], word),
                (["--budget", f"3 {word}"], word), (["--hang-timeout", word], "--hang-timeout"),
                (["--ds_config", word], word), (["--resume"], "--resume"), (["--allow", word], word),
                (["--set", word], word),
            ]
        )  # fmt: skip
        return self._run(self.good, *flags), named

    def bad_assignment(self) -> tuple[Attempt, str]:
        key, values = self.draw.choice(OUT_OF_RANGE[:-1])
        return self._run(self.good, "--set", f"{key}={json.dumps(self.draw.choice(values))}"), key.split(".")[-1]


def run(seed: int, short: bool, folder: Path) -> Outcome:
    cases = Cases(seed, folder)
    drawn = [cases.case() for _ in range(CASES_SHORT if short else CASES)]
    wrong = []
    for row, (_, word) in zip(play([row for row, _ in drawn], folder=folder), drawn, strict=True):
        if row.code != 2 or row.crashed or word not in row.said:
            wrong.append(f"exit {row.code} without {word!r}: {last_words(row.said)} ({' '.join(row.arguments[3:])})")
    saw = f"{len(drawn) - len(wrong)}/{len(drawn)} of {len(cases.kinds)} kinds refused with exit 2 and the key named"
    return Outcome(not wrong, "; ".join([saw, *wrong[:4]]))
