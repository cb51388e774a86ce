"""The report of a study: verdict first, then the evidence; HTML, Markdown, JSON and CSV from one analysis."""

from harness.report.publish import build_joined, build_report, summary_lines

__all__ = ["build_joined", "build_report", "summary_lines"]
