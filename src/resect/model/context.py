"""How long a text a model can read."""

from __future__ import annotations

from resect.records import CausalModel


def context_of(model: CausalModel) -> int | None:
    """Return the model's context in tokens; None for a model that states no limit."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # XLNet says -1.
    return limit if limit is None or limit > 0 else None
