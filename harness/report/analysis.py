"""What a study's runs say, before anything is drawn: scores, comparisons, the verdict, and what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.alarms import Alarm
from harness.budget import Budget
from harness.compare import Comparison, Scores, against_baseline, all_pairs, higher_is_better, mean_interval
from harness.errors import ConfigError
from harness.report import numbers
from harness.report.arms import Arm, Mean, by_arm, list_arms
from harness.report.control import Split, splits
from harness.report.currency import Currency, currencies
from harness.report.domains import Domains, domains
from harness.report.informative import Probe, list_probes
from harness.report.nesting import Nesting, missing_glue, nestings
from harness.report.noise import Spread, spreads, unlike_hardware
from harness.report.pretraining_first import PretrainingFirst, pretraining_first
from harness.report.source import Json, Run, Source, charged_accounts, mapping, number
from harness.report.verdict import Verdict, headline, judge, margin_of, withheld
from harness.units import Unit

MAIN = "readout.loss"
PROBE_MEAN = "probe.mean"
REFERENCES = ("teacher", "untrained", "bag_of_words")
# Facts that travel among the scores: which layer a readout was made from is neither good nor bad.
FACTS = (".layer",)
_ORDER = ("readout.", "mlm.", "clm.", PROBE_MEAN, "probe.", "glue.", "domain.")
# Scores of a student's own head, which some objectives never train.
OWN_HEAD = {"mlm.": "an MLM head", "clm.": "a next-token head"}


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
    currencies: list[Currency] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    spreads: list[Spread] = field(default_factory=list)
    nestings: list[Nesting] = field(default_factory=list)
    pretraining_first: list[PretrainingFirst] = field(default_factory=list)
    domains: Domains | None = None
    unlike_hardware: str = ""
    """Why measured costs of these arms cannot be compared; empty where they can."""
    alarms: list[Alarm] = field(default_factory=list)
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
        head = self.own_head(metric)
        if head is None:
            return {}
        return {arm.name: f"{arm.name} never trained {head}" for arm in self.arms if not arm.head_trained}

    def own_head(self, metric: str) -> str | None:
        """What the student's own head is called where a metric is its own, None elsewhere."""
        task = mapping(mapping(self.source.references.get("probes")).get(metric.removeprefix("probe.")))
        if task.get("head") == "own":
            return OWN_HEAD["clm."]
        return next((head for prefix, head in OWN_HEAD.items() if metric.startswith(prefix)), None)

    def margin_for(self, metric: str) -> float:
        """The margin of a score that does not decide: the one assumed for its kind."""
        return margin_of({}, metric)[0]

    @property
    def flips(self) -> list[Currency]:
        """Currencies in which the main verdict is, or may be, another one."""
        return [currency for currency in self.currencies if currency.flip in ("yes", "possible")]

    def flags(self, metrics: Iterable[str]) -> list[str]:
        """Why figures of these metrics carry a dagger, in as few words as there are reasons."""
        metrics = list(metrics)
        headless = [arm.name for arm in self.arms if not arm.head_trained]
        shown = dict.fromkeys(h for m in metrics if m not in self.uninformative and (h := self.own_head(m)))
        heads = [f"{', '.join(headless)} never trained {head}" for head in shown] if headless else []
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

    def judged_against(self, arm: str) -> list[Verdict]:
        """The sentence for every other arm against this one, by the deciding score, as one family of comparisons."""
        scores: Scores = {each.name: self.scores.get(self.main, {}).get(each.name, {}) for each in self.arms}
        found = against_baseline(scores, arm, metric=self.main, meaningless=self.meaningless(self.main))
        return [self.allowed(judge(c, margin=self.margin)) for c in found]

    def allowed(self, verdict: Verdict) -> Verdict:
        """The verdict, or that nothing can be told where costs were measured on unlike machines."""
        measured = self.budget is not None and not self.budget.unit.deterministic
        return withheld(verdict, self.unlike_hardware) if measured and self.unlike_hardware else verdict

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
    probes = list_probes([m for m in metrics if m.startswith("probe.")], references, source)
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
        charged=charged_accounts(study),
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
    result.unlike_hardware = unlike_hardware(arms)
    _compare(result)
    result.spreads = spreads(result)
    result.currencies = currencies(result)
    result.splits = splits(result)
    result.nestings = nestings(result)
    result.pretraining_first = pretraining_first(result)
    result.domains = domains(result)
    _missing(result)
    result.warnings += [f"GLUE was not evaluated for {lack}; evaluate the run again." for lack in missing_glue(result)]
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
    analysis.verdict = analysis.allowed(headline(analysis.compared(analysis.main, "baseline"), margin=analysis.margin))
    analysis.by_arm = analysis.judged_against(baseline.name)


def _metrics(scores: Iterable[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in scores for name in row)

    def place(metric: str) -> tuple[int, str]:
        return next((i for i, p in enumerate(_ORDER) if metric.startswith(p)), len(_ORDER)), ""

    return sorted(names, key=place)


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
            elif run.diverged:
                analysis.warnings.append(
                    f"{arm.name}, seed {seed}: {run.record.get('diverged')}; it counts as a trial."
                )
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
