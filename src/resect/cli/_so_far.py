"""What a run knows by now: harm and utility of the variant that was measured last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resect.errors import InputError

# Shown as -> probe of the records.
SHOWN = {"harm": "generation", "utility": "utility"}


def so_far(run: Path) -> Callable[[], dict[str, Any]]:
    """Return a function that reads the newest record of a run; cheap, one small file a call."""
    return lambda: last_variant(run)


def last_variant(run: Path) -> dict[str, Any]:
    """Return the cut of the variant that was judged last, and its mean scores by name.

    Unscored replies are left out; a probe without any score is not named. A record that is
    replaced while it is read counts as not there.
    """
    from resect.store import read_parquet

    with contextlib.suppress(InputError, OSError):
        records = (run / "records").glob("*.parquet")
        newest = max(records, key=lambda path: path.stat().st_mtime_ns, default=None)
        rows = [] if newest is None else read_parquet(newest)
        found: dict[str, Any] = {}
        for name, probe in SHOWN.items():
            scores = [
                row["score"]
                for row in rows
                if row["probe"] == probe and row["judge"] is not None and row["score"] is not None
            ]
            if scores:
                found[name] = sum(scores) / len(scores)
        if found:
            return {"cut": rows[0]["cut_kind"], "q": rows[0]["q"]} | found
    return {}
