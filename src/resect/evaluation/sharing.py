"""How many rows of each variant stand in a pass that several share, for the memory that it takes.

A pass of N variants with as many rows of each as one alone would have takes N times the
activations, keys and values. It may take `MORE` of what one alone takes with the weights, or
`LEAST` bytes, beyond that; then it has fewer rows of each, one at least.
"""

from __future__ import annotations

from typing import Any

from resect.records import CausalModel

# What a pass of several variants may take beyond that of one: a share of it with the weights, or so
# many bytes, which small models do not reach.
MORE = 0.3
LEAST = 2**27
# Numbers of the width of the model, and of its feed-forward parts, that are there at once for a
# token: what is added to, normed and mixed, and gate, up and their product.
WIDTHS, INNER = 8, 3


def rows_each(model: CausalModel, rows: int, tokens: int, copies: int) -> int:
    """Return the most rows of each variant in a pass.

    Args:
        model: The model.
        rows: Rows of a pass of one variant.
        tokens: Tokens of the longest row, new ones included.
        copies: Variants that share the pass.
    """
    if copies == 1:
        return rows
    row = tokens * bytes_a_token(model)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    room = rows * row + max(LEAST, MORE * (weights + rows * row))
    return max(1, min(rows, int(room / (copies * row))))


def bytes_a_token(model: CausalModel) -> float:
    """Return about how many bytes a token takes without gradients: keys, values and activations."""
    text: Any = model.config.get_text_config()  # families have numbers of their own
    width = model.get_input_embeddings().get_parameter("weight").shape[-1]
    heads = _number(text, "num_attention_heads") or 1
    keys = _number(text, "num_key_value_heads") or heads
    head = _number(text, "head_dim") or width / heads
    inner = _number(text, "intermediate_size") or 4 * width
    blocks = _number(text, "num_hidden_layers") or 1
    return model.dtype.itemsize * (2 * blocks * keys * head + WIDTHS * width + INNER * inner)


def _number(text: object, name: str) -> float:
    """Return a number of a configuration, the largest of one for each block, or 0."""
    value = getattr(text, name, None)
    numbers = value if isinstance(value, list | tuple) else [value]
    return max((float(number) for number in numbers if isinstance(number, int)), default=0.0)
