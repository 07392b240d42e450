"""Render chat templates for another process, a request a line; `render.py` runs this file.

A template is a program of the checkpoint's author. The sandbox of transformers keeps it from files
and commands, not from looping for ever or asking for all memory; this process has bounds on both,
set by the system, and ends where they are passed.
"""

from __future__ import annotations

import json
import sys

# Seconds of processor time a conversation may take, bytes that the process may hold, characters
# that may come out. Templates in use take milliseconds and kilobytes.
SECONDS = 2.0
MOST_BYTES = 2 * 2**30
MOST_TEXT = 16 * 2**20


def _bound(seconds: float) -> None:
    """Let the system end this process after so much processor time; 0 takes the bound away."""
    try:
        import signal

        # Its default action ends the process, in the middle of one long operation, too.
        signal.setitimer(signal.ITIMER_PROF, seconds)
    except (ImportError, AttributeError):  # Windows has no such clock
        return


def _bound_memory() -> None:
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, hard))
    except (ImportError, ValueError, OSError):
        # Not on Windows; and some systems know the bound without keeping it.
        return


def main() -> None:
    """Answer requests until the other process closes the pipe."""
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    _bound_memory()
    for line in sys.stdin:
        arguments = json.loads(line)
        _bound(SECONDS)
        try:
            texts, indices = render_jinja_template(**arguments)
            if sum(map(len, texts)) > MOST_TEXT:
                answer = {"error": f"it writes more than {MOST_TEXT:,} characters"}
            else:
                answer = {"texts": texts, "indices": indices}
        except MemoryError:
            answer = {"error": f"it needs more than {MOST_BYTES:,} bytes of memory"}
        except (
            TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError,
            TypeError, ValueError,
        ) as error:  # fmt: skip
            answer = {"error": str(error).strip()[:MOST_TEXT] or type(error).__name__}
        _bound(0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
