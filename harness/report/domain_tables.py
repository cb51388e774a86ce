"""Tables and figure of `domains`, and what each arm read of every source of its mixture."""

from __future__ import annotations

import statistics

from harness.compare import Comparison, mean_interval
from harness.report import numbers
from harness.report.analysis import REFERENCES, Analysis
from harness.report.axis import axis
from harness.report.bars import Effect, Effects
from harness.report.cells import MARKED, Cell, Table, arm_cell
from harness.report.domains import GAP, INSIDE, OUTSIDE, Domains, left_out, sentences
from harness.report.score_tables import REFERENCE_NAMES
from harness.report.source import Json, mapping, number

NAMES = {INSIDE: "In domain", OUTSIDE: "Out of domain", GAP: "Out minus in"}


def losses(analysis: Analysis) -> Table:
    """The read-out's loss of every arm on every text, in domain, out of domain, and the gap between the two."""
    found = analysis.domains
    if found is None:
        return Table("domains", "In and out of domain", ["Arm"], [], [])
    metrics = [t.metric for t in found.texts] + found.kinds
    rows: list[list[Cell]] = []
    records: list[Json] = []
    spreads = {metric: _spread(found, metric) for metric in metrics}
    for arm in analysis.arms:
        cells = [arm_cell(arm, bare=True)]
        for metric in metrics:
            values = found.scores[metric].get(arm.name, {})
            cells.append(_loss(values, metric, spreads[metric]))
            records += [{"arm": arm.name, "text": metric, "seed": seed, "loss": v} for seed, v in values.items()]
        rows.append(cells)
    for name in REFERENCES:
        row = analysis.references.get(name, {})
        shown = [row.get(t.metric) for t in found.texts]
        if any(value is not None for value in shown):
            cells = [Cell(numbers.score(v, t.metric), role="muted") for v, t in zip(shown, found.texts, strict=True)]
            rows.append(
                [Cell(REFERENCE_NAMES[name], role="muted"), *cells, *[Cell("–", role="muted")] * len(found.kinds)]
            )
    columns = [
        "Arm",
        *(f"{t.label}, {_share(t.weight)}" for t in found.texts),
        *(f"{NAMES[k]}, nats" for k in found.kinds),
    ]
    notes = [
        *sentences(found, [arm.name for arm in analysis.arms if not arm.baseline]),
        "Nats, means over seeds, the 95 % interval beneath. In domain: held-out text of the mixture's sources, weighted as the "
        "mixture. Out of domain: text that no student learned from, every source alike. Read-out: its head, too, learns on "
        "the mixture alone.",
        *left_out(analysis),
    ]
    return Table("domains", "In and out of domain", columns, rows, records, notes=notes)


def _share(weight: float | None) -> str:
    return "not trained on" if weight is None else f"{100 * weight:.3g}\u202f% of the mixture"


def _loss(values: dict[int, float], metric: str, spread: float | None) -> Cell:
    if not values:
        return Cell("–", role="muted")
    span = mean_interval(list(values.values()))
    each = ", ".join(f"seed {s}: {numbers.score(v, metric, spread=spread)}" for s, v in values.items())
    detail = "one seed" if span is None else numbers.interval(*span, metric)
    return Cell(numbers.score(statistics.fmean(values.values()), metric, spread=spread), detail, each)


def _spread(found: Domains, metric: str) -> float | None:
    rows = [list(by_seed.values()) for by_seed in found.scores[metric].values() if len(by_seed) > 1]
    return max((statistics.stdev(row) for row in rows), default=None)


def effects(analysis: Analysis) -> Table:
    """Every arm against the baseline: on each text, in domain, out of domain, and the difference of the two effects."""
    found = analysis.domains
    rows: list[list[Cell]] = []
    records: list[Json] = []
    if found is not None:
        names = {t.metric: t.label for t in found.texts} | NAMES
        for arm in analysis.arms:
            mine = [
                (m, c) for m in names if (c := found.effect(arm.name, m)) is not None and c.mean_difference is not None
            ]
            half = max((h for _, c in mine if (h := c.half_width)), default=None)
            for metric, c in mine:
                ends = [numbers.signed(end, metric, spread=half) for end in (c.low, c.high)]
                rows.append(
                    [
                        arm_cell(arm, bare=True),
                        Cell(names[metric]),
                        Cell(
                            numbers.signed(c.mean_difference, metric, spread=half), role="best" if c.significant else ""
                        ),
                        Cell("–" if c.low is None else " to ".join(ends)),
                        Cell(str(c.n)),
                        Cell(numbers.p_value(c.p_corrected)),
                    ]
                )
                records.append({"text": names[metric], **c.as_json(), "seeds": " ".join(map(str, c.seeds))})
    base = analysis.baseline.name if analysis.baseline else "the baseline"
    columns = ["Arm", "Text", f"Better than {base} by, nats", "95 % interval", "Seeds", "p, corrected"]
    notes = [
        "Paired by seed; intervals and p are corrected for the arms of one text (Bonferroni). Out minus in: the paired difference of both effects, "
        "positive where an arm's advantage is larger out of domain. Texts differ in how much there is to learn of them: it says "
        "how far an advantage carries over in nats, not why.",
        MARKED,
    ]
    title = f"Effects against {base}, text by text"
    return Table("domain_effects", title, columns, rows, records, notes=notes if rows else [])


