"""Read files only as far as a bound: a few kilobytes can claim terabytes, and some files never end.

What is read is counted as it comes, packed or not, so that a file cannot lie about its size. Only
regular files are opened: a pipe or device would never end, or never begin.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from resect.errors import InputError, visible

if TYPE_CHECKING:
    import yaml
    from pydantic import ValidationError

T = TypeVar("T")

if TYPE_CHECKING:
    from _typeshed import SupportsRead, WriteableBuffer

# A file that holds or unpacks to more than these is refused; `RESECT_MOST_BYTES` changes the first.
# Values of JSON and CSV take some 60 bytes of memory each, however short they are.
MOST_BYTES = 2**30
MOST_ROWS = 10_000_000
MOST_VALUES = 50_000_000
# No whole number of ours is near, and larger ones do not fit into a float.
MOST_NUMBER = 10**100
VARIABLE = "RESECT_MOST_BYTES"
# More than this is no YAML that a person wrote.
MOST_YAML = 4 * 2**20
MOST_NODES = 100_000


def most_bytes() -> int:
    """Return how many bytes of a file are read.

    Raises:
        InputError: The environment variable is no number of bytes.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return MOST_BYTES
    if not text.isdecimal():
        raise InputError(f"{VARIABLE} is no number of bytes", got=repr(text), allowed="1, 2, ...")
    return int(text)


class _Counted(io.RawIOBase):
    """A stream that ends with an error where it outgrows its bound."""

    def __init__(self, stream: SupportsRead[bytes], path: str | Path, limit: int) -> None:
        self._stream, self._path, self._limit = stream, path, limit
        self._read = 0

    def readable(self) -> bool:
        """Return true."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some bytes into a buffer; return how many."""
        view = memoryview(buffer).cast("B")
        content = self._stream.read(len(view))
        self._read += len(content)
        if self._read > self._limit:
            raise too_large(self._path, f"more than {self._limit:,} bytes", self._limit)
        view[: len(content)] = content
        return len(content)


@contextmanager
def regular_file(path: str | Path, limit: int = 0) -> Iterator[IO[bytes]]:
    """Open a regular file for reading.

    Args:
        path: The file.
        limit: Most bytes; 0 for `most_bytes()`.

    Raises:
        InputError: It is no regular file, or is larger.
        OSError: It cannot be opened.
    """
    limit = limit or most_bytes()
    # Without blocking: to open a pipe would wait for its other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no regular file", fix="give a file")
        if status.st_size > limit:
            raise too_large(path, f"{status.st_size:,} bytes", limit)
        yield file


@contextmanager
def bounded_file(
    path: str | Path, *, packed: bool = False, limit: int = 0
) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading from its beginning to its end, up to a bound.

    Args:
        path: The file.
        packed: Whether it is unpacked by gzip.
        limit: Most bytes; 0 for `most_bytes()`.

    Raises:
        InputError: It is no regular file, or what it holds is larger.
        OSError: It cannot be opened, or is broken.
        EOFError: A packed file ends too early.
    """
    limit = limit or most_bytes()
    with regular_file(path, limit) as file:
        stream = gzip.GzipFile(fileobj=file) if packed else file
        yield io.BufferedReader(_Counted(stream, path, limit), 2**16)


def read_bytes(path: str | Path, *, packed: bool = False, limit: int = 0) -> bytes:
    """Return what a file holds; arguments and errors are those of `bounded_file`."""
    with bounded_file(path, packed=packed, limit=limit) as file:
        return file.read()


def read_text(path: str | Path, *, limit: int = 0) -> str:
    """Return what a UTF-8 file holds, without a byte order mark; see `bounded_file`.

    Raises:
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_bytes(path, limit=limit).decode("utf-8-sig")


class Counter:
    """Counts what a file's rows hold, and refuses it when it is too much to keep in memory."""

    def __init__(self, path: str | Path) -> None:
        """Begin with nothing."""
        self._path = path
        self._rows = self._values = 0

    def add(self, text: str) -> None:
        """Take note of one row of JSON or CSV as it is written; its values are counted too high."""
        self._rows += 1
        self._values += text.count(",") + text.count("[") + text.count("{") + 1
        if self._rows > MOST_ROWS or self._values > MOST_VALUES:
            raise InputError(
                f"{self._path} holds more than is read",
                got=f"row {self._rows:,} comes to {self._values:,} values",
                allowed=f"{MOST_ROWS:,} rows and {MOST_VALUES:,} values",
                fix="split the file",
            )


def too_large(path: str | Path, got: str, limit: int) -> InputError:
    """Return the error of a file that outgrows the bounds."""
    return InputError(
        f"{path} holds or unpacks to more than is read",
        got=got,
        allowed=f"{limit:,} bytes, {MOST_ROWS:,} rows and {MOST_VALUES:,} values",
        fix="split the file, or see whether it is what it claims to be; "
        f"{VARIABLE}=... in the environment allows more bytes of data",
    )


