#!/usr/bin/env bash
# inspect-ai 0.3.285: `stderr` and `std` of a single sample are 0, and `accuracy` of none is 0.
#
# One would expect no number, as lm-eval says N/A and numpy says nan: from one sample nothing is known of the
# spread. Seen here:
#   stderr, std of one sample      0
#   accuracy of no sample          0.0
#   stderr of five right ones      0.0, too
# A table with intervals shows the task with one question as the one that is known exactly, and an average
# that weighs by 1 / stderr^2 divides by zero or follows it alone. A run whose samples were all filtered out
# reads as a model that fails each. Look at the number of samples before the interval.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "inspect-ai==0.3.285"

cat >"$folder/look.py" <<'PY'
from importlib.metadata import version

from inspect_ai.scorer import SampleScore, Score, accuracy, std, stderr

print("inspect-ai", version("inspect-ai"))


def scores(*values: float) -> list[SampleScore]:
    return [SampleScore(score=Score(value=value)) for value in values]


seen = {
    "stderr of one": stderr()(scores(1.0)),
    "std of one": std()(scores(1.0)),
    "accuracy of none": accuracy()(scores()),
    "stderr of five equal": stderr()(scores(*[1.0] * 5)),
    "stderr of two": stderr()(scores(0.0, 1.0)),
}
print(seen)
assert list(seen.values()) == [0, 0, 0, 0, 0.5], seen
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