def forest(analysis: Analysis) -> Effects | None:
    """Each arm's effect on each text; None where nothing can be compared."""
    found = analysis.domains
    if found is None or analysis.baseline is None:
        return None
    shown: list[tuple[int, str, Comparison]] = []
    for arm in analysis.arms:
        for text in found.texts:
            c = found.effect(arm.name, text.metric)
            if c is not None and c.mean_difference is not None:
                place = "" if text.weight is not None else " (out)"
                shown.append((arm.index, f"{arm.name} · {text.label}{place}", c))
    if not shown:
        return None
    margin = analysis.margin_for(INSIDE)
    ends = [v for _, _, c in shown for v in (c.mean_difference, c.low, c.high) if v is not None]
    low, high = min(*ends, -margin, 0.0), max(*ends, margin, 0.0)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)

    def place_of(value: float) -> float:
        return round(100 * (value - low) / (high - low), 3)

    rows = []
    for index, name, c in shown:
        size = numbers.signed(c.mean_difference, c.metric, spread=c.half_width)
        span = numbers.interval(c.low, c.high, c.metric, signs=True)
        rows.append(
            Effect(
                arm=name, index=index, middle=place_of(c.mean_difference or 0.0),
                low=None if c.low is None else place_of(c.low),
                width=None if c.low is None or c.high is None else place_of(c.high) - place_of(c.low),
                words=size if c.low is None else f"{size} ({span})", tip=f"{c.n} seeds, p {numbers.p_value(c.p_corrected)}",
                meaningful=True,
            )
        )  # fmt: skip
    return Effects(
        rows=rows, ticks=axis(low, high), zero=place_of(0.0), band_low=place_of(-margin),
        band_width=place_of(margin) - place_of(-margin), baseline=analysis.baseline.name, unit="nats",
    )  # fmt: skip


def sources(analysis: Analysis) -> Table:
    """Tokens that each arm read of every source, against the source's weight; empty for a single source."""
    listed = mapping(mapping(analysis.source.environment.get("data")).get("sources"))
    rows: list[list[Cell]] = []
    records: list[Json] = []
    for arm in analysis.arms if len(listed) > 1 else []:
        tokens = {s: _mean_of(analysis, arm.name, "tokens_by_source", s) for s in listed}
        epochs = {s: _mean_of(analysis, arm.name, "epochs_by_source", s) for s in listed}
        whole = sum(v for v in tokens.values() if v is not None)
        cells = [arm_cell(arm, bare=True)]
        for s in listed:
            seen, times = tokens[s], epochs[s]
            share = None if seen is None or not whole else seen / whole
            told = "" if share is None else f"{100 * share:.1f}\u202f%"
            passes = "" if times is None else f"{times:.2f} epochs"
            cells.append(Cell(numbers.short(seen), ", ".join(filter(None, (told, passes)))))
            weight = mapping(listed[s]).get("weight")
            records.append(
                {"arm": arm.name, "source": s, "weight": weight, "tokens": seen, "share": share, "epochs": times}
            )
        rows.append(cells)
    columns = [
        "Arm",
        *(f"{s}, weight {100 * (number(mapping(row).get('weight')) or 0):.3g}\u202f%" for s, row in listed.items()),
    ]
    notes = ["Tokens as means over seeds. Every prefix of the stream holds each source's weight to within one sample."]
    return Table("sources", "Data seen by source", columns, rows, records, notes=notes if rows else [])


def _mean_of(analysis: Analysis, arm: str, field: str, source: str) -> float | None:
    runs = next(a.done for a in analysis.arms if a.name == arm)
    seen = [v for run in runs if (v := number(mapping(run.record.get(field)).get(source))) is not None]
    return statistics.fmean(seen) if seen else None
