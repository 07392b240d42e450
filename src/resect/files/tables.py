"""Parquet in and out, as far as a bound."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from resect.errors import InputError
from resect.files.reading import (
    MOST_ROWS,
    MOST_VALUES,
    Counter,
    most_bytes,
    regular_file,
    too_large,
)
from resect.files.writing import atomic, plain

# What a column holds as JSON text.
NESTED = (dict, list, tuple)


def bounded_rows(stream: IO[bytes], path: str | Path) -> list[dict[str, Any]]:
    """Read a Parquet file in small batches, and stop before it outgrows the bounds.

    The sizes of the footer are read before a byte is unpacked. They may lie, and one long text may
    stand for many rows, so the rows are counted as what they stand for before they are made.

    Args:
        stream: The file, opened for reading.
        path: Its name, for the message.

    Raises:
        InputError: The file holds more.
    """
    import pyarrow.parquet as pq

    # A text that many rows repeat is kept once, as it is stored.
    file = pq.ParquetFile(stream)
    columns = range(len(file.schema))
    texts = [
        file.schema.column(number).path
        for number in columns
        if file.schema.column(number).physical_type == "BYTE_ARRAY"
    ]
    stream.seek(0)
    file = pq.ParquetFile(stream, read_dictionary=texts)
    metadata, limit = file.metadata, most_bytes()
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    claimed = sum(group.total_byte_size for group in groups)
    # A flat column has a value a row. The values of a nested one are asked for, though pyarrow ends
    # the process where a histogram beside them is malformed; reading it would raise.
    nested = [number for number in columns if file.schema.column(number).max_repetition_level]
    values = metadata.num_rows * (len(columns) - len(nested))
    values += sum(group.column(number).num_values for group in groups for number in nested)
    if claimed > limit or metadata.num_rows > MOST_ROWS or values > MOST_VALUES:
        raise too_large(
            path, f"{claimed:,} bytes, {metadata.num_rows:,} rows, {values:,} values", limit
        )
    rows: list[dict[str, Any]] = []
    size = 0
    packed, counter = _packed_columns(file), Counter(path)
    for batch in file.iter_batches(batch_size=1024):
        size += sum(_expanded(column) for column in batch.columns)
        if size > limit:
            raise too_large(path, f"more than {limit:,} bytes", limit)
        made = batch.to_pylist()
        for name, form in packed.items():
            for row in made:
                row[name] = _unpacked(row[name], form, counter)
        rows += made
    return rows


def _packed_columns(file: Any) -> dict[str, Any]:
    """Return the columns that hold JSON as text, at any depth, with their Arrow types.

    `datasets` writes values of several kinds in one column so, and says it by Arrow's type
    `arrow.json`; other writers say it by Parquet's own type JSON.
    """
    import pyarrow as pa

    json_text = {
        file.schema.column(number).path
        for number in range(len(file.schema))
        if str(file.schema.column(number).logical_type) == "JSON"
    }
    return {
        column.name: pa.json_() if column.name in json_text else column.type
        for column in file.schema_arrow
        if column.name in json_text or _holds_json(column.type)
    }


def _is_json(form: Any) -> bool:
    return getattr(form, "extension_name", "") == "arrow.json"


def _inner(form: Any) -> list[Any]:
    """Return the fields of a list or of a structure; none of any other type."""
    import pyarrow as pa

    if not (pa.types.is_list(form) or pa.types.is_large_list(form) or pa.types.is_struct(form)):
        return []
    return [form.field(number) for number in range(form.num_fields)]


def _holds_json(form: Any) -> bool:
    return _is_json(form) or any(_holds_json(field.type) for field in _inner(form))


def _unpacked(value: Any, form: Any, counter: Counter) -> Any:
    """Return a value with the JSON texts in it read, as its Arrow type says where they are."""
    if value is None or not _holds_json(form):
        return value
    if _is_json(form):
        counter.add(value)
        return json.loads(value)
    fields = _inner(form)
    if isinstance(value, dict):
        return value | {
            field.name: _unpacked(value[field.name], field.type, counter) for field in fields
        }
    return [_unpacked(element, fields[0].type, counter) for element in value]


def _expanded(column: Any) -> int:
    """Return the bytes of an Arrow array when each row has its own copy of its text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    form = column.type
    size: int = 0
    if pa.types.is_dictionary(form):
        lengths = pc.binary_length(column.dictionary)
        size = pc.sum(lengths.take(column.indices)).as_py() or 0
        return size + 8 * len(column)
    if pa.types.is_list(form) or pa.types.is_large_list(form):
        return _expanded(column.flatten()) + 8 * len(column)
    if pa.types.is_struct(form):
        return sum(_expanded(inner) for inner in column.flatten())
    size += column.nbytes
    return size


def write_parquet(path: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as Parquet; nested values are stored as JSON text in columns named `*_json`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [
        {
            (f"{key}_json" if isinstance(value, NESTED) else key): (
                json.dumps(plain(value), sort_keys=True) if isinstance(value, NESTED) else value
            )
            for key, value in row.items()
        }
        for row in rows
    ]
    with atomic(path) as draft:
        pq.write_table(pa.Table.from_pylist(flat), draft)


def read_parquet(path: str | Path) -> list[dict[str, Any]]:
    """Read rows that `write_parquet` wrote.

    Raises:
        InputError: The file is missing or not Parquet.
    """
    import pyarrow as pa

    try:
        # One handle: by path it is opened twice, and may be replaced by a larger file meanwhile.
        with regular_file(path) as file:
            rows = bounded_rows(file, path)
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
