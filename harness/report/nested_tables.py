"""Tables of nested designs: variance components, the mixed model's intervals, and GLUE task by task."""

from __future__ import annotations

import statistics

from harness.report import numbers
from harness.report.analysis import Analysis
from harness.report.arms import Arm
from harness.report.cells import Cell, Table, arm_cell
from harness.report.chance import LEVEL, at_chance
from harness.report.nesting import NAMES, by_fine_seed, missing_glue, tasks_of
from harness.report.score_tables import REFERENCE_NAMES
from harness.report.source import Json, mapping, number

CHANCE = "at chance"


def components(analysis: Analysis) -> Table:
    """Where each score's variance comes from, and what more fine-tuning seeds could still gain."""
    rows: list[list[Cell]] = []
    for nesting in analysis.nestings:
        model, metric = nesting.model, nesting.metric
        parts = (model.sd_shared, model.sd_own, model.sd_fine, model.half_width, model.floor)
        amounts = ["–" if v is None else numbers.amount_of(v, metric, spread=model.half_width) for v in parts]
        seeds = f"{len(model.seeds)} × {model.fine}" if model.fine > 1 else str(len(model.seeds))
        name = Cell(f"{numbers.label(metric)}, {numbers.unit(metric)}")
        rows.append([name, Cell(seeds), *map(Cell, amounts), Cell(str(model.degrees))])
    columns = ["Score", "Seeds", "Shared by arms", "Own to an arm", "Fine-tuning", "Half-width", "At best", "Degrees"]
    notes = [
        "Standard deviations between pretraining seeds (shared by all arms of a seed, which pairing removes; own to one arm) "
        "and between fine-tuning seeds nested in them. Half-width: of a pair's interval, 95 % for all pairs together, when all arms share their "
        "variance. At best: what endlessly many fine-tuning seeds would leave of it. Seeds: pretraining × fine-tuning."
    ]
    records = [n.as_json() for n in analysis.nestings]
    records = [{k: v for k, v in record.items() if k not in ("pairs", "arms", "seeds")} for record in records]
    return Table("components", "Where the variance comes from", columns, rows, records, notes=notes if rows else [])


def mixed(analysis: Analysis) -> Table:
    """Every pair's difference under one model of all arms, beside which the paired t decides."""
    index = {arm.name: arm.index for arm in analysis.arms}
    rows: list[list[Cell]] = []
    records: list[Json] = []
    for nesting in analysis.nestings:
        for pair in nesting.model.pairs:
            half = (pair.high - pair.low) / 2
            span = (numbers.signed(end, nesting.metric, spread=half) for end in (pair.low, pair.high))
            rows.append(
                [
                    Cell(f"{pair.a} vs {pair.b}", arm=index.get(pair.a)),
                    Cell(f"{numbers.label(nesting.metric)}, {numbers.unit(nesting.metric)}"),
                    Cell(numbers.signed(pair.difference, nesting.metric, spread=half)),
                    Cell(" to ".join(span)),
                    Cell(numbers.p_value(pair.p)),
                    Cell(numbers.p_value(pair.p_corrected), role="best" if pair.p_corrected <= 0.05 else ""),
                ]
            )
            records.append({"metric": nesting.metric, **vars(pair)})
    notes = [
        "One model of all arms: pretraining seeds random, fine-tuning seeds nested in them, tasks fixed. It pools the arms' "
        "variance, assuming that they are equally noisy. The verdict does not: it uses the paired t. Intervals and corrected p "
        "are for all pairs of a score together (Bonferroni)."
    ]
    columns = ["Pair", "Score", "Difference", "95 % interval", "p", "p, corrected"]
    return Table("mixed_model", "Mixed model", columns, rows, records, notes=notes if rows else [])


