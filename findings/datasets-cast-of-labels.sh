#!/usr/bin/env bash
# datasets 5.2.0: `cast` and `cast_column` from one ClassLabel to another with the same names in another order
# keep the numbers, so each row changes its label.
#
# One would expect labels to be moved by name, as the words "harmless" and "harmful" are when they are cast to
# a ClassLabel, or a refusal: `concatenate_datasets` refuses two such sets, and a cast is what makes them
# fit. Seen here, for two rows labelled harmless and harmful:
#   cast_column to the names (harmful, harmless)           harmful, harmless
#   cast to the other set's features, then concatenate     the same
#   cast_column to text                                    "0", "1"; from there to the other names: the same
#   cast_column to (harmless, unclear, harmful)            harmless, unclear
# No error and no warning, and the count of each label stays as it was. Use `align_labels_with_mapping`, or
# `int2str` in a map.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "datasets==5.2.0"

cat >"$folder/look.py" <<'PY'
import datasets
from datasets import ClassLabel, Dataset, Features, Value

datasets.disable_progress_bars()
print("datasets", datasets.__version__)


def rows(*names: str) -> Dataset:
    return Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=names)}))


def words(data: Dataset) -> list[str]:
    return [data.features["label"].int2str(number) for number in data["label"]]


ours, theirs = rows("harmless", "harmful"), rows("harmful", "harmless")
assert words(ours) == ["harmless", "harmful"]
try:
    datasets.concatenate_datasets([theirs, ours])
except ValueError as error:
    print("concatenated as they are: ValueError", str(error)[:40])
else:
    raise AssertionError("sets with other orders of names were concatenated")
other = theirs.features["label"]
cast = words(ours.cast_column("label", other))
joined = words(datasets.concatenate_datasets([theirs, ours.cast(theirs.features)]))
text = ours.cast_column("label", Value("string"))
back = words(text.cast_column("label", other))
spelled = Dataset.from_dict({"label": ["harmless", "harmful"]}).cast_column("label", other)
aligned = words(ours.align_labels_with_mapping({"harmful": 0, "harmless": 1}, "label"))
three = words(ours.cast_column("label", ClassLabel(names=["harmless", "unclear", "harmful"])))
print("cast:", cast, "cast and concatenated:", joined, "aligned:", aligned, "three:", three)
print("as text:", text["label"][:], "and from there:", back, "from the words:", words(spelled))
assert cast == ["harmful", "harmless"]
assert joined == ["harmful", "harmless", "harmful", "harmless"]
assert aligned == ["harmless", "harmful"]
assert text["label"][:] == ["0", "1"] and back == ["harmful", "harmless"]
assert words(spelled) == ["harmless", "harmful"]
assert three == ["harmless", "unclear"]
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