def read_yaml(text: str, path: str | Path) -> object:
    """Return what YAML says.

    Args:
        text: The YAML.
        path: For the message.

    Raises:
        InputError: It is not valid, or stands for more than `MOST_NODES` values.
    """
    import yaml

    # For events alone: what it builds of deep nesting has no bound on the stack.
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if len(text) > MOST_YAML:
            raise _no_yaml_of_a_person(path, f"{len(text):,} characters")
        # Events are made one at a time and values all at once: so much for long files,
        for count, _ in enumerate(yaml.parse(text, Loader=fast)):
            if count > 2 * MOST_NODES:
                raise _no_yaml_of_a_person(path, f"more than {MOST_NODES:,} values")
        # and this for short ones whose aliases stand for much.
        _refuse_alias_bomb(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{path} is not valid YAML", got=str(error)) from error


def _refuse_alias_bomb(root: yaml.Node | None, path: str | Path) -> None:
    """Refuse a file whose aliases stand for more than `MOST_NODES` values or for themselves.

    A value that is named n times is counted n times, since checking and printing visit it as often.
    """
    import yaml

    todo = [] if root is None else [root]
    count = 0
    while todo:
        node = todo.pop()
        count += 1
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            todo += [child for pair in node.value for child in pair]
        if count + len(todo) > MOST_NODES:
            raise _no_yaml_of_a_person(path, f"more than {MOST_NODES:,} values")


def _no_yaml_of_a_person(path: str | Path, got: str) -> InputError:
    return InputError(
        f"{path} is too large for a configuration, each alias counted as what it names",
        got=got,
        allowed=f"{MOST_YAML:,} characters and {MOST_NODES:,} values",
        fix="write the values out and leave out anchors and aliases",
    )


def refuse_links_out(folder: Path) -> None:
    """Raise `InputError` if a link in a folder leads out of it; to read or write there is no run's.

    The folder itself may be a link: that one the user chose. Pipes and devices are refused as well:
    to open one may wait for ever. Every command that is given a run folder asks this first.
    """
    for path in folder.rglob("*"):
        if path.exists() and not path.is_dir() and not path.is_file():
            raise InputError(f"{path} is neither a file nor a folder", fix="remove it")
        refuse_link_out(path, folder)


def links_out(folder: Path) -> list[Path]:
    """Return the files right in a checkpoint folder that are links out of it, but for weights.

    They can be read; `resect prune` does not copy them, since what they name may be anything.
    """
    outer = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix != ".safetensors" and path.is_file():
            try:
                refuse_link_out(path, folder)
            except InputError:
                outer.append(path)
    return outer


def refuse_link_out(path: Path, folder: Path) -> None:
    """Raise `InputError` if a file of a folder is a link that leads out of it.

    The cache of the Hub is allowed its own way: `snapshots/COMMIT/NAME` leads to `blobs/HASH`.
    """
    if not path.is_symlink():
        return
    root, target = folder.resolve(), path.resolve()
    blobs = root.parent.parent / "blobs"
    if target.is_relative_to(root) or (
        root.parent.name == "snapshots" and target.is_relative_to(blobs)
    ):
        return
    raise InputError(
        f"{path} is a link that leads out of its folder",
        got=str(target),
        fix="remove the link, or put a copy of what it names in its place",
    )


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        InputError: The file is missing or not JSON.
    """
    try:
        text = read_text(path)
        Counter(path).add(text)
        return json.loads(text)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON", got=str(error)) from error


def read_as(path: str | Path, kind: type[T], what: str, *, fix: str = "") -> T:
    """Read JSON that holds a record.

    Args:
        path: The file.
        kind: The record, a dataclass; its fields are checked by their types, all the way down.
            What the file holds beside them is ignored.
        what: What such a file is, for the message.
        fix: The next step, for the message.

    Raises:
        InputError: The file is missing or not JSON, or a field is missing or holds something else;
            the message names the field.
    """
    content = read_json(path)
    _refuse_endless_numbers(content, path)
    try:
        # As JSON once more, for it has no NaN, and its lists may be tuples.
        text = json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path} is not a whole {what}", got=str(error), fix=fix) from error
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(
            f"{path} is not a whole {what}", got=_first_mistake(content, error), fix=fix
        ) from error


def _refuse_endless_numbers(content: object, path: str | Path) -> None:
    todo = [content]
    while todo:
        value = todo.pop()
        if isinstance(value, list | dict):
            todo += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and abs(value) >= MOST_NUMBER:
            raise InputError(
                f"{path} has a number with more digits than are read",
                got=f"{str(value)[:20]}…",
                allowed=f"below {MOST_NUMBER:.0e}",
            )


def _first_mistake(content: object, error: ValidationError) -> str:
    """Return the first field that is wrong and what it should be, by any of its types."""
    mistakes = [
        (_field(content, mistake["loc"]), mistake["msg"].removeprefix("Value error, "))
        for mistake in error.errors(include_url=False)
    ]
    field = mistakes[0][0]
    should = "Input should be "
    first, *others = dict.fromkeys(message for path, message in mistakes if path == field)
    message = " or ".join((first, *(other.removeprefix(should) for other in others)))
    return visible(f"{field}: {message}" if field else message)


def _field(content: object, location: Sequence[str | int]) -> str:
    """Return the path of a field as a reader of the file would write it, `studies[0].title`.

    Behind the field pydantic names the type that it tried, where there are several.
    """
    path = ""
    for step in location:
        if isinstance(content, list) and isinstance(step, int):
            path, content = f"{path}[{step}]", content[step]
        elif isinstance(content, dict):
            path, content = f"{path}.{step}", content.get(str(step))
    return path.removeprefix(".")


@contextlib.contextmanager
def expecting(path: str | Path, content: str) -> Iterator[None]:
    """Say that a file is not whole where what was read of it lacks something.

    Raises:
        InputError: The block looked for something that is not there, or is of another kind.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole {content}", got=f"{type(error).__name__}: {error}"
        ) from error
