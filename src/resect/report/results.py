"""The results of a run, read back as the records that they were written from."""

from __future__ import annotations

from pathlib import Path

from resect import files
from resect.errors import InputError
from resect.files.reading import refuse_links_out
from resect.records import Results

NAME = "results.json"
FIX = "write it again with `resect study run ... --resume`"


def read_results(run: Path) -> Results:
    """Read `results.json` of a run.

    Raises:
        InputError: There is none, a field of it is missing or holds something else, or the folder
            has links that lead out.
    """
    refuse_links_out(run)
    path = run / NAME
    if not path.is_file():
        raise InputError(
            f"{run} has no results.json", fix="give the folder of a run, or run the study first"
        )
    content = files.read_json(path)
    if not isinstance(content, dict) or not {"claims", "studies", "provenance"} <= set(content):
        raise InputError(
            f"{path} is not the result of studies",
            fix="give the folder of a run of `resect study run`",
        )
    results = files.read_as(path, Results, "result", fix=FIX)
    if not isinstance(results.provenance.get("seeds"), list):
        raise not_whole(run, "provenance.seeds: Input should be a list")
    return results


def not_whole(run: Path, problem: str) -> InputError:
    """Return the error of results in which a field is wrong; `problem` names the field."""
    return InputError(f"{run / NAME} is not a whole result", got=problem, fix=FIX)
