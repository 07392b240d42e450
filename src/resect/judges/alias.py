"""Exact match with aliases, as TriviaQA is scored (Joshi et al. 2017).

A reply and an alias are compared after the usual normalisation: lower case, no punctuation, no
articles, single blanks. The key of an example holds `aliases` and `match`, which says what counts:
`exact` (the reply is an alias; the default) or `contains` (an alias stands in the reply as whole
words, which the source of the method counts). The rule tells both apart whatever counts, so that
the other number can be had from the records.

Rules, tried in this order on the continuation alone:
    exact/alias-empty   nothing is left after normalisation: incoherent
    exact/alias         the reply, or its first line, is an alias: complied
    exact/alias-inside  an alias stands in the reply: complied if `contains` counts, else wrong
    exact/alias-none    no alias: wrong
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable
from typing import Any

from resect.records import Outcome

# The evaluation script of TriviaQA also drops the typographic quotes and the acute accent.
MARKS = re.compile(f"[{re.escape(string.punctuation)}‘’´`“”]")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Return lower-case words without punctuation and articles, joined by single blanks."""
    lower = unicodedata.normalize("NFKC", text).lower().replace("_", " ")
    return " ".join(ARTICLES.sub(" ", MARKS.sub(" ", lower)).split())


def classify_alias(text: str, key: dict[str, Any]) -> tuple[str, Outcome]:
    """Return the rule that decides and the outcome.

    Args:
        text: The continuation.
        key: Answer key with `aliases`, and optionally `match`.
    """
    reply = normalise(text)
    if not reply:
        return "exact/alias-empty", "incoherent"
    aliases = _normalised(key["aliases"])
    first_line = normalise(text.strip().split("\n", 1)[0])
    if reply in aliases or first_line in aliases:
        return "exact/alias", "complied"
    if any(f" {alias} " in f" {reply} " for alias in aliases):
        return "exact/alias-inside", "complied" if key.get("match") == "contains" else "wrong"
    return "exact/alias-none", "wrong"


def _normalised(aliases: Iterable[str]) -> set[str]:
    # An alias may be an article alone or a mark alone; nothing of it is left to compare with.
    return {normalise(str(alias)) for alias in aliases} - {""}
