"""The model card of an exported student: what made it, what that cost, how it scores, and what of it is untrained.

A card is README.md beside the weights, with the Hub's YAML header, written once scores are known and rewritten
whenever the report is. Nothing unknown is given as 0: without an energy meter there is no figure of carbon.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from harness.budget import Account
from harness.models.parameter_names import within
from harness.report import numbers
from harness.report.arms import objective_words
from harness.report.axis import scale_of
from harness.report.cells import account_name
from harness.report.markdown import escape
from harness.report.model_index import fine_tuning, model_index
from harness.report.nesting import NAMES, tasks_of
from harness.report.size_tables import conditions, milliseconds, passes
from harness.report.source import Json, Run, Source, mapping, number, read
from harness.units import Unit

CARD = "README.md"
HUB_GLUE = "nyu-mll/glue"
# Scores by the student's own head.
OWN_HEAD = ("mlm.", "clm.")
# Untrained parameters are named up to this many.
NAMED = 12
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def write_cards(root: Path) -> list[Path]:
    """Write a card beside every finished student of a study directory; returns the cards.

    Raises:
        ConfigError: `root` holds no study.
    """
    source = read(root)
    written: list[Path] = []
    for run in (*source.runs, *source.controls):
        folder = run.folder / "student"
        if run.done and (folder / "config.json").is_file():
            temporary = folder / f".{CARD}.tmp"
            temporary.write_text(card(source, run), encoding="utf-8")
            os.replace(temporary, folder / CARD)
            written.append(folder / CARD)
    return written


def card(source: Source, run: Run) -> str:
    """The whole card: YAML header and body."""
    header = yaml.safe_dump(front_matter(source, run), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n".join(_body(source, run)) + "\n"


def front_matter(source: Source, run: Run) -> Json:
    """What the Hub reads: task, tags, data, scores and, where energy was measured, its carbon in grams."""
    causal = _causal(run)
    header: Json = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation" if causal else "fill-mask",
        "tags": ["isobudget", "knowledge-distillation" if run.record.get("teacher") else "pretraining"],
    }
    hub = [path for path in _from_hub(source) if _HUB_NAME.match(path)]
    names = _source_names(source)
    if hub:
        header["datasets"] = hub
    emissions = _emissions(source, run)
    if emissions:
        header["co2_eq_emissions"] = emissions
    dataset = {"name": ", ".join(names) or "unknown", "type": hub[0] if hub else "own"}
    index = model_index(
        run, name=f"{source.study.get('name', 'study')}-{run.arm}-seed-{run.seed}", task=header["pipeline_tag"],
        dataset=dataset, scores=[metric for metric in run.scores if _belongs(run, metric)], source=_glue_source(run),
    )  # fmt: skip
    if index:
        header["model-index"] = index
    return header


def _body(source: Source, run: Run) -> Iterator[str]:
    record, study = run.record, source.study
    yield f"# {escape(run.arm)}, seed {run.seed}, of the study {escape(study.get('name', 'unknown'))}"
    yield ""
    yield from _summary(source, run)
    untrained = within(map(str, record.get("untrained_parameters") or []), _exported_layers(record))
    if untrained or not record.get("head_trained", True):
        yield from _untrained(record, untrained)
    yield from _section("Scores", ("score", "value"), _scores(run))
    yield from _fine_tuned(run)
    yield from _section("Size and latency", ("fact", "value"), _size(run))
    yield from _section("Cost", ("account", "FLOPs", "device time", "charged"), _accounts(source, run))
    energy = mapping(record.get("energy"))
    joules = number(energy.get("joule"))
    if joules is not None:
        error = number(energy.get("uncertainty_j"))
        scale = scale_of(joules, Unit.JOULE.value)
        spread = "" if error is None else f" ± {scale.write(error, digits=2)}"
        coverage = number(energy.get("coverage"))
        share = "" if coverage is None else f", covering {coverage:.0%} of the device time"
        yield (f"Energy: {scale.write(joules)}{spread} {scale.name}, read from {escape(energy.get('source'))}{share}.")
    else:
        yield "Energy was not measured."
    yield ""
    yield from _section("Data", ("fact", "value"), _data(source, run))
    for warning in run.warnings:
        yield f"- {escape(warning)}"
    yield ""
    yield from _loading(run)


def _summary(source: Source, run: Run) -> Iterator[str]:
    differs = mapping(run.record.get("differs"))
    own = {key.removeprefix("student."): value for key, value in differs.items() if key.startswith("student.")}
    student = {**mapping(source.study.get("student")), **own}
    # What is in this folder: layers that were never trained whole may have been left out of it.
    exported = _exported_layers(run.record) or student.get("layers")
    parameters = run.record.get("parameters") if exported == student.get("layers") else None
    parameters = number(mapping(run.record.get("model")).get("parameters", parameters))
    student |= {"layers": exported} if exported else {}
    shape = ", ".join(f"{key} {student[key]}" for key in ("family", "layers", "hidden", "heads") if key in student)
    count = "" if parameters is None else f" of {numbers.short(parameters)} parameters"
    yield (
        f"A student{count} ({escape(shape)}), trained with the "
        f"objective {escape(objective_words(run.record.get('objective')))}. {_budget(source, run)}"
        "Trained by IsoBudget, which asks whether distilling or pretraining from scratch gives the better student at the "
        "same cost."
    )
    teacher = mapping(run.record.get("teacher"))
    if teacher:
        yield ""
        yield f"Teacher: {escape(_name(teacher.get('path'), hub=teacher.get('hub') is True))}, trained on {escape(teacher.get('trained_on'))} data."
    control = run.control
    if control:
        yield ""
        yield f"This is a control ({escape(control.get('kind'))}), no contestant of the study."
    yield ""


def _exported_layers(record: Json) -> int | None:
    """Layers of the model in the folder; None where the record does not say."""
    layers = record.get("exported_layers")
    return layers if isinstance(layers, int) else None


def _budget(source: Source, run: Run) -> str:
    """A control trains for another arm's tokens: the study's budget is not its own."""
    return "" if run.control else f"Its budget: {escape(source.study.get('budget'))}. "


def _untrained(record: Json, names: list[str]) -> Iterator[str]:
    yield "## Untrained parts"
    yield ""
    if not record.get("head_trained", True):
        yield "**Its language-model head was never trained**: what it predicts at a mask is noise. Fine-tune the body."
        yield ""
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield f"No gradient reached {', '.join(f'`{escape(n)}`' for n in names[:NAMED])}{more}."
        yield ""


def _fine_tuned(run: Run) -> Iterator[str]:
    """That GLUE's scores are not those of the weights in this folder."""
    tasks = tasks_of(run)
    if tasks:
        yield (
            f"GLUE's scores are those of copies fine-tuned on each task (from {escape(_glue_source(run))}); the weights here are not "
            "fine-tuned."
        )
        yield ""
        for task, facts in tasks.items():
            yield f"- {escape(NAMES.get(task, task))}: {escape(fine_tuning(run, facts))}"
        yield ""


