"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, overload

import typer

from resect.cli.show import note
from resect.errors import InputError
from resect.records import DecodingMode, Format, Scope, Search, Unit

# Models and masks.
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file or Hub id[@rev].")]
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file or Hub id[@rev].")]
MaskFile = Annotated[Path, typer.Argument(metavar="MASK", help="A .mask.safetensors file.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Go on if a block weight is unknown.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Go on though the models differ; what is written says so.")
]

# What a cut has to show before it is written.
OfRun = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="Run that measured it: the card has its claims."),
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLAIM=VERDICT",
        help="Refuse unless the run says so of this mask: STUDY=supported, or 'STUDY: "
        "WORDS=supported'. Also what the run that made it requires; none waives that. Repeatable.",
    ),
]

# What is written.
MaskOutput = Annotated[Path, typer.Option("-o", "--output", help="FILE.mask.safetensors")]
NewFolder = Annotated[Path, typer.Option("-o", "--output", help="New folder to write.")]
RunFolder = Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")]

# What is scored, and what is cut.
PromptFormat = Annotated[Format, typer.Option(help="How prompts are put.")]
Skip = Annotated[int, typer.Option(min=0, help="Response tokens not scored.")]
Category = Annotated[str | None, typer.Option(help="Score this category alone.")]
ExampleLimit = Annotated[int | None, typer.Option(min=1, help="Most examples to score.")]
DrawSeed = Annotated[int, typer.Option(help="Seed of the draw that --limit makes.")]
TargetFraction = Annotated[float, typer.Option(help="Fraction of the target ranking, in (0, 1].")]
ProtectedFraction = Annotated[float, typer.Option(help="Fraction that is protected, in [0, 1].")]
RankScope = Annotated[Scope, typer.Option(help="Rank within tensors or over the model.")]
WholeUnit = Annotated[
    Unit, typer.Option(help="What is cut as a whole; all but weight need scores made with --dense.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Also rank again after so many parts.")]
Budget = Annotated[float, typer.Option(min=0, max=1, help="Largest relative drop of utility.")]

Columns = Annotated[
    str | None,
    typer.Option(
        metavar="OURS=THEIRS,...",
        help="What columns mean: prompt=question,completion=answer.text. Of all files of the "
        "command; FILE#prompt=question,... says it of one.",
    ),
]

# lm-eval tasks as utility.
Questions = Annotated[
    int | None,
    typer.Option(min=1, help="Most questions of each lm-eval task of --utility; else all."),
]
IncludePath = Annotated[
    Path | None, typer.Option(help="Folder with lm-eval tasks of your own, for --utility.")
]

# What is asked, and who judges.
PromptLimit = Annotated[int | None, typer.Option(min=1, help="Most prompts a probe.")]
BatchSize = Annotated[int, typer.Option(min=1)]
TogetherCuts = Annotated[
    int,
    typer.Option(
        "--together",
        min=1,
        help="Cuts that share each pass; numbers then differ by rounding. 1: exactly one by one.",
    ),
]
CheckedCuts = Annotated[
    int,
    typer.Option(
        "--check-together", min=0, help="Cuts asked alone as well, to count tokens that differ."
    ),
]
SearchName = Annotated[
    Search,
    typer.Option(
        "--search",
        help="full asks every cut of the grid everything; halving asks what the claims need.",
    ),
]
DecodingName = Annotated[
    DecodingMode,
    typer.Option(
        "--decoding",
        help="fast decodes side by side what a trial allows; exact is transformers' generate; "
        "continuous is fastest, 16 bits too, with tokens that can differ by rounding.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1)]
Temperature = Annotated[float, typer.Option(min=0, help="0 decodes greedily.")]
JudgeName = Annotated[
    str,
    typer.Option(help="Who decides: exact, keyword, strongreject, llm:RUBRIC@MODEL, fitted:FILE."),
]

# Runs.
Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Worker processes.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print cells, memory and time; do nothing.")
]


def category_of(text: str | None) -> str:
    """Return a category as an `Origin` has it, "" for all.

    Raises:
        InputError: It is given, and empty: an unset variable must not score everything.
    """
    if text == "":
        raise InputError("the category is empty", got="''", fix="name one, or leave --category out")
    return text or ""


@overload
def with_columns(spec: str, columns: str | None) -> str: ...


@overload
def with_columns(spec: None, columns: str | None) -> None: ...


@overload
def with_columns(spec: str | None, columns: str | None) -> str | None: ...


def with_columns(spec: str | None, columns: str | None) -> str | None:
    """Return a SPEC that says what its columns mean, unless it is a preset or says so itself."""
    from resect.data.load import takes_columns

    if spec is None or columns is None or not takes_columns(spec):
        return spec
    return f"{spec}#{columns}"


def sets_with(columns: str | None, **specs: str | None) -> dict[str, Any]:
    """Return each SPEC with what is said of its columns, by the name of its set."""
    return {name: with_columns(spec, columns) for name, spec in specs.items()}


def asking_with(
    batch_size: int, together: int, check_together: int, search: Search, decoding: DecodingMode
) -> dict[str, Any]:
    """Return how the variants of a run are asked, by the names of its request."""
    return {
        "batch_size": batch_size,
        "together": together,
        "check_together": check_together,
        "search": search,
        "decoding": decoding,
    }


def with_task(utility: str | None, questions: int | None, include_path: Path | None) -> str | None:
    """Return the SPEC of utility with the settings of its lm-eval tasks.

    Raises:
        InputError: It names no task and there are settings, or they cannot be read.
    """
    from resect.data.task import is_task, parse_task, with_settings

    folder = None if include_path is None else include_path.expanduser().absolute()
    settings = {"questions": questions, "include_path": folder}
    if utility is not None and is_task(utility):
        parse_task(utility)
        return with_settings(utility, settings)
    if any(value is not None for value in settings.values()):
        raise InputError(
            "--questions and --include-path are for lm-eval tasks",
            got=utility or "no --utility",
            allowed="--utility lm-eval:TASK",
        )
    return utility


def refuse_idle_columns(columns: str | None, *specs: str | None) -> None:
    """Refuse `--columns` where no SPEC has use for it.

    Raises:
        InputError: All of them say themselves what their columns mean, or it is not readable.
    """
    from resect.data.columns import parse_columns
    from resect.data.load import takes_columns

    if columns is None:
        return
    parse_columns(columns)
    given = [spec for spec in specs if spec is not None]
    if not any(map(takes_columns, given)):
        raise InputError(
            "--columns has nothing to name",
            got=", ".join(given) or "no set",
            allowed="a file of rows or a Hub set; presets, seeds and texts have theirs",
        )


def tell_of_gate(unknown: str) -> None:
    """Say what cannot be known of the run of a mask, if something cannot."""
    if unknown:
        note(f"{unknown}; name the folder with --run DIR")


def tell_of_links(model: str) -> None:
    """Say before any work which files of a checkpoint folder `resect prune` will not copy."""
    from resect.files.reading import links_out

    for path in links_out(Path(model).expanduser()):
        note(
            f"{path} is a link that leads out of its folder: it can be scored, and resect prune "
            "will refuse the folder until a copy stands there"
        )
