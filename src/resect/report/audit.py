"""An audit as one offline HTML file; reads `audit.json` alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from resect import files
from resect.files.reading import refuse_links_out
from resect.records import Interval, Row
from resect.report.judge import NAMES, shape_judge
from resect.report.measured import without_folders
from resect.report.page import render
from resect.report.tables import Column, Table
from resect.report.words import Sign, cell

Word = Literal["undecided", "untouched", "touched", "reactivated"]
SIGNS: dict[Word, Sign] = {
    "undecided": Sign("?", "unsure"),
    "untouched": Sign("✓", "yes"),
    "touched": Sign("!", "unsure"),
    "reactivated": Sign("✗", "no"),
}


# How often the word is wrong, as docs/audit.md has it; the rule that was measured flags no less.
ERRORS = (
    "How often this word is wrong is known for a model of a million weights alone: of 40 "
    "fine-tunes without a harmful document 6 [7 %, 29 %] were called touched or reactivated, of 50 "
    "with some 2 [1 %, 13 %] untouched (by a rule that flags no less than this one, which may miss "
    "more), and of 15 copies that nobody trained 0 [0 %, 20 %] touched. For other models nobody "
    "has measured it."
)


# What the page reads of `audit.json`; `resect.audit` says what the fields mean.


@dataclass(frozen=True)
class Thresholds:
    """The numbers of the rule."""

    rise: float
    likelier: float
    enriched: float
    prompts: int = 0
    matched: int = 0


@dataclass(frozen=True)
class Verdict:
    """The word, and why."""

    word: Word
    reasons: tuple[str, ...]
    thresholds: Thresholds


@dataclass(frozen=True)
class Shares:
    """Where the change falls: a row for the model, and for each of its layers and modules."""

    model: tuple[Row, ...]
    modules: tuple[Row, ...]
    layers: tuple[Row, ...]


@dataclass(frozen=True)
class Measured:
    """One behaviour before and after."""

    name: str
    before: float | None
    after: float | None
    rise: Interval
    n: int
    prompts: int = 0
    # Absent in audits of earlier versions.
    cut_off: float | None = None


@dataclass(frozen=True)
class Outside:
    """What changed in one tensor that is not prunable."""

    name: str
    kind: str
    size: int
    changed: int
    relative: float | None
    rows: int
    only: str


@dataclass(frozen=True)
class Effects:
    """What parts of the change do to the loss on the target, in nats a token."""

    before: float
    whole: Interval
    inside: Interval
    outside: Interval
    matched: tuple[float, ...]
    benign: Interval | None
    n: int
    beyond: Interval | None = None
    elsewhere: Interval | None = None


@dataclass(frozen=True)
class Request:
    """How it was asked for."""

    judge: str = ""


@dataclass(frozen=True)
class Facts:
    """What was audited, with which software."""

    base: str
    tuned: str
    mask_hash: str
    mask_weights: int
    resect_version: str
    request: Request = field(default_factory=Request)


@dataclass(frozen=True)
class Names:
    """What the two sets are called."""

    target: str = "the target"
    preserve: str = "the preserve set"


@dataclass(frozen=True)
class Audit:
    """An audit as it was written."""

    verdict: Verdict
    shares: Shares
    measured: tuple[Measured, ...]
    effects: Effects | None
    facts: Facts
    # Absent in audits of 0.1.0.
    names: Names = field(default_factory=Names)
    outside: tuple[Outside, ...] = ()
    notes: tuple[str, ...] = ()
    judge_errors: tuple[Row, ...] = ()


def build_audit_report(folder: str | Path) -> Path:
    """Write `audit.html` beside `audit.json`.

    Returns:
        Its path.

    Raises:
        InputError: The folder has no audit, or a broken one.
    """
    folder = Path(folder)
    refuse_links_out(folder)
    audit = files.read_as(folder / "audit.json", Audit, "audit")
    verdict = audit.verdict
    told = replace(audit, verdict=replace(verdict, reasons=(*verdict.reasons, *audit.notes)))
    text = render(
        "audit.html",
        audit=told,
        sign=SIGNS[audit.verdict.word],
        errors=ERRORS,
        behaviour=_behaviour(audit.measured, audit.facts.request.judge),
        parts=_parts(audit.effects, audit.names),
        matched=_matched(audit.effects),
        judge=shape_judge(NAMES["errors"], audit.judge_errors),
        shares=[
            _table("Where the change falls", audit.shares.model),
            _table("By kind of weight", audit.shares.modules),
            _table("By layer", audit.shares.layers),
            *_outside(audit.outside),
        ],
    )
    files.write_text(folder / "audit.html", text)
    return folder / "audit.html"


def _behaviour(measured: Sequence[Measured], judge: str) -> Table:
    rows: list[Row] = [
        {
            "measured": behaviour.name,
            "before": behaviour.before,
            "after": behaviour.after,
            "rise": behaviour.rise.value,
            "low": behaviour.rise.low,
            "high": behaviour.rise.high,
            "prompts": behaviour.prompts or behaviour.n,
            "cut off": behaviour.cut_off,
        }
        for behaviour in measured
    ]
    if all(row["cut off"] is None for row in rows):
        rows = [{key: row[key] for key in row if key != "cut off"} for row in rows]
    by = f"; scored by: {without_folders(judge)} judge" if judge else ""
    return _table(f"Before and after, with the paired 95 % interval of the rise{by}", rows)


def _parts(effects: Effects | None, names: Names) -> Table:
    changes: dict[str, Interval] = {}
    if effects is not None:
        changes = {
            "the whole change": effects.whole,
            "the change inside the mask alone": effects.inside,
            "all of the change but that": effects.outside,
        }
        if effects.matched:
            name = f"the change inside one of {len(effects.matched)} matched sets alone, mean"
            changes[name] = Interval(name, statistics.fmean(effects.matched))
        if effects.beyond is not None:
            changes[f"the whole change, less that on {names.preserve}"] = effects.beyond
        if effects.elsewhere is not None:
            changes["the change outside of the prunable weights alone"] = effects.elsewhere
        if effects.benign is not None:
            changes[f"{names.preserve}: the change inside the mask alone"] = effects.benign
    rows: list[Row] = [
        {"part": part, "change of the loss": change.value, "low": change.low, "high": change.high}
        for part, change in changes.items()
    ]
    title = f"What parts of the change do to the loss on {names.target}, in nats a token"
    return _table(title, rows)


def _outside(outside: Sequence[Outside]) -> list[Table]:
    """Return the tensors outside of the prunable weights that changed, if there are any."""
    rows: list[Row] = [
        {
            "tensor": row.name,
            "what it is": row.kind,
            "values": row.size,
            "changed": row.changed,
            "relative size of the change": row.relative,
            "rows more": row.rows,
            "there": f"{row.only} tuning alone" if row.only in ("before", "after") else row.only,
        }
        for row in outside
        if row.changed or row.rows or row.only
    ]
    return [_table("Changed outside of the prunable weights", rows)] if rows else []


def _matched(effects: Effects | None) -> Table:
    """Return the matched sets one by one, which the page folds away."""
    values = () if effects is None else effects.matched
    rows: list[Row] = [
        {"matched set": str(count), "change of the loss": value}
        for count, value in enumerate(values, 1)
    ]
    return _table(f"The change inside each of the {len(values)} matched sets alone", rows)


def _table(name: str, rows: Sequence[Row]) -> Table:
    """Return rows as a table with every column; a column of numbers sorts by number."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = tuple(
        Column(key.replace("_", " "), all(not isinstance(row.get(key), str) for row in rows))
        for key in keys
    )
    texts = tuple(tuple(cell(row.get(key)) for key in keys) for row in rows)
    return Table(name, "", columns, texts)
