"""The report as one offline HTML file: no script, no request, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.report import numbers
from harness.report.analysis import Analysis, describe_unit
from harness.report.tables import Table

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(analysis: Analysis, tables: Sequence[Table], *, reproduce: str) -> str:
    """Render the page; every value passes through autoescape."""
    return _TEMPLATES.get_template("template.html").render(
        analysis=analysis,
        tables=tables,
        numbers=numbers,
        equal=describe_unit(analysis.unit),
        reproduce=reproduce,
    )
