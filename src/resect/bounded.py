"""Read packed files only as far as a bound: a few kilobytes can claim terabytes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from resect.errors import InputError

# A file that unpacks to more than these is refused.
MOST_BYTES = 2**30
MOST_ROWS = 10_000_000


def bounded_rows(file: Any, path: str | Path) -> list[dict[str, Any]]:
    """Read a `ParquetFile` in small batches, and stop before it outgrows `MOST_BYTES`.

    The sizes of the footer are read before a byte is unpacked; they may lie, so what came out is
    counted as well.

    Raises:
        InputError: The file holds more.
    """
    facts = file.metadata
    claimed = sum(facts.row_group(at).total_byte_size for at in range(facts.num_row_groups))
    if claimed > MOST_BYTES or facts.num_rows > MOST_ROWS:
        raise too_large(path, f"{claimed:,} bytes in {facts.num_rows:,} rows")
    rows: list[dict[str, Any]] = []
    held = 0
    for batch in file.iter_batches(batch_size=1024):
        held += batch.nbytes
        if held > MOST_BYTES:
            raise too_large(path, f"more than {held:,} bytes")
        rows += batch.to_pylist()
    return rows


def too_large(path: str | Path, got: str) -> InputError:
    """Return the error of a file that outgrows the bounds."""
    return InputError(
        f"{path} unpacks to more than is read",
        got=got,
        allowed=f"{MOST_BYTES:,} bytes in {MOST_ROWS:,} rows",
        fix="split the file, or see whether it is what it claims to be",
    )


def gunzip(path: str | Path) -> bytes:
    """Unpack a gzip file, at most `MOST_BYTES` of it.

    Raises:
        InputError: It unpacks to more.
        OSError: It is missing or broken.
        EOFError: It ends too early.
    """
    with gzip.open(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise too_large(path, f"more than {MOST_BYTES:,} bytes")
    return content
