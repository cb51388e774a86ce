"""What a study's runs say, before anything is drawn: arms, scores, comparisons, the verdict, and what to beware of."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from scipy import stats

from harness.budget import Budget
from harness.compare import Comparison, Scores, against_baseline, all_pairs, higher_is_better, mean_interval
from harness.errors import ConfigError
from harness.report import numbers
from harness.report.source import Json, Run, Source, arms_of, mapping, number
from harness.report.verdict import Verdict, headline, judge, margin_of
from harness.units import Unit

MAIN = "readout.loss"
PROBE_MEAN = "probe.mean"
REFERENCES = ("teacher", "untrained", "bag_of_words")
# Colours besides the neutral one; with more contenders than that, colours repeat.
COLOURS = 7
# One-sided level at which a teacher must beat the untrained student before a probe is believed.
INFORMATIVE = 0.01
# Facts that travel among the scores: which layer a readout was made from is neither good nor bad.
FACTS = (".layer",)
_ORDER = ("readout.", "mlm.", PROBE_MEAN, "probe.", "glue.")


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

    def mean(self, key: str) -> float | None:
        """The mean of a record's field over the finished runs that have it."""
        return _mean(number(run.record.get(key)) for run in self.done)

    def account(self, account: str, unit: str) -> float | None:
        """The mean of one account in one unit; None where no finished run reports it."""
        return _mean(number(mapping(mapping(run.record.get("accounts")).get(account)).get(unit)) for run in self.done)


@dataclass(frozen=True)
class Probe:
    """Whether a probe can tell a teacher from an untrained student; `informative` is None when unchecked."""

    metric: str
    teacher: float | None
    untrained: float | None
    examples: int | None
    p: float | None
    informative: bool | None
    description: str = ""


@dataclass
class Analysis:
    """Everything that the report shows; built by `analyse`."""

    source: Source
    name: str
    budget: Budget | None
    charged: list[str]
    main: str
    margin: float
    margin_declared: bool
    arms: list[Arm]
    probes: list[Probe]
    metrics: list[str]
    scores: dict[str, dict[str, dict[int, float]]]
    references: dict[str, dict[str, float | None]]
    comparisons: list[Comparison] = field(default_factory=list)
    verdict: Verdict = field(default_factory=lambda: headline([], margin=0))
    by_arm: list[Verdict] = field(default_factory=list)
    device_time: Json = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str | None:
        return None if self.budget is None else self.budget.unit.value

    @property
    def baseline(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.baseline), None)

    def score(self, arm: str, metric: str) -> Mean | None:
        """An arm's score over its finished seeds, or None."""
        values = self.scores.get(metric, {}).get(arm, {})
        if not values:
            return None
        seen = list(values.values())
        low, high = mean_interval(seen) or (None, None)
        return Mean(values, statistics.fmean(seen), statistics.stdev(seen) if len(seen) > 1 else None, low, high)

    def meaningless(self, metric: str) -> dict[str, str]:
        """{arm: reason} for arms about which a metric says nothing."""
        if metric in self.uninformative:
            return dict.fromkeys((arm.name for arm in self.arms), f"{numbers.label(metric)} is uninformative")
        if not metric.startswith("mlm."):
            return {}
        return {arm.name: f"{arm.name} never trained an MLM head" for arm in self.arms if not arm.head_trained}

    def flags(self, metrics: Iterable[str]) -> list[str]:
        """Why figures of these metrics carry a dagger, in as few words as there are reasons."""
        metrics = list(metrics)
        headless = [arm.name for arm in self.arms if not arm.head_trained]
        shown = any(m.startswith("mlm.") and m not in self.uninformative for m in metrics)
        heads = [f"{', '.join(headless)} never trained an MLM head"] if headless and shown else []
        return heads + [f"{numbers.label(m)} is uninformative" for m in metrics if m in self.uninformative]

    @property
    def uninformative(self) -> set[str]:
        """Probes that were checked and do not tell a teacher from an untrained student."""
        return {probe.metric for probe in self.probes if probe.informative is False}

    def spread(self, metric: str) -> float | None:
        """The largest spread between seeds, which sets the digits that all of a metric's figures are given in."""
        seen = [s.sd for arm in self.arms if (s := self.score(arm.name, metric)) and s.sd]
        return max(seen, default=None)

    def compared(self, metric: str, family: str) -> list[Comparison]:
        return [c for c in self.comparisons if c.metric == metric and c.family == family]

    def best(self, metric: str) -> str | None:
        """The arm that beats every other arm significantly, if there is one."""
        pairs = self.compared(metric, "pairs") or self.compared(metric, "baseline")
        for arm in self.arms:
            mine = [c for c in pairs if arm.name in (c.a, c.b)]
            wins = [c for c in mine if c.significant and ((c.mean_difference or 0) > 0) == (c.a == arm.name)]
            if len(self.arms) > 1 and len(wins) == len(self.arms) - 1:
                return arm.name
        return None


