#!/usr/bin/env bash
# datasets 5.2.0: `Dataset.from_list` has the columns of its first row, and `map` adds the columns that the
# function returned for the first row. What later rows have beside that is dropped, without a word.
#
# One would expect the union of the columns with None in the gaps, which `load_dataset("json")` makes of the
# same rows in a file, and pandas of the same list. Seen here:
#   from_list([{"a": 1}, {"a": 2, "b": 3}])                    columns: a
#   load_dataset("json") of these two rows                     columns: a, b
#   map(f), where f returns {} for row 1 and {"v": 1} later    columns: as before, no v
#   map(f), where f returns {"v": 1} for row 1 and {} later    KeyError
# A system prompt, a label or a score that the first row lacks is then missing for all. Give every row all
# keys.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "datasets==5.2.0"

cat >"$folder/look.py" <<'PY'
import json
import pathlib
import sys

import datasets

datasets.disable_progress_bars()
print("datasets", datasets.__version__)
rows = [{"a": 1}, {"a": 2, "b": 3}]
listed = datasets.Dataset.from_list(rows)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
read = datasets.load_dataset(
    "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
)
print("from_list:", listed[:], "from a file:", read[:])
assert listed[:] == {"a": [1, 2]}
assert read[:] == {"a": [1, 2], "b": [None, 3]}

later = listed.map(lambda row: {"v": 1} if row["a"] == 2 else {})
print("map, new key in the second row:", later[:])
assert later[:] == {"a": [1, 2]}
try:
    listed.map(lambda row: {"v": 1} if row["a"] == 1 else {})
except KeyError as error:
    print("map, new key in the first row alone: KeyError", error)
else:
    raise AssertionError("map took a key of the first row alone")
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/data"
