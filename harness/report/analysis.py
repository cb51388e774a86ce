"""What a study's runs say, before anything is drawn: scores, comparisons, the verdict, and what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from harness.budget import Budget
from harness.compare import Comparison, Scores, against_baseline, all_pairs, higher_is_better, mean_interval
from harness.errors import ConfigError
from harness.report import numbers
from harness.report.arms import Arm, Mean, by_arm, list_arms
from harness.report.source import Json, Run, Source, mapping, number
from harness.report.verdict import Verdict, headline, judge, margin_of
from harness.units import Unit

MAIN = "readout.loss"
PROBE_MEAN = "probe.mean"
REFERENCES = ("teacher", "untrained", "bag_of_words")
# One-sided level at which a teacher must beat the untrained student before a probe is believed.
INFORMATIVE = 0.01
# Facts that travel among the scores: which layer a readout was made from is neither good nor bad.
FACTS = (".layer",)
_ORDER = ("readout.", "mlm.", PROBE_MEAN, "probe.", "glue.")


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
    arms = list_arms(source)
    references = {
        name: {k: number(v) for k, v in mapping(mapping(source.references.get(name)).get("scores")).items()}
        for name in REFERENCES
        if mapping(source.references.get(name)).get("scores")
    }
    metrics = [m for m in _metrics(run.scores for arm in arms for run in arm.done) if not m.endswith(FACTS)]
    probes = _probes([m for m in metrics if m.startswith("probe.")], references, source)
    scores = {metric: by_arm(arms, lambda run, m=metric: run.scores.get(m)) for metric in metrics}
    trusted = [probe.metric for probe in probes if probe.informative]
    if len(trusted) > 1:
        scores[PROBE_MEAN] = by_arm(arms, lambda run: _all_mean(run.scores.get(m) for m in trusted))
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


def _all_mean(values: Iterable[float | None]) -> float | None:
    """The mean when every value is there; an average over fewer tasks would be another score."""
    seen = list(values)
    return statistics.fmean(v for v in seen if v is not None) if seen and None not in seen else None


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
