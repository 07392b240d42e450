"""Errors that a user can fix.

A `ResectError` is printed without a traceback and ends the command with exit code 2. Any other
exception is a bug, keeps its traceback and ends with exit code 1.
"""

from __future__ import annotations

import difflib
import unicodedata


class ResectError(Exception):
    """Something that the user can fix: what is wrong, what was got, what is allowed, what to do."""

    def __init__(self, what: str, *, got: str = "", allowed: str = "", fix: str = "") -> None:
        """Compose one message.

        Args:
            what: What is wrong, a clause without a full stop.
            got: The offending value as the user would recognise it.
            allowed: What would have been accepted.
            fix: The next step, an imperative sentence without a full stop.
        """
        self.what = what
        self.got = got
        self.allowed = allowed
        self.fix = fix
        parts = [what]
        if got:
            parts.append(f"got: {got}")
        if allowed:
            parts.append(f"allowed: {allowed}")
        if fix:
            parts.append(f"next step: {fix}")
        super().__init__("\n  ".join(parts))


class InputError(ResectError):
    """A path, option or data file that cannot be used as given."""


class MismatchError(ResectError):
    """An artefact that does not belong to the model, tokenizer or data it is used with."""


class CoverageError(ResectError):
    """A model with block weights that resect can neither prune nor knowingly leave alone."""


def unknown_name(family: str, name: str, names: list[str]) -> InputError:
    """Return the error for a name that is not in a family (method, judge, study, preset)."""
    return InputError(
        f"unknown {family}",
        got=repr(name),
        allowed=", ".join(sorted(names)),
        fix=nearest(name, names),
    )


def not_finite(numbers: str) -> InputError:
    """Return the error for numbers of a model that overflowed, in every command the same.

    Args:
        numbers: What they are and the verb: `the loss of example 'a' is`.
    """
    return InputError(
        f"{numbers} not finite",
        got="NaN or inf",
        fix="use the model in bfloat16 or float32, whose range is wider than that of float16; "
        "if it is in one of them, look for broken weights or odd examples",
    )


def nearest(name: str, names: list[str] | tuple[str, ...]) -> str:
    """Return the next step for a misspelt name, "" if none of `names` is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def visible(value: object) -> str:
    """Return text in which control and direction-changing characters are spelled out.

    All that comes from models, data and files passes through here before a terminal or a page.
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")
        else f"\\u{{{ord(character):x}}}"
        for character in str(value)
    )
