"""Files: whole or absent, bounded, owned by one, named by their content."""

from resect.files.origin import (
    cache_folder,
    check_schema,
    hash_file,
    hash_text,
    hash_value,
    package_versions,
    provenance,
)
from resect.files.reading import expecting, read_as, read_json
from resect.files.tables import read_parquet, write_parquet
from resect.files.writing import (
    append_line,
    atomic,
    atomic_folder,
    create_json,
    is_unfinished,
    join_files,
    plain,
    refuse_full_folder,
    remove_folder,
    remove_stale,
    remove_unfinished,
    write_json,
    write_pieces,
    write_text,
)

__all__ = [
    "append_line",
    "atomic",
    "atomic_folder",
    "cache_folder",
    "check_schema",
    "create_json",
    "expecting",
    "hash_file",
    "hash_text",
    "hash_value",
    "is_unfinished",
    "join_files",
    "package_versions",
    "plain",
    "provenance",
    "read_as",
    "read_json",
    "read_parquet",
    "refuse_full_folder",
    "remove_folder",
    "remove_stale",
    "remove_unfinished",
    "write_json",
    "write_parquet",
    "write_pieces",
    "write_text",
]
