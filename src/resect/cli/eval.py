"""The command that asks and judges: eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from resect.cli.options import (
    BatchSize,
    Columns,
    DecodingName,
    MaxNewTokens,
    NewFolder,
    PromptFormat,
    PromptLimit,
    Temperature,
    refuse_idle_columns,
    with_columns,
)
from resect.cli.show import mode, note, progress, say, table
from resect.errors import InputError

if TYPE_CHECKING:
    from resect.evaluation.evaluate import EvalRequest, Evaluation
    from resect.evaluation.rates import Rate
    from resect.records import Row

Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Folder, GGUF file or Hub id[@rev].")
]
Probes = Annotated[
    list[str] | None,
    typer.Option(
        help="generation, refusal, detection, recognition, explanation, utility, likelihood, "
        "perplexity."
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(help="SPEC for all probes, or PROBE=SPEC for one. Again for a further set."),
]
MaskFile = Annotated[Path | None, typer.Option(help="Weights to remove while asking.")]
Attack = Annotated[
    str,
    typer.Option(
        help="none, few_shot[:K], gcg, prefill[:K], finetune, finetune_full, jailbreak_tuning, "
        "ablate_refusal, ablate_direction, quantise, or several joined by +."
    ),
]
AttackData = Annotated[
    list[str] | None,
    typer.Option(help="ROLE=SPEC for an attack: target, refusal, preserve. Repeatable."),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        help="exact (the default), keyword[:SET[+FILE]], strongreject, llm:RUBRIC@MODEL, "
        "fitted:FILE."
    ),
]
Coherence = Annotated[
    str | None,
    typer.Option(
        metavar="FLOOR",
        help="Beyond nll=NATS,repetition=SHARE a reply is incoherent; none; else the judge's own.",
    ),
]
LabelFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help="Labels of some of the replies: rates are corrected by them."
    ),
]
Rejudge = Annotated[
    Path | None, typer.Option(help="Judge the replies stored in this folder; needs no MODEL.")
]
Window = Annotated[int | None, typer.Option(min=2, help="perplexity: tokens a window.")]
Stride = Annotated[int | None, typer.Option(min=1, help="perplexity: tokens between windows.")]
Force = Annotated[
    bool, typer.Option("--force", help="Cut at a mask's places in another model; recorded.")
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with local copies of preset sets.")]
Backend = Annotated[
    str,
    typer.Option(
        metavar="BACKEND",
        help="hf; vllm, or vllm:PYTHON of an environment with vLLM, starts an engine of it; "
        "openai:URL asks a server on this machine.",
    ),
]
Remote = Annotated[
    bool, typer.Option("--allow-remote", help="Let a --backend on another machine be asked.")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Show how sets and variants differ, with intervals.")
]


def evaluate(
    output: NewFolder,
    model: Model = None,
    probe: Probes = None,
    data: Data = None,
    mask: MaskFile = None,
    attack: Attack = "none",
    attack_data: AttackData = None,
    judge: Judges = None,
    rejudge: Rejudge = None,
    coherence: Coherence = None,
    labels: LabelFiles = None,
    format: PromptFormat = "chat",
    limit: PromptLimit = None,
    max_new_tokens: MaxNewTokens = 256,
    batch_size: BatchSize = 16,
    temperature: Temperature = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="Sampled replies a prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the sampled replies.")] = 0,
    decoding: DecodingName = "fast",
    window: Window = None,
    stride: Stride = None,
    data_dir: DataDir = None,
    columns: Columns = None,
    backend: Backend = "hf",
    allow_remote: Remote = False,
    force: Force = False,
    compare: Compare = False,
) -> None:
    """Put probes to a model, intact and cut; print rates, or mean scores, with 95 % intervals."""
    from resect.evaluation.evaluate import EvalRequest

    _refuse_unfit(columns, [*(data or ()), *(attack_data or ())])
    request = EvalRequest(
        model=model or "",
        mask=mask,
        probes=tuple(probe or ()),
        data=_with_columns(data, columns),
        attack=attack,
        attack_data=_with_columns(attack_data, columns),
        judges=tuple(judge or ["exact"]),
        format=format,
        limit=limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        samples=samples,
        seed=seed,
        decoding=decoding,
        window=window,
        stride=stride,
        data_dir=data_dir,
        backend=backend,
        allow_remote=allow_remote,
        force=force,
        coherence=coherence,
        labels=tuple(labels or ()) or None,
    )
    _carry_out(request, rejudge, output, compare=compare)


def _carry_out(request: EvalRequest, rejudge: Path | None, output: Path, *, compare: bool) -> None:
    if rejudge is not None:
        _judge_again(rejudge, request, output, compare=compare)
    else:
        _evaluate(request, output, compare=compare)


def _spec_of(entry: str) -> str:
    """Return the SPEC of `NAME=SPEC` or of a bare one; a # stands behind its beginning."""
    name, equals, spec = entry.partition("=")
    return spec if equals and name.isidentifier() else entry


def _with_columns(entries: list[str] | None, columns: str | None) -> tuple[str, ...]:
    return tuple(
        entry.removesuffix(spec := _spec_of(entry)) + with_columns(spec, columns)
        for entry in entries or ()
    )


