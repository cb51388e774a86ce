"""An arm with its runs: which it is, what trained it, and the means of what its runs recorded."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.report.source import Json, Run, Source, arms_of, mapping, number

# Colours besides the neutral one; with more contenders than that, colours repeat.
COLOURS = 7
# Objectives that need no teacher.
FROM_SCRATCH = ("mlm", "clm")


@dataclass(frozen=True)
class Mean:
    """A score over an arm's seeds: mean, standard deviation, and the t interval of the mean."""

    values: dict[int, float]
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Arm:
    """One arm with its runs; means are over finished runs."""

    name: str
    index: int
    baseline: bool
    objective: str
    differs: Json
    runs: list[Run]

    @cached_property
    def done(self) -> list[Run]:
        return [run for run in self.runs if run.done]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.done]

    @property
    def head_trained(self) -> bool:
        """False when a run says that its MLM head got no gradient."""
        return all(run.record.get("head_trained", True) is not False for run in self.runs)

    @property
    def from_scratch(self) -> bool:
        """True when the text alone taught it."""
        return self.objective.split(" (")[0] in FROM_SCRATCH

    def mean(self, key: str) -> float | None:
        """The mean of a record's field over the finished runs that have it."""
        return _mean(number(run.record.get(key)) for run in self.done)

    def account(self, account: str, unit: str) -> float | None:
        """The mean of one account in one unit; None where no finished run reports it."""
        return _mean(number(mapping(mapping(run.record.get("accounts")).get(account)).get(unit)) for run in self.done)


def list_arms(source: Source) -> list[Arm]:
    """The arms of the study in its order, then those that only have runs; exactly one is the baseline."""
    listed = {str(arm["name"]): arm for arm in arms_of(source.study)}
    names = list(dict.fromkeys([*listed, *(run.arm for run in source.runs)]))
    objectives = {name: _objective(name, listed, source.runs) for name in names}
    declared = source.study.get("baseline")
    pretrained = next((name for name in names if objectives[name].split(" (")[0] in FROM_SCRATCH), None)
    baseline = declared if declared in names else pretrained or (names[0] if names else None)
    contenders = [name for name in names if name != baseline]
    return [
        Arm(
            name=name,
            # The baseline is drawn in the neutral colour 0; others keep theirs when arms are appended.
            index=0 if name == baseline else 1 + contenders.index(name) % COLOURS,
            baseline=name == baseline,
            objective=objectives[name],
            differs=mapping(listed.get(name, {}).get("differs")),
            runs=[run for run in source.runs if run.arm == name],
        )
        for name in names
    ]


def _objective(name: str, listed: dict[str, Json], runs: list[Run]) -> str:
    """The objective in words: as the study writes it, else as a record resolved it."""
    records = [run.record.get("objective") for run in runs if run.arm == name]
    found = [listed.get(name, {}).get("objective"), *records]
    return next((words for value in found if (words := objective_words(value))), "mlm" if name in listed else "unknown")


def objective_words(spec: Any) -> str:
    """ "mlm", "soft_targets (temperature 2.0)", "mlm + 2 × minilm", "mlm until 70 %, then minilmv2"."""
    if not isinstance(spec, dict):
        return str(spec or "")
    phases, terms = spec.get("phases"), spec.get("terms")
    if isinstance(phases, list):
        parts = [
            (objective_words({k: v for k, v in mapping(p).items() if k != "until"}), number(mapping(p).get("until")))
            for p in phases
        ]
        ends = [f"{words} until {until:.0%}" if until and until < 1 else words for words, until in parts]
        return ", then ".join(end.replace("%", "\u202f%") for end in ends)
    if isinstance(terms, list):
        return " + ".join(words for term in terms if (words := objective_words(term)))
    weight = number(spec.get("weight"))
    options = ", ".join(f"{k} {v}" for k, v in spec.items() if k not in ("name", "weight"))
    words = str(spec.get("name") or "")
    words = f"{words} ({options})" if words and options else words or options
    return words if weight in (None, 1.0) else f"{weight:g} × {words}"


def by_arm(arms: list[Arm], score: Callable[[Run], float | None]) -> dict[str, dict[int, float]]:
    """{arm: {seed: score}} over finished runs that have this score."""
    return {arm.name: {run.seed: v for run in arm.done if (v := score(run)) is not None} for arm in arms}


def _mean(values: Iterable[float | None]) -> float | None:
    seen = [v for v in values if v is not None]
    return statistics.fmean(seen) if seen else None


def device_seconds(arm: Arm, seeds: Iterable[int]) -> float | None:
    """Mean device seconds of an arm's charged spans over these seeds."""
    wanted = set(seeds)
    return _mean(number(run.record.get("seconds")) for run in arm.done if run.seed in wanted)
