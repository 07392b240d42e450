#!/usr/bin/env bash
# datasets 5.2.0: a column of text that `to_csv` wrote comes back from `load_dataset("csv")` with None for the
# answers "None", "NA", "N/A", "null" and "nan" and for empty text, also where the type string is asked for.
#
# One would expect a library to read its own file: to_json and to_parquet do, and a type that is asked for to say
# what is in the column. pandas does the reading, and its words for missing values come along. Seen here, for
# the labels None, NA, N/A, null, nan, empty text and unsafe:
#   to_csv, load_dataset("csv")                    six times None, unsafe
#   the same with features=string                  the same
#   the same with keep_default_na=False            as they were
#   to_json and to_parquet, and back               as they were
#   the answers 007 and 010 by way of CSV          7 and 10; with features=string as they were
# A judge's label "None", or the right answer "N/A" of a question, is a gap after one trip through a file; code
# that drops gaps drops the class, and str() of it is "None" for all six. Pass keep_default_na=False and the
# features, or keep to JSON.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "datasets==5.2.0"

cat >"$folder/look.py" <<'PY'
import pathlib
import sys

import datasets

datasets.disable_progress_bars()
print("datasets", datasets.__version__)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()


def back(kind: str, column: str, **options) -> list:
    file = str(folder / f"{column}.{kind}")
    return datasets.load_dataset(
        kind, data_files=file, cache_dir=str(folder / "cache"), split="train", **options
    )[column][:]


labels = ["None", "NA", "N/A", "null", "nan", "", "unsafe"]
missing = [None] * 6 + ["unsafe"]
made = datasets.Dataset.from_dict({"label": labels})
made.to_csv(folder / "label.csv")
made.to_json(folder / "label.json")
made.to_parquet(folder / "label.parquet")
text = {"features": datasets.Features(label=datasets.Value("string"))}
SEEN = {
    "csv": (back("csv", "label"), missing),
    "csv, type string": (back("csv", "label", **text), missing),
    "csv, keep_default_na=False": (back("csv", "label", keep_default_na=False), labels),
    "json": (back("json", "label"), labels),
    "parquet": (back("parquet", "label"), labels),
}
datasets.Dataset.from_dict({"code": ["007", "010"]}).to_csv(folder / "code.csv")
text = {"features": datasets.Features(code=datasets.Value("string"))}
SEEN["numbers in csv"] = back("csv", "code"), [7, 10]
SEEN["numbers in csv, type string"] = back("csv", "code", **text), ["007", "010"]
for name, (found, expected) in SEEN.items():
    print(f"{name}: {found}")
    assert found == expected, name
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/data"
