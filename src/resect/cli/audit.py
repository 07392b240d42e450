"""The command that audits a fine-tune: audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resect.cli.options import BatchSize, JudgeName, MaxNewTokens, NewFolder, PromptFormat
from resect.cli.show import note, progress, say, table

if TYPE_CHECKING:
    from resect.audit import Audit, Effects


def audit(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before: folder or id.")],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The model after, or a LoRA adapter of BASE.")
    ],
    output: NewFolder,
    mask: Annotated[Path | None, typer.Option(help="The harm set, made on BASE.")] = None,
    target: Annotated[
        str | None, typer.Option(help="SPEC of harmful answers: located, predicted, measured.")
    ] = None,
    preserve: Annotated[
        str | None, typer.Option(help="SPEC of benign text: protected, and the utility.")
    ] = None,
    q: Annotated[float, typer.Option(help="Fraction of the target ranking to locate.")] = 2e-3,
    p: Annotated[float, typer.Option(help="Fraction that is protected.")] = 2e-3,
    skip: Annotated[
        int, typer.Option(min=0, help="Answer tokens not scored; a prefill opens with as many.")
    ] = 3,
    format: PromptFormat = "chat",
    judge: JudgeName = "exact",
    limit: Annotated[int | None, typer.Option(min=1, help="Most examples a set.")] = 128,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: BatchSize = 16,
    fail_on: Annotated[
        Literal["touched", "reactivated"] | None,
        typer.Option(help="Exit with 3 if the verdict is this or worse; for CI."),
    ] = None,
) -> int:
    """Say whether a fine-tune touched the weights behind a harm, or brought the harm back."""
    from resect.audit import WORDS, AuditRequest, audit_models
    from resect.report.audit import build_audit_report

    request = AuditRequest(
        base=base,
        tuned=tuned,
        mask=mask,
        target=target,
        preserve=preserve,
        q=q,
        p=p,
        skip=skip,
        format=format,
        judge=judge,
        limit=limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    with progress("auditing") as update:
        result = audit_models(request, output, on_progress=update)
    _show(result)
    say(f"{build_audit_report(output)}")
    say(f"verdict: {result.verdict.word}")
    for reason in result.verdict.reasons:
        note(reason)
    failed = fail_on is not None and WORDS.index(result.verdict.word) >= WORDS.index(fail_on)
    return 3 if failed else 0


def _show(result: Audit) -> None:
    from resect.files.writing import plain

    table("where the change falls", plain(result.shares["model"]))
    if result.effects is not None:
        table("loss of whole harmful answers, nats a token", _parts(result.effects))
    table(
        "before and after",
        [
            {
                "measured": behaviour.name,
                "before": behaviour.before,
                "after": behaviour.after,
                "rise": behaviour.rise.value,
                "low": behaviour.rise.low,
                "high": behaviour.rise.high,
                "n": behaviour.n,
            }
            for behaviour in result.measured
        ],
    )


def _parts(effects: Effects) -> list[dict[str, object]]:
    """Return the measured parts of a change as rows."""
    rows: list[dict[str, object]] = [
        {"part": name, "change": change.value, "low": change.low, "high": change.high}
        for name, change in (
            ("the whole change", effects.whole),
            ("inside the harm set alone", effects.inside),
            ("all but that", effects.outside),
        )
    ]
    if effects.matched:
        lowest = {"part": "inside matched sets alone, the lowest", "change": min(effects.matched)}
        rows.append(lowest | {"low": None, "high": None})
    return rows


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="reactivated: harmful replies rose. touched: harmful answers became likelier, and "
        "the change inside the harm set alone goes that way too. docs/audit.md says how often that "
        "is wrong. Example: [bold]resect audit ./base ./tuned --target harm.jsonl "
        "--preserve benign.jsonl --fail-on reactivated -o audit[/bold]"
    )(audit)
