#!/usr/bin/env bash
# datasets 5.2.0: `Dataset.from_generator` with a function that reads a file returns the rows of the first call
# after the file has changed, in a new process too.
#
# One would expect the function to run: `Dataset.from_list(list(function()))` does, and `load_dataset` looks at
# its files. The rows are cached by the code and the arguments of the function, and a path stays the same when
# its content changes. Seen here:
#   file with 3 rows                        3 rows
#   the same file with 1 row                the 3 old rows; the function is not called
#   the same in a new process               the 3 old rows
#   another path to that file               1 row
# A set that was mended, filtered or decontaminated is trained on as it was before, and nothing says so.
# Pass the content, or its hash, in `gen_kwargs`, or use from_list.
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
folder, state = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(exist_ok=True)


def rows(path):
    print("  the function is called")
    for line in pathlib.Path(path).read_text().splitlines():
        yield {"text": line}


def read(name: str) -> list[str]:
    kwargs = {"path": str(folder / name)}
    return datasets.Dataset.from_generator(
        rows, gen_kwargs=kwargs, cache_dir=str(folder / "cache")
    )["text"][:]


old = ["a", "b", "c"]
if state == "first":
    (folder / "rows.txt").write_text("a\nb\nc\n")
    assert read("rows.txt") == old
    (folder / "rows.txt").write_text("d\n")
again = read("rows.txt")
print(f"{state} process: the file has {(folder / 'rows.txt').read_text().split()}, from_generator {again}")
assert again == old, again
if state == "second":
    (folder / "copy.txt").write_text("d\n")
    assert read("copy.txt") == ["d"]
    listed = datasets.Dataset.from_list(list(rows(folder / "rows.txt")))["text"][:]
    assert listed == ["d"]
    print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/data" first
"$folder/env/bin/python" "$folder/look.py" "$folder/data" second
