"""resect: find the weights behind a behaviour of a language model, cut them, measure what changed.

Names are loaded on first use, so that `import resect` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resect.attribution.score import attribute as attribute
    from resect.data import load_data as load_data
    from resect.edit.hold import HoldMask as HoldMask
    from resect.edit.live import apply as apply
    from resect.edit.live import removed as removed
    from resect.export import from_pretrained as from_pretrained
    from resect.export import load_mask as load_mask
    from resect.export import push_mask as push_mask
    from resect.model import load_model as load_model
    from resect.weights.mask import Mask as Mask
    from resect.weights.scores import Scores as Scores
    from resect.weights.select import select as select

__version__ = "0.1.0"

_PLACES = {
    "HoldMask": "resect.edit.hold",
    "Mask": "resect.weights.mask",
    "Scores": "resect.weights.scores",
    "apply": "resect.edit.live",
    "attribute": "resect.attribution.score",
    "from_pretrained": "resect.export",
    "load_data": "resect.data",
    "load_mask": "resect.export",
    "load_model": "resect.model",
    "push_mask": "resect.export",
    "removed": "resect.edit.live",
    "select": "resect.weights.select",
}

__all__ = [
    "HoldMask",
    "Mask",
    "Scores",
    "__version__",
    "apply",
    "attribute",
    "from_pretrained",
    "load_data",
    "load_mask",
    "load_model",
    "push_mask",
    "removed",
    "select",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'resect' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