def _glue_source(run: Run) -> str:
    path = mapping(mapping(run.record.get("glue")).get("recipe")).get("path")
    return _name(path, hub=path == HUB_GLUE) if path else HUB_GLUE


def _scores(run: Run) -> list[tuple[str, ...]]:
    return [
        (escape(numbers.label(metric)), numbers.score(value, metric))
        for metric, value in run.scores.items()
        if value is not None and _belongs(run, metric)
    ]


def _belongs(run: Run, metric: str) -> bool:
    """A head that was never trained has no scores, and the layer of a read-out is none."""
    return not metric.endswith(".layer") and (
        bool(run.record.get("head_trained", True)) or not metric.startswith(OWN_HEAD)
    )


def _accounts(source: Source, run: Run) -> list[tuple[str, ...]]:
    charged = mapping(source.study.get("accounting")).get("charged") or []
    accounts = {name: mapping(units) for name, units in mapping(run.record.get("accounts")).items()}
    order = [*(a for a in Account.__members__ if a in accounts), *(a for a in accounts if a not in Account.__members__)]
    return [
        (
            escape(account_name(name)),
            numbers.cost(number(accounts[name].get(Unit.FLOP.value)), Unit.FLOP),
            numbers.cost(number(accounts[name].get(Unit.GPU_SECOND.value)), Unit.GPU_SECOND),
            "yes" if name in charged else "no",
        )
        for name in order
    ]


