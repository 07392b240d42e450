#!/usr/bin/env bash
# datasets 5.2.0: `load_dataset("json")` turns a column of JSON strings into timestamps if all of them look
# like dates. One other answer in the file, and they stay text.
#
# One would expect strings of JSON to be strings: JSON has no dates. Seen here, for the column `answer`:
#   "2024-01-01", "2024-05-06"                   timestamp; a row gives datetime(2024, 1, 1, 0, 0)
#   "2024-01-01T10:00:00Z", "2024-05-06"         timestamp; the Z is gone
#   "2024-01-01", "unknown"                      string
#   the first two, features=string asked for     string, but "2024-01-01 00:00:00"
#   the first two rows through from_list         string
# str() of it is "2024-01-01 00:00:00", so an exact match with a model's "2024-01-01" fails for all rows, and
# a filter that leaves only dated answers in a file changes their type. Read the lines with json and use
# from_list.
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
KINDS = {
    ("2024-01-01", "2024-05-06"): "timestamp[s]",
    ("2024-01-01T10:00:00Z", "2024-05-06"): "timestamp[s]",
    ("2024-01-01", "unknown"): "string",
}
for number, (answers, kind) in enumerate(KINDS.items()):
    path = folder / f"{number}.jsonl"
    path.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    options = dict(data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    read = datasets.load_dataset("json", **options)
    print(f"{answers}: {read.features['answer'].dtype}, str() of the first is {str(read[0]['answer'])!r}")
    assert read.features["answer"].dtype == kind, answers
    assert (str(read[0]["answer"]) == answers[0]) == (kind == "string")
    listed = datasets.Dataset.from_list([{"answer": answer} for answer in answers])
    assert listed.features["answer"].dtype == "string"
    text = datasets.Features({"answer": datasets.Value("string")})
    asked = datasets.load_dataset("json", features=text, **options)["answer"][0]
    print(f"    with features that say string: {asked!r}")
    assert asked == ("2024-01-01" if kind == "string" else str(read[0]["answer"])), asked
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/data"
