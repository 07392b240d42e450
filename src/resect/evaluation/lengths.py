"""Models whose keys of a token depend on how long its row is, or its batch."""

from __future__ import annotations

from resect.records import CausalModel

# Kinds of positions by which keys of a long row are not those of its opening.
BY_LENGTH = ("dynamic", "longrope")


def turns_by_length(model: CausalModel) -> bool:
    """Tell whether a model turns its keys by frequencies that depend on the length of a row."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        named = kinds.values() if isinstance(kinds, dict) else (kinds,)
        if any(word in str(kind) for kind in named for word in BY_LENGTH):
            return True
    return False
