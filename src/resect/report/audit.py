"""An audit as one offline HTML file; reads `audit.json` alone."""

from __future__ import annotations

from pathlib import Path

import jinja2

from resect import files
from resect.errors import InputError, visible
from resect.files.reading import refuse_links_out
from resect.report.words import cell

SIGNS = {"untouched": "✓", "touched": "!", "reactivated": "✗"}


def build_audit_report(folder: str | Path) -> Path:
    """Write `audit.html` beside `audit.json`.

    Returns:
        Its path.

    Raises:
        InputError: The folder has no audit, or a broken one.
    """
    folder = Path(folder)
    refuse_links_out(folder)
    facts = files.read_json(folder / "audit.json")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resect.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "visible": visible}
    try:
        text = environment.get_template("audit.html").render(audit=facts, signs=SIGNS)
    except (jinja2.UndefinedError, TypeError) as error:
        raise InputError(f"{folder / 'audit.json'} is not a whole audit", got=str(error)) from error
    files.write_text(folder / "audit.html", text)
    return folder / "audit.html"
