"""Commands on judges: judge fit, check, correct."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from resect.cli.eval import show_bounded, show_correction
from resect.cli.show import note, progress, say
from resect.errors import InputError

# As `evaluation.probes` has it, which is not loaded for a help text.
Goal = Literal["comply", "refuse"]
CHANCE = (
    "sensitivity and specificity are together no more than 1: the judge is no better than chance, "
    "and no rate of it can be corrected"
)
judge_app = typer.Typer(
    no_args_is_help=True, help="Judges: fit one on labelled replies, measure any, correct rates."
)

Labels = Annotated[
    list[Path],
    typer.Argument(
        metavar="LABELS...",
        help="Files of labelled replies: prompt, reply, label in [0, 1], perhaps category.",
    ),
]


@judge_app.command(
    "fit",
    epilog="Example: [bold]resect judge fit labels.jsonl -o harm.judge.json[/bold], then "
    "[bold]resect eval … --judge fitted:harm.judge.json[/bold]",
)
def fit(
    labels: Labels,
    output: Annotated[Path, typer.Option("-o", "--output", help="FILE.json to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Intact model whose hidden states may be read in place of n-grams."),
    ] = None,
    means: Annotated[
        Goal, typer.Option(help="What a label of 1 says: the reply complies, or refuses.")
    ] = "comply",
    seed: Annotated[int, typer.Option(help="Seed of the folds of cross-validation.")] = 0,
) -> None:
    """Fit a small classifier on labelled replies, with its error in cross-validation by prompt."""
    from resect.evaluation.judges.error import is_chance
    from resect.evaluation.judges.fitted_fit import FitRequest, fit_judge

    request = FitRequest(tuple(labels), model, means, seed)
    with progress("fitting") as update:
        fitted = fit_judge(request, output, update)
    show_bounded(
        "how the judge errs, cross-validated by prompt, with 95 % intervals", fitted.errors
    )
    rows = fitted.provenance.get("fitted_on")
    say(
        f"{output}: reads {'n-grams' if fitted.ngrams else 'hidden states'}, fitted on {rows} "
        f"replies, a hit from a probability of {fitted.threshold:g} on"
    )
    if is_chance(fitted.errors[0]):
        note(CHANCE)


@judge_app.command(
    "check",
    epilog="Example: [bold]resect judge check keyword labels.jsonl[/bold]; for machines "
    "[bold]resect --json judge check …[/bold]",
)
def check(
    judge: Annotated[
        str,
        typer.Argument(
            metavar="JUDGE",
            help="exact, keyword[:SET[+FILE]], strongreject, llm:RUBRIC@MODEL, fitted:FILE.",
        ),
    ],
    labels: Labels,
    means: Annotated[
        Goal | None,
        typer.Option(
            help="What a label of 1 says: comply, or refuse; else what the judge looks for."
        ),
    ] = None,
) -> None:
    """Measure a judge on labelled replies: sensitivity, specificity and AUROC, by category."""
    from resect.evaluation.check_judge import check_judge
    from resect.evaluation.labels import read_labels

    checked = check_judge(judge, read_labels(labels), means)
    show_bounded(f"how {judge} errs, with 95 % intervals", checked.rows)
    if checked.seen:
        note(
            f"{checked.seen} replies were left out: the judge was fitted on their prompts, and "
            "says more of them than of new ones"
        )
    say(f"{checked.judged} labelled replies were judged")
    if checked.chance:
        note(CHANCE)


@judge_app.command(
    "correct",
    epilog="Example: [bold]resect judge correct run --labels labels.jsonl[/bold]",
)
def correct(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of studies.")],
    labels: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Labels of some of the run's replies, drawn at random."),
    ] = None,
) -> None:
    """Correct the rates of a run for its judge's error, or by labels, and show it in its report."""
    from resect.evaluation.labels import read_labels
    from resect.files.locking import locked
    from resect.files.reading import read_json, refuse_links_out
    from resect.report import build_report
    from resect.report.results import read_results
    from resect.runs.config import load_config
    from resect.runs.judged import write_judge

    refuse_links_out(run)
    read_results(run)
    config = load_config(run / "config.yaml")
    known = read_labels(labels) if labels else None
    with locked(run):
        path = write_judge(config, run, known)
        if path is None:
            raise InputError(
                "nothing is known of the run's judge",
                got=config.evaluation.judge,
                allowed="a run with --judge fitted:FILE, or --labels FILE",
            )
        build_report(run)
    content = read_json(path)
    show_correction(content["errors"], content["corrected"], "")
    for line in content["notes"]:
        note(line)
    say(f"{run}/report.html")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(judge_app, name="judge")
