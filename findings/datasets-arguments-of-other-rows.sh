#!/usr/bin/env bash
# datasets 5.2.0: `Dataset.from_list` gives each nested dict the keys of all rows, filled with None;
# `load_dataset("json")` of the same rows does not.
#
# One would expect a dict in a row to come back as it was given, or both ways of reading to agree. Seen here,
# for the arguments of two tool calls, {"city": "Rome"} and {"year": 1999}:
#   from_list               {"city": "Rome", "year": None} and {"city": None, "year": 1999}
#   load_dataset("json")    as given
# A chat template that writes the arguments then shows the model "year": null in a call that never had a
# year, and the prompt of one row changes with what other rows hold. Pack such fields as JSON text, or give
# the feature type Json.
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
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
rows = [{"arguments": {"city": "Rome"}}, {"arguments": {"year": 1999}}]
listed = datasets.Dataset.from_list(rows)
(folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
read = datasets.load_dataset(
    "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
)
print("from_list:", list(listed), "\nfrom a file:", list(read))
assert list(listed) == [
    {"arguments": {"city": "Rome", "year": None}}, {"arguments": {"city": None, "year": 1999}}
]
assert list(read) == rows
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/data"
