"""What a user says of the columns of a set: `prompt=question,completion=answer.text`.

It stands behind a SPEC after a #, as in `harm.jsonl#prompt=question`, so that a configuration, a
record and a replay hold it too; the option `--columns` puts it there. A dot reaches into a nested
value (`answer.text`) or a list (`answers.0`), if no column has the whole name. What is not named
keeps the name that it has here, and `category=` with nothing behind leaves a column out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from resect.data.messages import Turn, content_text, turns_of
from resect.errors import InputError

MARK = "#"
# Says what a set is, and beside it.
ASKED = ("prompt", "context", "completion", "system", "history")
WHOLE = ("messages", "text")
BESIDE = ("id", "category", "split", "key", "prefix_tokens", "tools")
NAMES = (*ASKED, *WHOLE, *BESIDE)
EXAMPLE = "prompt=question,completion=answer.text"
# What other sets call a prompt and a completion, for a hint; nothing is read by it.
_LIKELY = {
    "prompt": ("question", "query", "instruction", "input", "request", "goal"),
    "completion": ("response", "answer", "output", "chosen", "reply", "target"),
}


class Named(NamedTuple):
    """A SPEC without what it says of columns, and that: our name -> theirs; None if nothing."""

    place: str
    columns: dict[str, str] | None


def parse_columns(text: str) -> dict[str, str]:
    """Return what `prompt=question,completion=answer.text` says, our name -> theirs.

    Raises:
        InputError: It is not of this form, or names cannot stand together.
    """
    names: dict[str, str] = {}
    for entry in text.split(","):
        ours, equals, theirs = (word.strip() for word in entry.partition("="))
        if not equals or ours not in NAMES or ours in names:
            raise InputError(
                "cannot read what the columns mean",
                got=repr(entry) + (" again" if ours in names else ""),
                allowed=", ".join(f"{name}=COLUMN" for name in NAMES),
                fix=f"for instance --columns {EXAMPLE}",
            )
        names[ours] = theirs
    beside = {"messages": {"messages", "system"}, "text": {"text"}}
    for whole in filter(names.get, WHOLE):
        if {name for name in (*ASKED, *WHOLE) if names.get(name)} - beside[whole]:
            raise InputError(
                f"{whole!r} says all of a row, so nothing else says what is asked or answered",
                got=text,
                allowed="prompt and completion, or messages, or text",
            )
    return names


def refuse_nothing_named(
    names: Mapping[str, str], rows: Sequence[Mapping[str, object]], where: str
) -> None:
    """Refuse names of which a set has none.

    Raises:
        InputError: A named column is in no row, or a path with dots leads to nothing in any.
    """
    present = list(dict.fromkeys(name for row in rows for name in row))
    for ours, theirs in names.items():
        if not theirs or theirs in present:
            continue
        # A row without what is asked or answered is refused by its number.
        by_row = ours in ("prompt", "completion") and theirs.partition(".")[0] in present
        if not by_row and all(_value(row, theirs) is None for row in rows):
            raise InputError(
                f"{where} has no column {theirs!r}, which was named for {ours!r}",
                got="columns " + ", ".join(present),
                fix="name a column that is there; sets of one command that differ have it behind "
                f"the file each: FILE{MARK}{ours}=COLUMN",
            )


def hint(columns: Iterable[str]) -> str:
    """Return what could be meant by columns of other names, as an option to copy."""
    present = {name.strip().casefold(): name for name in columns}
    said = []
    for ours, likely in _LIKELY.items():
        theirs = next((present[name] for name in (ours, *likely) if name in present), None)
        if theirs is not None:
            said.append(f"{ours}={theirs}")
    return f"--columns {','.join(said) or EXAMPLE}"


def map_row(row: Mapping[str, object], names: Mapping[str, str], where: str) -> dict[str, object]:
    """Return a row in our columns.

    Args:
        row: As it is in the file.
        names: Our name -> theirs, "" for what is left out.
        where: File and row, for messages.

    Raises:
        InputError: A value cannot be what it is named for.
    """
    values = {ours: _value(row, theirs) for ours, theirs in names.items() if theirs}
    mapped = {ours: values[ours] for ours in BESIDE if values.get(ours) not in (None, "")}
    if str(mapped.get("tools")).strip() == "[]":
        del mapped["tools"]
    if "category" in mapped:
        mapped["category"] = _category(mapped["category"])
    if names.get("text"):
        return mapped | {"text": values["text"]}
    if names.get("messages"):
        turns = turns_of(_unpacked(values["messages"]) or (), where, names["messages"])
        return mapped | _parted(_with_system(turns, values.get("system"), where))
    prompt = _cell(values.get("prompt"), f"{where}: {names.get('prompt')!r}")
    context = _cell(values.get("context"), f"{where}: {names.get('context')!r}")
    if context and not isinstance(context, str):
        raise InputError(
            f"{where}: the context is no text",
            got=f"{names.get('context')!r} is {context!r}"[:80],
            allowed="a text that stands behind the prompt",
            fix="name the text in it: COLUMN.NAME, or COLUMN.0.NAME in a list",
        )
    before = _history(values.get("history"), where)
    if isinstance(prompt, str):
        if isinstance(context, str) and context.strip():
            prompt = f"{prompt}\n\n{context}"
        if (before or values.get("system")) and prompt:
            turns = (*before, Turn("user", prompt))
            prompt = _as_rows(_with_system(turns, values.get("system"), where))
    elif context or before or values.get("system"):
        raise InputError(
            f"{where}: messages stand where a text has to be",
            got=f"{names['prompt']!r} beside a context, a system text or a history",
            fix=f"write all into the messages, and name them: {MARK}messages=COLUMN",
        )
    completion = _cell(values.get("completion"), f"{where}: {names.get('completion')!r}")
    return mapped | {"prompt": prompt, "completion": completion}


def earlier_answers(mapped: Mapping[str, object]) -> bool:
    """Return whether a prompt holds answers, which are not scored."""
    prompt = mapped.get("prompt")
    return isinstance(prompt, list) and any(turn["role"] == "assistant" for turn in prompt)


def _value(row: Mapping[str, object], name: str) -> object:
    """Return a column, or what a path with dots leads to; None where it ends before."""
    if name in row:
        return row[name]
    value: object = row
    for step in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value


def _cell(value: object, where: str) -> object:
    """Return numbers as text; what is one of several texts is not chosen here.

    Raises:
        InputError: It is a list of texts.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        if all(isinstance(item, str) for item in value):
            raise InputError(
                f"{where} holds a list of texts, {len(value)} here",
                got=repr(value)[:80],
                allowed="one text, or a list of messages",
                fix="name which one counts, the first for instance: COLUMN.0",
            )
        return list(value)
    return value


