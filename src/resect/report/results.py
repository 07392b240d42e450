"""The results of a run, read back as the records that they were written from."""

from __future__ import annotations

from pathlib import Path

from resect import files
from resect.errors import InputError
from resect.files.folders import AGAIN, WORDS, kind_of
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
        raise _no_results(run)
    content = files.read_json(path)
    if not isinstance(content, dict) or not {"claims", "studies", "provenance"} <= set(content):
        raise _not_of_studies(run)
    results = files.read_as(path, Results, "result", fix=FIX)
    if not isinstance(results.provenance.get("seeds"), list):
        raise not_whole(run, "provenance.seeds: Input should be a list")
    return results


def _no_results(run: Path) -> InputError:
    """Return the message for a folder without results, and say what it is."""
    kind = kind_of(run)
    next_steps = {
        "audit": f"resect report {run} builds its page; audits are not put side by side",
        "sets": f"resect report --compare {run} puts its sets side by side",
        "unfinished run": AGAIN["unfinished run"].format(folder=run),
    }
    return InputError(
        f"{run} has no results.json",
        got=WORDS[kind] if run.is_dir() else "no such folder",
        allowed="the folder of a run, or of an audit; evaluations with --compare",
        fix=next_steps.get(kind, "give the folder of a run, or run the study first"),
    )


def _not_of_studies(run: Path) -> InputError:
    """Return the message for results that are not those of studies, and say whose they are."""
    kind = kind_of(run)
    comparable = kind in ("evaluation", "sets")
    return InputError(
        f"{run / NAME} is not the result of studies",
        got=WORDS[kind],
        allowed="the folder of a run; an evaluation with --compare",
        fix=f"resect report --compare {run} OTHER puts evaluations side by side; the numbers of "
        f"this one are in {run / NAME}"
        if comparable
        else "give the folder of a run of `resect study run`",
    )


def not_whole(run: Path, problem: str) -> InputError:
    """Return the error of results in which a field is wrong; `problem` names the field."""
    return InputError(f"{run / NAME} is not a whole result", got=problem, fix=FIX)
