#!/usr/bin/env bash
# datasets 5.2.0 with pandas 3.1.1: a column that holds text in some rows and parts in others is written to
# Parquet as JSON text, so other readers see quotation marks around every plain answer.
#
# One would expect "hello" to be "hello" in any reader of the file. The library gives such a column a type of
# its own; it reads its own file back as it was, and others do not know the type. Seen here, for chat content
# as text in one row and as a list of parts in the next:
#   datasets, in memory                   hello          [{"type": "text", "text": "hi"}]
#   pandas.read_parquet of its file       "hello"        [{"type":"text","text":"hi"}]   both str
# No error: a model is asked `"hello"` with its marks, and parts as source text. A set where all rows are
# text has no such marks, so one row of another form changes all others. Look for the extension type
# arrow.json in the schema.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "datasets==5.2.0" "pandas==3.1.1"

cat >"$folder/look.py" <<'PY'
import json
import pathlib
import sys

import datasets
import pandas

datasets.disable_progress_bars()
print("datasets", datasets.__version__, "pandas", pandas.__version__)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
parts = [{"type": "text", "text": "hi"}]
EXPECTED = {
    "text alone": (["hello", "hi"], ["hello", "hi"]),
    "mixed": (["hello", parts], ['"hello"', '[{"type":"text","text":"hi"}]']),
}
for name, (contents, expected) in EXPECTED.items():
    lines, table = folder / f"{name}.jsonl", folder / f"{name}.parquet"
    lines.write_text("".join(json.dumps({"content": content}) + "\n" for content in contents))
    read = datasets.load_dataset(
        "json", data_files=str(lines), split="train", cache_dir=str(folder / "cache")
    )
    assert read["content"][:] == contents, read["content"][:]
    read.to_parquet(str(table))
    elsewhere = pandas.read_parquet(table)["content"].tolist()
    print(f"{name}: {contents} is {elsewhere} in pandas")
    assert elsewhere == expected, elsewhere
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/data"