def _evaluate(request: EvalRequest, output: Path, *, compare: bool) -> None:
    from resect.evaluation.sets import evaluate_sets, split_sets

    if not (request.model and request.probes and request.data):
        raise InputError("eval needs a MODEL, a --probe and --data", fix="or give --rejudge DIR")
    if compare and request.mask is None and len(split_sets(request)) < 2:
        raise InputError(
            "there is nothing to compare",
            got="one set and one variant",
            allowed="--data for two sets or more, or --mask for two variants",
            fix="put evaluations side by side with resect report --compare DIR DIR",
        )
    with progress("evaluating") as update:
        evaluations = evaluate_sets(request, output, on_progress=update)
    for name, evaluation in evaluations.items():
        _show(evaluation, output / name, name)
    _show_differences(output, shown=compare)


def _judge_again(source: Path, request: EvalRequest, output: Path, *, compare: bool) -> None:
    from resect.evaluation.evaluate import rejudge

    if compare and not (source / "records" / "cut.parquet").is_file():
        raise InputError(
            "there is nothing to compare",
            got=f"one variant in {source}",
            allowed="an evaluation that was made with --mask",
            fix="put evaluations side by side with resect report --compare DIR DIR",
        )
    evaluation = rejudge(
        source, request.judges, output, coherence=request.coherence, labels=request.labels
    )
    _show(evaluation, output)
    _show_differences(output, shown=compare)


def _refuse_unfit(columns: str | None, entries: list[str]) -> None:
    """Refuse several processes, and names of columns that no set takes."""
    from resect.machine.processes import refuse_processes

    refuse_idle_columns(columns, *map(_spec_of, entries))
    refuse_processes(
        "resect eval",
        "leave torchrun out, and ask a server of several GPUs (--backend), or split cells: "
        "resect study run FILE -j N, --launcher slurm or --shard i/n",
    )


def _show(evaluation: Evaluation, output: Path, name: str = "") -> None:
    from resect.evaluation.probes import PROBES

    of_set = f"{name}: " if name else ""
    judged = [row for row in evaluation.rates if PROBES[row["probe"]].judged != "never"]
    rows = judged if mode().machine else for_readers(judged)
    table(f"{of_set}rates with 95 % intervals", rows)
    table(
        f"{of_set}likelihood of the texts as they stand, nats a token",
        [
            # What no judge looks at has neither a rate nor unscored replies.
            {"probe": row["probe"], "variant": row["variant"]}
            | {"texts": row["scored"] + row["unscored"], "nll": row["nll"], "kl": row["kl"]}
            | {key: row[key] for key in ("perplexity", "perplexity_low", "perplexity_high")}
            for row in evaluation.rates
            if row not in judged
        ],
    )
    show_correction(evaluation.judge_errors, evaluation.corrected, of_set)
    table(f"{of_set}agreement of judges", evaluation.agreement)
    for warning in evaluation.notes:
        note(of_set + warning)
    say(f"{output}/results.json")


def show_correction(
    errors: Sequence[Mapping[str, object]], corrected: Sequence[Mapping[str, object]], of_set: str
) -> None:
    """Show how fitted judges err, and rates that are corrected for it; nothing without them."""
    if errors or corrected:
        show_bounded(f"{of_set}how the judge errs, with 95 % intervals", errors)
        show_bounded(f"{of_set}rates corrected for it, with 95 % intervals", corrected)


def show_bounded(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Show rows with their bounds in brackets behind each value; for machines as they are."""
    from resect.report.judge import shape_judge

    if mode().machine or not rows:
        table(title, rows)
        return
    judges = {str(row.get("judge", "")) for row in rows} - {""}
    if len(judges) == 1:
        # A path in every row leaves the numbers no room.
        title = f"{title}: {judges.pop()}"
        rows = [{key: value for key, value in row.items() if key != "judge"} for row in rows]
    shown = shape_judge(title, [cast("Row", row) for row in rows])
    headings = [column.heading for column in shown.columns]
    table(title, [dict(zip(headings, texts, strict=True)) for texts in shown.rows])


def for_readers(rates: Sequence[Rate]) -> list[Mapping[str, object]]:
    """Return rows with the name of what they hold, and the exact rate where it is another number.

    A mean score of graded judgements is no share of replies, so it is not called a rate.
    """
    graded = any(row["graded"] for row in rates)
    names = {"rate": "mean score"} if graded else {}
    left_out = {"graded"} | (set() if graded else {"exact_rate", "exact_low", "exact_high"})
    return [
        {
            names.get(key, key.replace("_", " ")): value
            for key, value in row.items()
            if key not in left_out
        }
        for row in rates
    ]


def _show_differences(output: Path, *, shown: bool) -> None:
    if not shown:
        return
    from resect.evaluation.differences import arms_of, differences
    from resect.files.writing import write_json

    rows = differences(arms_of([output]))
    table("differences, with 95 % intervals", rows)
    write_json(output / "differences.json", {"differences": rows})
    say(f"{output}/differences.json")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "eval",
        epilog="Example: [bold]resect eval ./my-model --mask harm.mask.safetensors "
        "--probe generation --attack prefill:10 --data harm.jsonl -o eval[/bold]",
    )(evaluate)