def analyse(source: Source) -> Analysis:
    """Summarise, compare and judge; never raises for what an unfinished study lacks."""
    study, warnings = source.study, list(source.problems)
    evaluation = mapping(study.get("evaluation"))
    main = evaluation.get("main") or MAIN
    margin, declared = margin_of(evaluation, main)
    arms = _arms(source)
    references = {
        name: {k: number(v) for k, v in mapping(mapping(source.references.get(name)).get("scores")).items()}
        for name in REFERENCES
        if mapping(source.references.get(name)).get("scores")
    }
    metrics = [m for m in _metrics(run.scores for arm in arms for run in arm.done) if not m.endswith(FACTS)]
    probes = _probes([m for m in metrics if m.startswith("probe.")], references, source)
    scores = {metric: _by_arm(arms, lambda run, m=metric: run.scores.get(m)) for metric in metrics}
    trusted = [probe.metric for probe in probes if probe.informative]
    if len(trusted) > 1:
        scores[PROBE_MEAN] = _by_arm(arms, lambda run: _all_mean(run.scores.get(m) for m in trusted))
        for row in references.values():
            row[PROBE_MEAN] = _all_mean(row.get(m) for m in trusted)
        metrics = _metrics([dict.fromkeys([*metrics, PROBE_MEAN])])
    result = Analysis(
        source=source,
        name=str(study.get("name") or source.directory.resolve().parent.name),
        budget=_budget(study, warnings),
        charged=[str(a) for a in mapping(study.get("accounting")).get("charged") or []],
        main=main,
        margin=margin,
        margin_declared=declared,
        arms=arms,
        probes=probes,
        metrics=metrics,
        scores=scores,
        references=references,
        warnings=warnings,
    )
    _compare(result)
    _missing(result)
    return result


def _compare(analysis: Analysis) -> None:
    baseline = analysis.baseline
    if baseline is None:
        return
    for metric in dict.fromkeys([analysis.main, *analysis.metrics]):
        scores: Scores = {arm.name: analysis.scores.get(metric, {}).get(arm.name, {}) for arm in analysis.arms}
        settings = {"metric": metric, "meaningless": analysis.meaningless(metric)}
        analysis.comparisons += against_baseline(scores, baseline.name, **settings)
        if len(analysis.arms) > 2:
            analysis.comparisons += all_pairs(scores, **settings)
    deciding = analysis.compared(analysis.main, "baseline")
    analysis.verdict = headline(deciding, margin=analysis.margin)
    analysis.by_arm = [judge(c, margin=analysis.margin) for c in deciding]


def _arms(source: Source) -> list[Arm]:
    listed = {str(arm["name"]): arm for arm in arms_of(source.study)}
    names = list(dict.fromkeys([*listed, *(run.arm for run in source.runs)]))
    objectives = {name: _objective(name, listed, source.runs) for name in names}
    declared = source.study.get("baseline")
    pretrained = next((name for name in names if objectives[name].split(" (")[0] == "mlm"), None)
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


def _by_arm(arms: list[Arm], score: Callable[[Run], float | None]) -> dict[str, dict[int, float]]:
    return {arm.name: {run.seed: v for run in arm.done if (v := score(run)) is not None} for arm in arms}


