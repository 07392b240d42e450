"""Doors to other tools: each file knows one library, and none is loaded before it is needed."""

from __future__ import annotations

import importlib.util

from resect.errors import InputError


def require(package: str, extra: str) -> None:
    """Refuse to go on without an optional package.

    Args:
        package: Name under which it is imported.
        extra: The extra of resect that brings it.

    Raises:
        InputError: It is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"this needs {package}, which is not installed", fix=f"pip install 'resect[{extra}]'"
        )
