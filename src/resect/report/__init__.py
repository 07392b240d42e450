"""The report: one offline HTML file from the records of a run; needs no torch.

`words` alone is wanted by every command, so what draws and renders is loaded when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resect.report.compare import build_comparison
    from resect.report.html import build_report

__all__ = ["build_comparison", "build_report"]


def __getattr__(name: str) -> object:
    """Load a public name."""
    if name == "build_comparison":
        from resect.report.compare import build_comparison

        return build_comparison
    if name == "build_report":
        from resect.report.html import build_report

        return build_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
