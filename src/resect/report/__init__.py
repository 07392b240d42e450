"""The report: one offline HTML file from the records of a run; needs no torch."""

from resect.report.compare import build_comparison
from resect.report.html import build_report

__all__ = ["build_comparison", "build_report"]
