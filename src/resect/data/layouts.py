"""Layouts of sets that are found by themselves, and one line that says which was.

Our own columns go first and need no line. A set that two layouts fit is refused: what its columns
mean is then for its user to say (`columns.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from resect.data.columns import (
    ASKED,
    BESIDE,
    MARK,
    Named,
    earlier_answers,
    map_row,
    parse_columns,
    refuse_nothing_named,
)
from resect.errors import InputError

logger = logging.getLogger(__name__)

LINE = "line"
MOST_NAMED = 6


class Layout(NamedTuple):
    """A way in which sets come.

    Attributes:
        title: What it is called.
        needs: Columns that tell it.
        names: Our name -> theirs, of which those beside `needs` may be missing.
    """

    title: str
    needs: tuple[str, ...]
    names: Mapping[str, str]


LAYOUTS = (
    Layout("messages", ("messages",), {"messages": "messages", "system": "system"}),
    Layout("ShareGPT", ("conversations",), {"messages": "conversations", "system": "system"}),
    Layout("messages", ("conversation",), {"messages": "conversation", "system": "system"}),
    Layout(
        "Alpaca",
        ("instruction", "output"),
        {"prompt": "instruction", "context": "input", "completion": "output", "system": "system",
         "history": "history"},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """Rows in our columns.

    Attributes:
        rows: The rows.
        said: What was found, in one line; "" for our own columns.
        bare: Whether they may lack completions, because the user named prompts alone.
    """

    rows: list[dict[str, object]]
    said: str = ""
    bare: bool = False


def split_columns(spec: str) -> Named:
    """Return a SPEC without what stands behind its #, and what that says of columns.

    Raises:
        InputError: What stands there is not readable.
    """
    place, mark, said = spec.partition(MARK)
    if not mark or "=" not in said:
        return Named(spec, None)
    return Named(place, parse_columns(said))


def read_columns(
    rows: list[dict[str, object]],
    named: Mapping[str, str] | None,
    source: str,
    *,
    prompts_only: bool = False,
) -> Reading:
    """Return rows in our columns, and say what was found.

    Args:
        rows: As they are in the file.
        named: What the user says of columns; None to find it out.
        source: The file, for messages.
        prompts_only: Whether prompts are enough.

    Raises:
        InputError: Several layouts fit, or a row does not fit what was found or named.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    names: Mapping[str, str]
    if named is not None:
        refuse_nothing_named(named, rows, source)
        title, names = "", _completed(named, columns)
    else:
        layout = _layout_of(columns, source, prompts_only=prompts_only)
        if layout is None:
            return _as_ours(rows, columns)
        title, names = layout.title, layout.names
    mapped = [
        map_row(row, names, f"{source} row {position}") for position, row in enumerate(rows, 1)
    ]
    if not prompts_only:
        _refuse_unanswered(mapped, names, source)
    said = f"{title or 'as told'}: {_sentence(names, columns, mapped)}"
    prompts = named is not None and not any(map(names.get, ("completion", "messages", "text")))
    return Reading(mapped, said, bare=prompts)


def _as_ours(rows: list[dict[str, object]], columns: Sequence[str]) -> Reading:
    """Return rows in our own columns, of which those beside the text may be in other letters."""
    loose = _loose(columns)
    renamed = {loose[name]: name for name in BESIDE if loose.get(name, name) != name}
    remarks = [f"{ours} = {theirs}" for theirs, ours in renamed.items()]
    unsure = [c for c in columns if c.strip().casefold() in BESIDE and c not in (*renamed, *BESIDE)]
    if unsure:
        remarks.append(f"not used: {', '.join(unsure)}")
    lines = [_passed_over(columns), f"columns: {'; '.join(remarks)}" if remarks else ""]
    if renamed:
        rows = [{renamed.get(name, name): cell for name, cell in row.items()} for row in rows]
    return Reading(rows, "; ".join(line for line in lines if line))


def _refuse_unanswered(
    mapped: Sequence[Mapping[str, object]], names: Mapping[str, str], source: str
) -> None:
    """Refuse conversations that ask and get no answer.

    Raises:
        InputError: A row has one.
    """
    if not names.get("messages"):
        return
    for position, row in enumerate(mapped, start=1):
        if not row["completion"]:
            raise InputError(
                f"{source} row {position}: {names['messages']!r} does not end with an answer",
                allowed="messages of which the last is the assistant's",
                fix="leave the row out, or elicit an answer with `resect data collect`",
            )