def glue(analysis: Analysis) -> Table:
    """GLUE task by task: mean over pretraining seeds of the means over fine-tuning seeds, and the recipes that won."""
    tasks = list(dict.fromkeys(task for arm in analysis.arms for run in arm.done for task in tasks_of(run)))
    rows = [[arm_cell(arm, bare=True), *(_task(analysis, arm, task) for task in tasks)] for arm in analysis.arms]
    references = {name: found for name in REFERENCE_NAMES if (found := _reference(analysis, name))}
    rows += [
        [Cell(REFERENCE_NAMES[name], role="muted"), *(_fixed(found.get(task, {}), task) for task in tasks)]
        for name, found in references.items()
    ]
    records = [
        {
            "arm": arm.name, "seed": run.seed, "task": task, "fine_tuning_seed": fine, "score": score,
            "lr": row.get("lr"), "batch": row.get("batch"), "at_edge": row.get("at_edge"), "at_chance": at_chance(row),
        }
        for arm in analysis.arms for run in arm.done for task, row in tasks_of(run).items()
        for fine, score in by_fine_seed(run, task).items()
    ]  # fmt: skip
    records += [
        {
            "arm": name, "task": task, "score": row.get("score"), "lr": row.get("lr"), "batch": row.get("batch"),
            "at_edge": row.get("at_edge"), "at_chance": at_chance(row),
        }
        for name, found in references.items() for task, row in found.items()
    ]  # fmt: skip
    return Table(
        "glue",
        "GLUE",
        ["Arm", *(NAMES.get(task, task) for task in tasks)],
        rows if tasks else [],
        records,
        notes=_glue_notes(analysis),
    )


def _task(analysis: Analysis, arm: Arm, task: str) -> Cell:
    metric = f"glue.{task}"
    rows = [tasks_of(run).get(task, {}) for run in arm.done]
    values = [score for row in rows if (score := number(row.get("score"))) is not None]
    if not values:
        return Cell("–", role="muted")
    spread = statistics.stdev(values) if len(values) > 1 else None
    rates = sorted({f"{lr:g}" for row in rows if (lr := number(row.get("lr"))) is not None})
    details = [f"± {numbers.amount_of(spread, metric, spread=spread)}"] if spread else []
    details += [CHANCE] if all(at_chance(row) for row in rows if row) else []
    details += [f"{len(values)} of {len(arm.done)} seeds"] if len(values) < len(arm.done) else []
    tip = f"learning rate {', '.join(rates)}" if rates else ""
    flag = " ‡" if any(row.get("at_edge") is True for row in rows) else ""
    best = "best" if analysis.best(metric) == arm.name else ""
    return Cell(
        f"{numbers.score(statistics.fmean(values), metric, spread=spread)}{flag}", ", ".join(details), tip, best
    )


def _reference(analysis: Analysis, name: str) -> dict[str, Json]:
    """{task: what is recorded of it} of the untrained student or the teacher."""
    tasks = mapping(mapping(mapping(analysis.source.references.get(name)).get("glue")).get("tasks"))
    return {str(task): mapping(row) for task, row in tasks.items()}


def _fixed(row: Json, task: str) -> Cell:
    """A reference's score, which has no seeds of its own."""
    score = number(row.get("score"))
    text = numbers.score(score, f"glue.{task}")
    return Cell(text, CHANCE if score is not None and at_chance(row) else "", role="muted")


def _glue_notes(analysis: Analysis) -> list[str]:
    found = [mapping(run.record.get("glue")) for arm in analysis.arms for run in arm.done]
    recipes = [mapping(row.get("recipe")) for row in found if row.get("recipe")]
    if not recipes:
        return []
    recipe = recipes[0]
    seeds = recipe.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else 0
    told = f"{count} fine-tuning seed{'s' if count != 1 else ''} in each run" if count else "Fine-tuned"
    chosen = recipe.get("chosen_on")
    lack = missing_glue(analysis)
    notes = (
        [f"Not evaluated yet: {'; '.join(lack)}. Only what was evaluated counts here; evaluate the run again."]
        if lack
        else []
    )
    notes += [
        f"{told}; the recipe chosen on {chosen or 'a held-out part of train'}, the same grid for every arm. "
        "± one standard deviation between pretraining seeds."
    ]
    if any(at_chance(task) for row in found for task in map(mapping, mapping(row.get("tasks")).values())) or any(
        at_chance(row) for name in REFERENCE_NAMES for row in _reference(analysis, name).values()
    ):
        notes.append(
            f"{CHANCE.capitalize()}: not told, at {LEVEL:.0%}, from the most frequent class or from no correlation."
        )
    if any(task.get("at_edge") is True for row in found for task in map(mapping, mapping(row.get("tasks")).values())):
        notes.append("‡ The best learning rate lies on the edge of the grid.")
    said = dict.fromkeys(str(note) for row in found for note in (row.get("notes") or []) if isinstance(row, dict))
    return notes + [f"{note}." for note in said if "grid's" not in note]
