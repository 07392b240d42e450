"""One fence for text that a model must read as data: a judge's question and the reply it grades.

What stands inside is hostile. The fence carries a code that is drawn from the text itself and does
not occur in it, so that no text can close its own fence; the rules above it must say so, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def fenced(parts: Mapping[str, str]) -> str:
    """Return each named text between lines that hold its name and one code common to all.

    Args:
        parts: Name of a text, which is ours, to the text, which is hostile.
    """
    text = "\0".join(parts.values())
    # Lone surrogates are no UTF-8, but a decoder can put out half a character.
    code = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    while code in text:
        code = hashlib.sha256(code.encode()).hexdigest()[:16]
    return "\n\n".join(
        f"<<<{name} {code}\n{value}\n{name} {code}>>>" for name, value in parts.items()
    )