def lines_of(text: str) -> Reading:
    """Return the lines of a text as prompts; empty ones are none."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    said = (
        f"{len(lines):,} prompts, one a line; as one running text for perplexity it is "
        f"FILE{MARK}text=text"
    )
    return Reading([{"prompt": line} for line in lines], said, bare=True)


def _completed(named: Mapping[str, str], columns: Collection[str]) -> dict[str, str]:
    """Return names with those that need not be said, since a column has our own name."""
    whole = bool(named.get("messages") or named.get("text"))
    usual = BESIDE if whole else ("prompt", "completion", *BESIDE)
    return {name: name for name in usual if name in columns} | dict(named)


def _layout_of(columns: Collection[str], source: str, *, prompts_only: bool) -> Layout | None:
    """Return the one layout that fits; None for our own columns and for unknown ones.

    Raises:
        InputError: Several fit.
    """
    if {"prompt", "completion"} <= set(columns) or (prompts_only and "prompt" in columns):
        return None
    loose = _loose(columns)
    fits = [layout for layout in _all(loose, prompts_only) if set(layout.needs) <= loose.keys()]
    unsure = [name for name in ("prompt", "text") if name in loose and name not in _taken(fits)]
    if len(fits) > 1 or (fits and unsure):
        told = [_told(layout, loose) for layout in fits] + [f"{n}={loose[n]}" for n in unsure]
        raise InputError(
            f"{source} can be read in {len(told)} ways",
            got="columns " + ", ".join(columns),
            allowed="one of " + "; or ".join(f"--columns {text}" for text in told),
            fix="say which is meant",
        )
    if not fits:
        return None
    beside = {name: loose[name] for name in BESIDE if name in loose}
    names = {ours: loose[name] for ours, name in fits[0].names.items() if name in loose}
    return fits[0]._replace(names=names | beside)


def _all(loose: Collection[str], prompts_only: bool) -> Iterable[Layout]:
    """Yield the layouts that can be found, and our own columns by names written otherwise."""
    yield from LAYOUTS
    if "completion" in loose or prompts_only:
        needs = ("prompt", "completion") if "completion" in loose else ("prompt",)
        yield Layout("columns", needs, dict(zip(needs, needs, strict=True)))


def _loose(columns: Iterable[str]) -> dict[str, str]:
    """Return columns by their names without case and blanks, where that tells them apart."""
    by_name: dict[str, list[str]] = {}
    for column in columns:
        by_name.setdefault(column.strip().casefold(), []).append(column)
    return {
        name: name if name in same else same[0]
        for name, same in by_name.items()
        if name in same or len(same) == 1
    }


def _taken(fits: Iterable[Layout]) -> set[str]:
    return {name for layout in fits for name in layout.names.values()}


def _told(layout: Layout, loose: Mapping[str, str]) -> str:
    return ",".join(
        f"{ours}={loose[theirs]}" for ours, theirs in layout.names.items() if theirs in loose
    )


def _passed_over(columns: Sequence[str]) -> str:
    """Say which columns of another layout are not used beside our own."""
    others = [
        need for layout in LAYOUTS for need in layout.needs if set(layout.needs) <= {*columns}
    ]
    if "prompt" not in columns or not others:
        return ""
    ours = ", ".join(name for name in ("prompt", "completion") if name in columns)
    return f"read by {ours}; not used: {', '.join(others)}"


def _sentence(
    names: Mapping[str, str],
    columns: Collection[str],
    mapped: Sequence[Mapping[str, object]],
) -> str:
    """Return which column is what."""
    said = []
    if messages := names.get("messages"):
        said.append(f"prompt = all of {messages} but the answer that ends it, completion = that")
        count = sum(map(earlier_answers, mapped))
        if count:
            said.append(f"{count:,} of {len(mapped):,} rows have earlier answers, not scored")
    said += [
        f"{ours} = {names[ours]}"
        for ours in (*ASKED, "text")
        if names.get(ours) and not (messages and ours in ("prompt", "completion"))
    ]
    beside = [name for name in BESIDE if names.get(name)]
    if beside:
        said.append(", ".join(n if names[n] == n else f"{n} = {names[n]}" for n in beside))
    roots = {theirs if theirs in columns else theirs.partition(".")[0] for theirs in names.values()}
    unused = [name for name in columns if name not in roots]
    if unused:
        more = ", …" * (len(unused) > MOST_NAMED)
        said.append(f"not used: {', '.join(unused[:MOST_NAMED])}{more}")
    return "; ".join(said)
