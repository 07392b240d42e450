"""Parquet in and out, as far as a bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resect.errors import InputError
from resect.files.reading import MOST_ROWS, MOST_VALUES, most_bytes, regular_file, too_large
from resect.files.writing import atomic, plain


def bounded_rows(file: Any, path: str | Path) -> list[dict[str, Any]]:
    """Read a `ParquetFile` in small batches, and stop before it outgrows the bounds.

    The sizes of the footer are read before a byte is unpacked. They may lie, and one long text may
    stand for many rows, so the rows are counted as what they stand for before they are made.

    Args:
        file: Opened by `parquet_file`, which leaves repeated texts as they are stored.
        path: For the message.

    Raises:
        InputError: The file holds more.
    """
    facts, most = file.metadata, most_bytes()
    groups = [facts.row_group(at) for at in range(facts.num_row_groups)]
    claimed = sum(group.total_byte_size for group in groups)
    # A flat column has a value a row. The facts of a nested one are asked for, though pyarrow ends
    # the process where a histogram in them is malformed; reading it would raise.
    nested = [at for at in range(len(file.schema)) if file.schema.column(at).max_repetition_level]
    values = facts.num_rows * (len(file.schema) - len(nested))
    values += sum(group.column(at).num_values for group in groups for at in nested)
    if claimed > most or facts.num_rows > MOST_ROWS or values > MOST_VALUES:
        raise too_large(
            path, f"{claimed:,} bytes, {facts.num_rows:,} rows, {values:,} values", most
        )
    rows: list[dict[str, Any]] = []
    held = 0
    for batch in file.iter_batches(batch_size=1024):
        held += sum(_expanded(column) for column in batch.columns)
        if held > most:
            raise too_large(path, f"more than {most:,} bytes", most)
        rows += batch.to_pylist()
    return rows


def parquet_file(stream: Any) -> Any:
    """Open a Parquet file so that a text that many rows repeat is held once."""
    import pyarrow.parquet as pq

    schema = pq.ParquetFile(stream).schema
    texts = [
        schema.column(at).path
        for at in range(len(schema))
        if schema.column(at).physical_type == "BYTE_ARRAY"
    ]
    stream.seek(0)
    return pq.ParquetFile(stream, read_dictionary=texts)


def _expanded(column: Any) -> int:
    """Return the bytes of an Arrow array when each row has its own copy of its text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    size: int = 0
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(column.dictionary)
        size = pc.sum(lengths.take(column.indices)).as_py() or 0
        return size + 8 * len(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _expanded(column.flatten()) + 8 * len(column)
    if pa.types.is_struct(kind):
        return sum(_expanded(part) for part in column.flatten())
    size += column.nbytes
    return size


def write_parquet(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as Parquet; nested values are stored as JSON text in columns named `*_json`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [
        {
            (f"{key}_json" if isinstance(value, dict | list | tuple) else key): (
                json.dumps(plain(value), sort_keys=True)
                if isinstance(value, dict | list | tuple)
                else value
            )
            for key, value in row.items()
        }
        for row in rows
    ]
    with atomic(path) as part:
        pq.write_table(pa.Table.from_pylist(flat), part)


def read_parquet(path: str | Path) -> list[dict[str, Any]]:
    """Read rows that `write_parquet` wrote.

    Raises:
        InputError: The file is missing or not Parquet.
    """
    import pyarrow as pa

    try:
        # One handle: by path it is opened twice, and may be replaced by a larger file meanwhile.
        with regular_file(path) as file:
            rows = bounded_rows(parquet_file(file), path)
        return [
            {
                key.removesuffix("_json"): (
                    json.loads(value) if key.endswith("_json") and value is not None else value
                )
                for key, value in row.items()
            }
            for row in rows
        ]
    except (OSError, ValueError, TypeError, RecursionError, pa.ArrowException) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"cannot read {path}", got=lines[0]) from error
