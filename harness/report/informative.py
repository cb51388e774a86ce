"""Which probes can be believed: those that tell a teacher from an untrained student."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from harness.report.source import Source, mapping, number

# One-sided level at which a teacher must beat the untrained student before a probe is believed.
INFORMATIVE = 0.01


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


def list_probes(metrics: list[str], references: dict[str, dict[str, float | None]], source: Source) -> list[Probe]:
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