def _metrics(scores: Iterable[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in scores for name in row)

    def place(metric: str) -> tuple[int, str]:
        return next((i for i, p in enumerate(_ORDER) if metric.startswith(p)), len(_ORDER)), ""

    return sorted(names, key=place)


def _probes(metrics: list[str], references: dict[str, dict[str, float | None]], source: Source) -> list[Probe]:
    """Test each probe: do teacher and untrained student differ by more than their test examples' noise?

    One-sided two-proportion z test, pooled. Both were tested on the same examples, so treating them as
    independent is conservative.
    """
    fallback = mapping(mapping(source.study.get("evaluation")).get("probes")).get("test_examples")
    tasks = mapping(source.references.get("probes"))
    result: list[Probe] = []
    for metric in metrics:
        task = mapping(tasks.get(metric.removeprefix("probe.")))
        size = number(task.get("test_examples", fallback))
        high, low = (references.get(name, {}).get(metric) for name in ("teacher", "untrained"))
        p = None if high is None or low is None or not size else two_proportions(high, low, int(size))
        believed = None if p is None else p < INFORMATIVE
        result.append(
            Probe(metric, high, low, int(size) if size else None, p, believed, str(task.get("description") or ""))
        )
    return result


def two_proportions(better: float, worse: float, n: int) -> float:
    """One-sided p that the first share of n correct answers is the larger one; pooled z test."""
    pooled = (better + worse) / 2
    variance = pooled * (1 - pooled) * 2 / n
    return float(stats.norm.sf((better - worse) / variance**0.5)) if variance > 0 else 1.0


def _budget(study: Json, warnings: list[str]) -> Budget | None:
    try:
        return Budget.parse(str(study["budget"]))
    except KeyError:
        warnings.append("The study's budget is unknown, so costs cannot be checked against it.")
    except ConfigError as error:
        warnings.append(f"The study's budget cannot be read: {error}.")
    return None


def _missing(analysis: Analysis) -> None:
    """Name every run that the study asks for and that is not finished."""
    for arm in analysis.arms:
        wanted = [s for s in analysis.source.study.get("seeds") or [] if isinstance(s, int)]
        for seed in dict.fromkeys([*wanted, *(run.seed for run in arm.runs)]):
            run = next((run for run in arm.runs if run.seed == seed), None)
            if run is None:
                analysis.missing.append(f"{arm.name}, seed {seed}: not started")
            elif not run.done:
                spent = _fraction(analysis, run)
                reached = "" if spent is None else f", {spent:.0%} of the budget spent"
                analysis.missing.append(f"{arm.name}, seed {seed}: unfinished{reached}")


def _fraction(analysis: Analysis, run: Run) -> float | None:
    spent = number(mapping(run.posted).get("spent"))
    return None if spent is None or analysis.budget is None else spent / analysis.budget.limit


def _mean(values: Iterable[float | None]) -> float | None:
    seen = [v for v in values if v is not None]
    return statistics.fmean(seen) if seen else None


def _all_mean(values: Iterable[float | None]) -> float | None:
    """The mean when every value is there; an average over fewer tasks would be another score."""
    seen = list(values)
    return statistics.fmean(v for v in seen if v is not None) if seen and None not in seen else None


def device_seconds(arm: Arm, seeds: Iterable[int]) -> float | None:
    """Mean device seconds of an arm's charged spans over these seeds."""
    wanted = set(seeds)
    return _mean(number(run.record.get("seconds")) for run in arm.done if run.seed in wanted)


def better_of(metric: str, first: float, second: float) -> bool:
    """True when the first score is strictly better."""
    return first > second if higher_is_better(metric) else first < second


def describe_unit(unit: str | None) -> str:
    """How a budget's unit is called in a sentence."""
    words = {
        Unit.FLOP.value: "FLOPs",
        Unit.TOKEN.value: "tokens",
        Unit.GPU_SECOND.value: "device time",
        Unit.ALLOCATED_GPU_SECOND.value: "allocated device time",
        Unit.JOULE.value: "energy",
        Unit.SECOND.value: "wall-clock time",
    }
    return words.get(unit or "", "budget")
