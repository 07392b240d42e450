#!/usr/bin/env bash
# inspect-ai 0.3.285: the scorer `match()` looks at the last letters of the reply and not at its last word:
# "unsafe" is a correct answer where the target is "safe".
#
# One would expect the end of the reply to be its last word, since `match` is what one takes instead of
# `includes`. Seen here (reply, target, score):
#   This is unsafe.           safe        C
#   The answer is 24          4           C      (numeric=True: I)
#   That is incorrect         correct     C
#   I do not know             now         C
#   Nothing, begin            no          C      (location="begin": the first letters)
# Accuracy of a judge with the labels safe and unsafe is then too high, and a wrong number that
# ends alike is right. Use numeric=True for numbers, `exact` or `pattern` for labels.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "inspect-ai==0.3.285"

cat >"$folder/look.py" <<'PY'
import asyncio
from importlib.metadata import version

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, match
from inspect_ai.solver import TaskState

print("inspect-ai", version("inspect-ai"))
EXPECTED = [
    (match(), "This is unsafe.", "safe", "C"),
    (match(), "This is safe.", "unsafe", "I"),
    (match(), "The answer is 24", "4", "C"),
    (match(numeric=True), "The answer is 24", "4", "I"),
    (match(), "That is incorrect", "correct", "C"),
    (match(), "I do not know", "now", "C"),
    (match(location="begin"), "Nothing", "no", "C"),
]
for scorer, reply, target, expected in EXPECTED:
    state = TaskState(
        model="none", sample_id=1, epoch=1, input="", messages=[],
        output=ModelOutput.from_content("none", reply),
    )
    score = asyncio.run(scorer(state, Target(target))).value
    print(f"{reply!r}, target {target!r}: {score}")
    assert score == expected, (reply, target)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