def _size(run: Run) -> list[tuple[str, ...]]:
    """What using it costs, as it was measured at the end of the study; empty where it was not."""
    model = mapping(run.record.get("model"))
    rows = [
        ("parameters", numbers.short(number(model.get("parameters")))),
        ("of them without embeddings", numbers.short(number(model.get("parameters_without_embeddings")))),
        ("weights on disk", numbers.size(number(model.get("bytes")))),
    ]
    for batch, found in passes(model).items():
        p20, p50, p80 = (milliseconds(number(found.get(f"p{p}_ms"))) for p in (20, 50, 80))
        rows.append((f"forward pass, batch of {batch}", f"{p50} ms (20th to 80th percentile: {p20} to {p80} ms)"))
    rows += [("measured on", f"{conditions(model)}, the body without a head")] if passes(model) else []
    return [(name, escape(value)) for name, value in rows if model and value != "–"]


def _data(source: Source, run: Run) -> list[tuple[str, ...]]:
    record = run.record
    epochs = number(record.get("epochs"))
    devices, commit = _made_on(source, run)
    rows = [
        ("sources", ", ".join(_source_names(source))),
        ("corpus", record.get("corpus")),
        ("tokens seen", numbers.count(number(record.get("tokens")))),
        ("of them unique", numbers.count(number(record.get("unique_tokens")))),
        ("epochs", None if epochs is None else f"{epochs:.2f}"),
        ("steps", numbers.count(number(record.get("steps")))),
        ("hardware", ", ".join(devices)),
        ("code", commit),
    ]
    return [(name, escape(value)) for name, value in rows if value]


def _made_on(source: Source, run: Run) -> tuple[list[str], str | None]:
    """This run's own devices and commit: jobs of one study may run on machines of their own.

    What the study's last job wrote of itself is asked only where the run's record does not say.
    """
    identity = mapping(run.record.get("identity"))
    devices = mapping(identity.get("hardware")).get("devices")
    if not isinstance(devices, list) or not devices:
        there = mapping(source.environment.get("hardware"))
        devices = there.get("gpus") or there.get("cpu") or there.get("name") or []
    commit = mapping(identity.get("code")).get("commit") or source.environment.get("git_commit")
    return [str(d) for d in devices] if isinstance(devices, list) else [str(devices)], commit


def _loading(run: Run) -> Iterator[str]:
    kind = "AutoModelForCausalLM" if _causal(run) else "AutoModelForMaskedLM"
    yield "## Loading"
    yield ""
    yield "```python"
    yield f"from transformers import {kind}, AutoTokenizer"
    yield ""
    yield f'model = {kind}.from_pretrained(".")'
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    yield "```"


def _section(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    if rows:
        yield f"## {title}"
        yield ""
        yield f"| {' | '.join(columns)} |"
        yield f"|{' --- |' * len(columns)}"
        for row in rows:
            yield f"| {' | '.join(row)} |"
        yield ""


def _emissions(source: Source, run: Run) -> Json:
    energy = mapping(run.record.get("energy"))
    grams = number(energy.get("carbon_g"))
    if grams is None:
        return {}
    found: dict[str, Any] = {"emissions": grams, "training_type": "pre-training"}
    found["source"] = f"IsoBudget: {energy.get('source')} × {energy.get('grid_g_per_kwh')} g/kWh"
    devices, _ = _made_on(source, run)
    if devices:
        found["hardware_used"] = ", ".join(devices)
    return found


def _causal(run: Run) -> bool:
    """Whether the student predicts next tokens, as its own config says."""
    try:
        config = mapping(json.loads((run.folder / "student" / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or [])


def _name(path: Any, *, hub: bool) -> str:
    """A Hub name as it is; of a place on somebody's disk only its own name, for a card is made to be published.

    Which of the two it is was recorded when it was read: `corpora/mine` looks like either, wherever a card is written.
    """
    text = str(path or "unknown")
    return text if hub else Path(text).name or text


def _from_hub(source: Source) -> list[str]:
    """Those of the study's data sources that the Hub gave, as the run recorded it."""
    parts = mapping(mapping(source.environment.get("data")).get("sources")).values()
    given = {str(mapping(mapping(part).get("identity")).get("hub")) for part in parts}
    return [path for part in _sources(source) if (path := str(part.get("path"))) in given]


def _source_names(source: Source) -> list[str]:
    given = _from_hub(source)
    return [_name(part.get("path"), hub=part.get("path") in given) for part in _sources(source)]


def _sources(source: Source) -> list[Json]:
    listed = mapping(source.study.get("data")).get("sources")
    return [part for part in listed if isinstance(part, dict)] if isinstance(listed, list) else []