def _category(value: object) -> object:
    if isinstance(value, Mapping):
        return "+".join(str(name) for name, holds in value.items() if holds)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(str, value))
    return value


def _unpacked(value: object) -> object:
    """Return the list that a text of JSON stands for; CSV has no lists."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _as_rows(turns: Iterable[Turn]) -> list[dict[str, str]]:
    return [turn._asdict() for turn in turns]


def _parted(turns: Sequence[Turn]) -> dict[str, object]:
    """Return all turns but the last as the prompt, which is all where no answer ends them."""
    answered = bool(turns) and turns[-1].role == "assistant"
    asked = turns[:-1] if answered else turns
    # One plain question is plain text, as in every other set.
    plain = len(asked) == 1 and asked[0].role == "user"
    return {
        "prompt": asked[0].content if plain else _as_rows(asked),
        "completion": turns[-1].content if answered else "",
    }


def _with_system(turns: Sequence[Turn], system: object, where: str) -> tuple[Turn, ...]:
    """Return turns with a system text in front, if a column beside them has one.

    Raises:
        InputError: The turns begin with another one.
    """
    if not system:
        return tuple(turns)
    text = content_text(system, f"{where}: 'system'")
    if not turns or turns[0].role != "system":
        return (Turn("system", text), *turns)
    if turns[0].content != text:
        raise InputError(
            f"{where} has two system texts",
            got="one in a column and another one in its messages",
            fix=f"leave the column out: {MARK}messages=COLUMN,system=",
        )
    return tuple(turns)


def _history(value: object, where: str) -> tuple[Turn, ...]:
    """Return the turns of earlier pairs of question and answer.

    Raises:
        InputError: They are no such pairs.
    """
    pairs = _unpacked(value) or ()
    if not isinstance(pairs, Sequence) or not all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
        for pair in pairs
    ):
        raise InputError(
            f"{where}: the history is no list of pairs",
            got=repr(value)[:80],
            allowed='[["question", "answer"], ...]',
        )
    return tuple(
        Turn(role, text)
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    )
