"""How scores, differences and costs are written for people: labels, units, as many digits as the spread supports."""

from __future__ import annotations

import math

from harness.units import Unit, decimal, format_amount

_WORDS = {"mlm": "MLM", "clm": "Next-token", "readout": "Readout", "probe": "Probe", "glue": "GLUE"}
BITS = "bits_per_byte"
MINUS = "\N{MINUS SIGN}"


def label(metric: str) -> str:
    """ "readout.loss" → "Readout loss", "probe.package" → "Probe: package", "domain.code.loss" → "Loss on code"."""
    if metric.endswith(BITS):
        return "Bits per byte"
    head, _, tail = metric.partition(".")
    if head == "domain":
        name, _, kind = tail.rpartition(".")
        return f"{kind.capitalize()} on {name}"
    if not tail:
        return head.replace("_", " ").capitalize()
    word = _WORDS.get(head, head.replace("_", " ").capitalize())
    tail = tail.replace("_", " ")
    return f"{word}: {tail}" if head in ("probe", "glue") else f"{word} {tail}"


def percent(metric: str) -> bool:
    """True where a score is a share of correct answers, printed in per cent."""
    return metric.endswith("accuracy") or metric.startswith("probe.")


def unit(metric: str) -> str:
    """The unit of a difference: nats of a loss, bits of bits per byte, percentage points, or points."""
    if metric.endswith(BITS):
        return "bits"
    return "nats" if metric.endswith("loss") else "points"


def _scale(metric: str) -> float:
    return 100.0 if percent(metric) or metric.startswith("glue.") else 1.0


def _decimals(metric: str, spread: float | None) -> int:
    """Two significant digits of the spread, and never fewer than the metric's usual digits."""
    usual = 1 if _scale(metric) == 100 else 3
    if not spread or not math.isfinite(spread):
        return usual
    return min(6, max(usual, 1 - math.floor(math.log10(abs(spread) * _scale(metric)))))


def fixed(value: float, decimals: int) -> str:
    """A decimal number with a real minus sign, and no minus before zero; ties away from zero."""
    text = decimal(value, decimals)
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def score(value: float | None, metric: str, *, spread: float | None = None) -> str:
    """A score in its own unit, "4.215" or "31.4 %"; a dash where there is none."""
    if value is None:
        return "–"
    text = fixed(value * _scale(metric), _decimals(metric, spread))
    return f"{text}\u202f%" if percent(metric) else text


def amount_of(value: float, metric: str, *, spread: float | None = None) -> str:
    """An unsigned size of a difference without its unit."""
    return fixed(abs(value) * _scale(metric), _decimals(metric, spread))


def signed(value: float | None, metric: str, *, spread: float | None = None) -> str:
    """A difference with its sign, without its unit; a dash where there is none."""
    if value is None:
        return "–"
    text = fixed(value * _scale(metric), _decimals(metric, spread))
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def interval(low: float | None, high: float | None, metric: str, *, signs: bool = False) -> str:
    """ "4.10 to 4.33"; a dash where there is none."""
    if low is None or high is None:
        return "–"
    spread = (high - low) / 2
    write = signed if signs else score
    return f"{write(low, metric, spread=spread)} to {write(high, metric, spread=spread)}"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(value: float | None) -> str:
    """An integer with thin thousands separators."""
    return "–" if value is None else f"{round(value):,}".replace(",", "\u202f")


def short(value: float | None) -> str:
    """A large count in three significant digits: "3.28 M"."""
    if value is None:
        return "–"
    scale, name = next(((s, n) for s, n in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= s), (1, ""))
    return f"{value / scale:.3g}\u202f{name}".strip()


def size(value: float | None) -> str:
    """Bytes in three significant digits, decimal: "3.89 MB"."""
    if value is None:
        return "–"
    scale, name = next(((s, n) for s, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= s), (1, "B"))
    return f"{value / scale:.3g}\u202f{name}"


def cost(value: float | None, unit_name: str | None) -> str:
    """An amount in a budget unit's human scale; a plain number for a unit this version does not know."""
    if value is None:
        return "–"
    try:
        return format_amount(value, Unit(unit_name or ""))
    except ValueError:
        return f"{value:.4g} {unit_name or ''}".strip()


def ratio(value: float) -> str:
    """ "1.61×", with fewer digits where they mean nothing."""
    return f"{decimal(value, 2)}×" if value < 10 else f"{value:,.0f}×"
