#!/usr/bin/env bash
# inspect-ai 0.3.285: the scorers `exact()` and `f1()` call the reply "A" wrong where the target is "A", and the
# reply "-5" right where it is "5".
#
# One would expect equal texts to be an exact match. Both scorers first drop articles, signs and punctuation,
# and what is left empty matches nothing. Seen here (reply, target, exact, f1):
#   A        A        I    0.0       so do "an" and "the"
#   B        B        C    1.0
#   -5       5        C    1.0       also -3.5 and 3.5
#   C++      C        C    1.0
#   1/2      12       C    1.0
# In multiple choice by letters every question whose answer is A is lost, a quarter of the score, and no
# model can be better; in arithmetic a wrong sign is right. Use `choice`, `pattern` or, for
# numbers of up to five digits, `match(numeric=True)`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "inspect-ai==0.3.285"

cat >"$folder/look.py" <<'PY'
import asyncio
from importlib.metadata import version

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, exact, f1
from inspect_ai.solver import TaskState

print("inspect-ai", version("inspect-ai"))
EXPECTED = [
    ("A", "A", "I", 0.0), ("an", "an", "I", 0.0), ("the", "the", "I", 0.0),
    ("B", "B", "C", 1.0), ("no", "no", "C", 1.0),
    ("-5", "5", "C", 1.0), ("-3.5", "3.5", "C", 1.0), ("C++", "C", "C", 1.0), ("1/2", "12", "C", 1.0),
]
for reply, target, *expected in EXPECTED:
    state = TaskState(
        model="none", sample_id=1, epoch=1, input="", messages=[],
        output=ModelOutput.from_content("none", reply),
    )
    scores = [asyncio.run(scorer(state, Target(target))).value for scorer in (exact(), f1())]
    print(f"{reply!r}, target {target!r}: exact {scores[0]}, f1 {scores[1]}")
    assert scores == expected, (reply, target, scores)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
