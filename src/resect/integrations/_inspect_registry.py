"""What Inspect finds through our entry point.

Inspect loads this module at the start of any of its commands, so it loads no torch; a broken
plug-in would also be reported to people who never asked for it.
"""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi

from resect.integrations.inspect_tasks import em_freeform

__all__ = ["em_freeform", "resect"]


@modelapi(name="resect")
def resect() -> type[ModelAPI]:
    """Return the provider behind `--model resect/...`."""
    from resect.integrations.inspect_model import ResectAPI

    return ResectAPI
