"""What a student costs to use: parameters, bytes, and the time of a forward pass, as they were measured of its export."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence

from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.cells import Cell, Table, arm_cell
from harness.report.score_tables import REFERENCE_NAMES
from harness.report.source import Json, mapping, number

_BATCH = re.compile(r"batch_([0-9]+)")


def size(analysis: Analysis) -> Table:
    """Means over seeds; references where they were measured. No rows where nothing was."""
    arms = [
        (arm, {run.seed: model for run in arm.done if (model := mapping(run.record.get("model")))})
        for arm in analysis.arms
    ]
    others = {
        name: {0: model}
        for name, row in analysis.source.references.items()
        if (model := mapping(mapping(row).get("model")))
    }
    measured = [*(models for _, models in arms if models), *others.values()]
    batches = sorted({batch for models in measured for model in models.values() for batch in passes(model)})
    rows = [[arm_cell(arm, bare=True), *_cells(models, batches)] for arm, models in arms if models]
    rows += [
        [Cell(REFERENCE_NAMES.get(name, name), role="muted"), *_cells(models, batches, role="muted")]
        for name, models in others.items()
    ]
    records = [_record(model, arm=arm.name, seed=seed) for arm, models in arms for seed, model in models.items()]
    records += [_record(models[0], arm=name, seed=None) for name, models in others.items()]
    columns = ["Arm", "Parameters", "Without embeddings", "On disk", *(f"Batch of {batch}, ms" for batch in batches)]
    return Table("size", "Size and latency", columns, rows, records, notes=_notes(measured) if rows else [])


def passes(model: Json) -> dict[int, Json]:
    """{batch: its percentiles} of one student's measured forward passes, smallest first."""
    latency = mapping(model.get("latency"))
    found = {int(key[1]): mapping(value) for name, value in latency.items() if (key := _BATCH.fullmatch(str(name)))}
    return {batch: found[batch] for batch in sorted(found) if number(found[batch].get("p50_ms")) is not None}


def milliseconds(value: float | None) -> str:
    """Three significant digits, without the unit."""
    return "–" if value is None else numbers.fixed(value, 2 if value < 10 else 1 if value < 100 else 0)


def conditions(model: Json) -> str:
    """Where and on what a latency was measured: "AMD EPYC, 2 threads, fp32, sequences of 128 tokens"."""
    latency = mapping(model.get("latency"))
    threads, length = number(latency.get("threads")), number(latency.get("length"))
    told = [
        str(latency.get("device") or "an unknown device"),
        "" if threads is None else f"{threads:g} {'thread' if threads == 1 else 'threads'}",
        str(latency.get("precision") or ""),
        "" if length is None else f"sequences of {length:g} tokens",
    ]
    return ", ".join(word for word in told if word)


def _cells(models: dict[int, Json], batches: Sequence[int], role: str = "") -> list[Cell]:
    def mean(key: str) -> float | None:
        return _mean(number(model.get(key)) for model in models.values())

    cells = [
        Cell(numbers.short(mean("parameters")), role=role),
        Cell(numbers.short(mean("parameters_without_embeddings")), role=role),
        Cell(numbers.size(mean("bytes")), role=role),
    ]
    for batch in batches:
        found = {seed: passes(model)[batch] for seed, model in models.items() if batch in passes(model)}
        p20, p50, p80 = (_mean(number(row.get(f"p{p}_ms")) for row in found.values()) for p in (20, 50, 80))
        tip = ", ".join(
            f"seed {seed}: {milliseconds(number(row.get('p50_ms')))}" for seed, row in found.items() if seed
        )
        spread = "" if p20 is None or p80 is None else f"{milliseconds(p20)} to {milliseconds(p80)}"
        cells.append(Cell(milliseconds(p50), spread, tip, role))
    return cells


def _record(model: Json, *, arm: str, seed: int | None) -> Json:
    latency = mapping(model.get("latency"))
    plain = {key: value for key, value in (model | latency).items() if not isinstance(value, dict | list)}
    times = {f"batch_{batch}_{key}": value for batch, row in passes(model).items() for key, value in row.items()}
    return {"arm": arm, "seed": seed, **plain, **times}


def _notes(measured: Iterable[dict[int, Json]]) -> list[str]:
    models = [model for each in measured for model in each.values()]
    places = list(dict.fromkeys(conditions(model) for model in models if passes(model)))
    notes = ["Of the student as it was exported, mean over seeds. On disk: its weights."]
    if places:
        notes[0] += (
            f" Batches: the median time of one forward pass of the body without a head, without pads, on {'; '.join(places)}; "
            "beneath it the 20th and 80th percentile. Whatever else the machine did then is in it."
        )
    if len(places) > 1:
        notes.append("Latencies of different devices or settings are not comparable.")
    return notes


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
