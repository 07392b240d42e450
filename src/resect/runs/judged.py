"""What a run knows of its judge: how it errs, and the rates of the run corrected for that.

It stands in `judge.json` of the run, from which the report shows it. A run whose judge is not
fitted has none, unless some of its replies are labelled. Studies weigh rates that are corrected by
the error of a fitted judge (`judge_error`); on labels of the run's own replies no verdict rests.
"""

from __future__ import annotations

from pathlib import Path

from resect.errors import InputError
from resect.evaluation.corrected import (
    ALL,
    ASSUMED,
    BY_ERROR,
    corrected_rows,
    errors_in,
    judge_error_rows,
)
from resect.evaluation.judges.fitted import OUTCOMES, fitted_label, fitted_of
from resect.evaluation.judging import Answer, judgement_of, reply_of
from resect.evaluation.labels import Labels
from resect.evaluation.probes import PROBES, find_probe
from resect.files.tables import read_parquet
from resect.files.writing import plain, write_json
from resect.runs.config import RunConfig
from resect.studies.cells import judged_records
from resect.studies.judged import JudgeError
from resect.studies.measurements import Row
from resect.studies.weighing import percent

FILE = "judge.json"


def judge_error(config: RunConfig) -> JudgeError | None:
    """Return how the judge of a run errs, None where that is not known or nothing is judged.

    Raises:
        InputError: The file of a fitted judge cannot be read.
    """
    evaluation = config.evaluation
    fitted = None if evaluation.measure == "likelihood" else fitted_of(evaluation.judge)
    if fitted is None:
        return None
    goals = {name: probe.goal for name, probe in PROBES.items() if probe.judged == "configured"}
    hits = {name: "complied" if goal == "comply" else "refused" for name, goal in goals.items()}
    errors = errors_in(fitted.held_out, ALL)
    if isinstance(errors, str):
        unusable = f"No rate can be corrected: {errors}."
        return JudgeError(hits, {}, unusable, unusable)
    right, wrong = (
        sample.interval("").value or 0.0 for sample in (errors.sensitivity, errors.specificity)
    )
    errs = f"sensitivity {percent(right)}, specificity {percent(wrong)}"
    informed = (errors.sensitivity - (1 - errors.specificity)).interval("")
    unusable = ""
    if informed.low is None or informed.low <= 0:
        unusable = f"The judge may be no better than chance ({errs}): no rate can be corrected."
    rates = {
        name: {
            str(hit): errors,
            str(miss): errors.of_the_opposite(),
        }
        for name, goal in goals.items()
        for hit, miss in (OUTCOMES[fitted.means][goal],)
    }
    stated = (
        f"Rates of what the judge {evaluation.judge.partition(':')[0]} calls a hit are corrected "
        f"for its error on labelled replies ({errs}; Rogan and Gladen), with the doubt of both in "
        "every bound; the judge is taken to err alike in every category and after every cut."
    )
    return JudgeError(hits, rates, unusable, stated)


def refuse_another_judge(config: RunConfig, run: Path) -> None:
    """Refuse to go on with a run whose replies a fitted judge of another content has judged.

    Raises:
        InputError: It has, or the file of the judge cannot be read.
    """
    family, _, option = config.evaluation.judge.partition(":")
    if family != "fitted" or config.evaluation.measure == "likelihood":
        return
    label = fitted_label(option)
    for path in judged_records(run):
        judges = {row["judge"] for row in read_parquet(path)} - {None}
        fitted = sorted(name for name in judges if name.startswith(f"{family}:"))
        # The name of the file may be another now; its content is behind the @.
        if fitted and fitted[0].rpartition("@")[2] != label.rpartition("@")[2]:
            raise InputError(
                f"replies of {run} were judged by another content of the judge's file",
                got=f"{label} now, {fitted[0]} in {path.name}",
                allowed="one judge a run",
                fix="put the old file back, or start a new run with -o",
            )
        if fitted:
            return


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
