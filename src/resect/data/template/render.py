"""Chat templates within bounds: one message for whatever they do, and no template without an end.

transformers renders templates in a sandbox, which forbids but does not bound: loops in loops, or
`10 ** (10 ** 10)`, run for ever inside it. So the rendering, and nothing else of
`apply_chat_template`, is done in a process of its own with a bound on processor time and memory
(`_process.py`), which is kept for the next conversation. A template that cannot do more than look
at each message once is rendered here, because the other process takes a second to start.

Windows has neither bound: there a template is ended by Ctrl-C alone.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError

from resect.data.template import _process
from resect.errors import InputError

LONGEST_REASON = 300
# The sandbox of transformers ends a forbidden step with a TemplateError; the others come from a
# template's own arithmetic and loops.
FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
# Longer ones are not looked into here.
_SHORT = 20_000
# A tag of transformers that marks what the assistant says; it computes nothing.
_MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# Without assignment, call, product and loop in a loop, nothing can grow or go on for long.
_PLAIN = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Name, nodes.Const,
    nodes.Getattr, nodes.Getitem, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not,
    nodes.CondExpr, nodes.Add, nodes.Concat,
)  # fmt: skip

_active: ContextVar[bool] = ContextVar("active", default=False)


@contextlib.contextmanager
def bounded_template(whose: str, *, alone: bool = True) -> Iterator[None]:
    """Render the chat templates that the block applies within bounds.

    Args:
        whose: What is rendered, for the message: `example '7'`.
        alone: Whether the block does nothing else, so that any error of arithmetic or looking up
            is the template's.

    Raises:
        InputError: A template fails, does something forbidden or passes its bounds.
    """
    _install()
    faults = FAULTS if alone else (TemplateError,)
    token = _active.set(True)
    try:
        yield
    except faults as error:
        raise InputError(
            f"the chat template of the tokenizer fails on {whose}",
            got=(str(error).strip() or type(error).__name__)[:LONGEST_REASON],
            fix="use --format raw, or mend the template",
        ) from error
    finally:
        _active.reset(token)


@lru_cache(maxsize=64)
def is_plain(template: str) -> bool:
    """Return whether a template can do no more than look at each message once."""
    if len(template) > _SHORT:
        return False
    try:
        tree = Environment(autoescape=False).parse(_MARKS.sub("", template))  # noqa: S701
    except FAULTS:
        return False
    return all(
        isinstance(node, _PLAIN)
        and not (isinstance(node, nodes.For) and (node.recursive or _loops_within(node)))
        for node in _all(tree)
    )


def _all(tree: nodes.Node) -> Iterator[nodes.Node]:
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        todo += node.iter_child_nodes()


def _loops_within(loop: nodes.For) -> bool:
    return next(loop.find_all(nodes.For), None) is not None or not isinstance(loop.iter, nodes.Name)


@lru_cache(maxsize=1)
def _install() -> None:
    """Put our renderer in the place of the one that tokenizers call; it passes on what is plain."""
    from transformers import tokenization_utils_base as tokenizers

    theirs: Callable[..., object] = tokenizers.render_jinja_template

    def render(**arguments: object) -> object:
        if not _active.get() or is_plain(str(arguments.get("chat_template"))):
            return theirs(**arguments)
        return _renderer.render(arguments)

    tokenizers.render_jinja_template = render


class _Rendered(NamedTuple):
    """What transformers' own renderer returns: texts, and where the assistant speaks in each."""

    texts: list[str]
    indices: list[object]


class _Renderer:
    """The other process, which lives until this one ends or a template passes the bounds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, arguments: dict[str, object]) -> _Rendered:
        """Return texts and places of the assistant's turns, as transformers does."""
        request = json.dumps(arguments)
        with self._lock:
            process = self._running()
            if process.stdin is None or process.stdout is None:
                raise ValueError("the process was started without pipes")
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            except BaseException:
                # An answer that nobody has read must not be taken for the next one.
                process.kill()
                self._end()
                raise
            if not line.endswith("\n"):
                raise TemplateError(self._end())
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(answer["error"])
        return _Rendered(answer["texts"], answer["indices"])

    def _running(self) -> subprocess.Popen[str]:
        # A process that was forked from this one must not share its pipes.
        if self._process is None or self._owner != os.getpid():
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(_process.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                # Ctrl-C is for this process; that one ends when its pipe is closed.
                start_new_session=True,
            )
            self._owner = os.getpid()
            atexit.register(self._end)
        return self._process

    def _end(self) -> str:
        """End the process and return why it had ended before, if it had."""
        process, self._process = self._process, None
        atexit.unregister(self._end)
        if process is None or self._owner != os.getpid():
            return ""
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if code == -int(getattr(signal, "SIGPROF", 0)):
            return f"it takes more than {_process.SECONDS:g} s of processor time"
        return f"the process that renders it ended with exit code {code}"


_renderer = _Renderer()
