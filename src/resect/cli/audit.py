"""The command that audits a fine-tune: audit."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resect.cli.options import (
    BatchSize,
    Columns,
    JudgeName,
    MaxNewTokens,
    NewFolder,
    PromptFormat,
    refuse_idle_columns,
    with_columns,
)
from resect.cli.show import mode, note, progress, say, table

if TYPE_CHECKING:
    from resect.audit import Audit, Effects
    from resect.audit.rule import Word

Target = Annotated[
    str | None, typer.Option(help="SPEC of the behaviour: located, predicted, measured.")
]
Preserve = Annotated[
    str | None, typer.Option(help="SPEC of other text: protected, and compared with.")
]
Behaviour = Annotated[
    str, typer.Option(help="What the behaviour is called; else the name of TARGET's file.")
]
Matched = Annotated[
    int, typer.Option(min=1, help="Sets matched in size and magnitude; below 9 is undecided.")
]
Fraction = Annotated[
    float,
    typer.Option(help="Fraction of the target ranking to locate; 2e-3 suits a million weights."),
]
# Where no bar is shown, a log holds a stage this often at most.
SECONDS_BETWEEN_NOTES = 5.0


def audit(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before: folder or id.")],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The model after, or a LoRA adapter of BASE.")
    ],
    output: NewFolder,
    mask: Annotated[
        Path | None, typer.Option(help="The weights behind the behaviour, made on BASE.")
    ] = None,
    target: Target = None,
    preserve: Preserve = None,
    behaviour: Behaviour = "",
    q: Fraction = 2e-3,
    p: Annotated[float, typer.Option(help="Fraction that is protected.")] = 2e-3,
    skip: Annotated[
        int, typer.Option(min=0, help="Answer tokens not scored; a prefill opens with as many.")
    ] = 3,
    format: PromptFormat = "chat",
    judge: JudgeName = "exact",
    limit: Annotated[int | None, typer.Option(min=1, help="Most examples a set.")] = 128,
    matched: Matched = 19,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: BatchSize = 16,
    columns: Columns = None,
    fail_on: Annotated[
        Literal["touched", "reactivated"] | None,
        typer.Option(help="Exit with 3 if the verdict is this or worse, 4 if undecided; for CI."),
    ] = None,
) -> int:
    """Say whether a fine-tune touched the weights behind a behaviour, or brought it back."""
    from resect.audit import AuditRequest, audit_models
    from resect.report.audit import build_audit_report

    refuse_idle_columns(columns, target, preserve)
    request = AuditRequest(
        base=base,
        tuned=tuned,
        mask=mask,
        target=with_columns(target, columns),
        preserve=with_columns(preserve, columns),
        q=q,
        p=p,
        skip=skip,
        format=format,
        judge=judge,
        limit=limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        controls=matched,
        behaviour=behaviour,
    )
    stages: list[str] = []
    with progress("auditing", so_far=lambda: {"now": stages[-1]} if stages else {}) as update:
        result = audit_models(request, output, on_progress=update, on_stage=_teller(stages))
    _show(result, request.judge)
    say(f"{build_audit_report(output)}")
    say(f"verdict: {result.verdict.word}")
    for sentence in (*result.verdict.reasons, *result.notes):
        note(sentence)
    return _code(result.verdict.word, fail_on)


def _code(word: Word, fail_on: Word | None) -> int:
    """Return the exit code of a verdict; what is undecided passes no gate."""
    from resect.audit import WORDS

    if fail_on is None:
        return 0
    if word not in WORDS:
        return 4
    return 3 if WORDS.index(word) >= WORDS.index(fail_on) else 0


def _teller(stages: list[str]) -> Callable[[str], None]:
    """Return what keeps the stages of an audit, and prints some where no bar is shown."""
    start = time.perf_counter()
    last = [-math.inf]

    def tell(stage: str) -> None:
        stages.append(stage)
        now = time.perf_counter()
        shown = sys.stderr.isatty() or mode().machine
        if not shown and now - last[0] >= SECONDS_BETWEEN_NOTES:
            last[0] = now
            note(f"{now - start:6.0f} s  {stage}")

    return tell


def _show(result: Audit, judge: str) -> None:
    from resect.files.writing import plain

    table("where the change falls", plain(result.shares["model"]))
    if result.effects is not None:
        names = result.names
        title = f"change of the loss on {names.target}, nats a token"
        table(title, _parts(result.effects, names.preserve))
    table(
        "before and after" + ("" if mode().machine else f", replies scored by the {judge} judge"),
        [
            {
                "measured": behaviour.name,
                "before": behaviour.before,
                "after": behaviour.after,
                "rise": behaviour.rise.value,
                "low": behaviour.rise.low,
                "high": behaviour.rise.high,
                "n": behaviour.n,
                "cut off": behaviour.cut_off,
            }
            for behaviour in result.measured
        ],
    )


def _parts(effects: Effects, preserve: str) -> list[dict[str, object]]:
    """Return the measured parts of a change as rows."""
    parts = {
        "the whole change": effects.whole,
        f"the whole change, less that on {preserve}": effects.beyond,
        "inside the mask alone": effects.inside,
        "all but that": effects.outside,
        "outside of the prunable weights alone": effects.elsewhere,
    }
    rows: list[dict[str, object]] = [
        {"part": name, "change": change.value, "low": change.low, "high": change.high}
        for name, change in parts.items()
        if change is not None
    ]
    if effects.matched:
        lowest = {"part": "inside matched sets alone, the lowest", "change": min(effects.matched)}
        rows.append(lowest | {"low": None, "high": None})
    return rows


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="reactivated: replies that show the behaviour rose. touched: its answers became "
        "likelier, more so than those of PRESERVE, and the change inside the mask alone goes that "
        "way too. undecided: too little was measured. docs/audit.md says how often that is wrong. "
        "Example: [bold]resect audit ./base ./tuned --target harm.jsonl --preserve benign.jsonl "
        "--fail-on reactivated -o audit[/bold]"
    )(audit)
