"""What a run knows of its judge: how it errs, and the rates of the run corrected for that.

It stands in `judge.json` of the run, from which the report shows it; verdicts do not rest on it.
A run whose judge is not fitted has none, unless some of its replies are labelled.
"""

from __future__ import annotations

from pathlib import Path

from resect.evaluation.corrected import ASSUMED, BY_ERROR, corrected_rows, judge_error_rows
from resect.evaluation.judging import Answer, judgement_of, reply_of
from resect.evaluation.labels import Labels
from resect.evaluation.probes import find_probe
from resect.files.tables import read_parquet
from resect.files.writing import plain, write_json
from resect.runs.config import RunConfig
from resect.studies.cells import judged_records
from resect.studies.measurements import Row

FILE = "judge.json"


def write_judge(config: RunConfig, run: Path, labels: Labels | None = None) -> Path | None:
    """Write `judge.json`.

    Args:
        config: The run's configuration.
        run: Its folder; what is done of it counts.
        labels: Labels of some of the replies.

    Returns:
        Its path; None where nothing is known of the judge.

    Raises:
        InputError: The file of a fitted judge, or a record, cannot be read.
    """
    judge = config.evaluation.judge
    errors = judge_error_rows([judge])
    if not errors and labels is None:
        return None
    variants: dict[str, list[Answer]] = {}
    for path in judged_records(run):
        rows = read_parquet(path)
        name = _name(rows)
        if name in variants:
            name = f"{name} ({path.stem})"
        variants[name] = [
            Answer(reply_of(row), find_probe(row["probe"]), judgement_of(row)) for row in rows
        ]
    corrected = corrected_rows(judge, variants, labels, by_category=False)
    notes = [ASSUMED] if any(row["method"] == BY_ERROR for row in corrected) else []
    path = run / FILE
    write_json(path, plain({"errors": errors, "corrected": corrected, "notes": notes}))
    return path


def _name(rows: list[Row]) -> str:
    """Return what a record's variant is called."""
    if not rows:
        return "nothing"
    row = rows[0]
    name = f"{row['role']}, seed {row['seed']}, {row['cut_kind']}"
    name += f" {row['cut_target']}" if row["cut_target"] else ""
    name += f" {row['cut_category']}" if row["cut_category"] else ""
    name += f", q = {row['q']:g}" if row["q"] else ""
    return name + (", tuned" if row["tuning"] else "")
