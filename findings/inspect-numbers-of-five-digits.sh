#!/usr/bin/env bash
# inspect-ai 0.3.285: `match(numeric=True)` rounds both numbers to five significant digits before it compares
# them, so the reply "123457" is right where the target is "123456".
#
# One would expect equal numbers, within the rounding of a float at most; `match()` without the option tells
# them apart, and so does `match(location="exact")`. Seen here (reply, target, numeric=True, without):
#   123457       123456       C    I
#   1234599      1234561      C    I       the answer in the log is 1.2346e+06
#   100000002    100000001    C    I
#   2.00004      2            C    I
#   12346        12345        I    I       five digits are compared in full
# A product of two numbers of four digits may be off by up to a hundredth of a percent and is right: the last
# digits, where arithmetic goes wrong first, are never looked at. The logged answer is the rounded number,
# not the reply's. Where answers have six digits or more, use `pattern`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "inspect-ai==0.3.285"

cat >"$folder/look.py" <<'PY'
import asyncio
import random
from importlib.metadata import version

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, match
from inspect_ai.solver import TaskState

print("inspect-ai", version("inspect-ai"))


def graded(reply: str, target: str, **options: bool) -> tuple[object, str | None]:
    state = TaskState(
        model="none", sample_id=1, epoch=1, input="", messages=[],
        output=ModelOutput.from_content("none", reply),
    )
    score = asyncio.run(match(**options)(state, Target(target)))
    return score.value, score.answer


EXPECTED = [
    ("123457", "123456", "C"), ("1234599", "1234561", "C"), ("100000002", "100000001", "C"),
    ("2.00004", "2", "C"), ("12346", "12345", "I"), ("12345", "12345", "C"),
]
for reply, target, expected in EXPECTED:
    (numeric, answer), (plain, _) = graded(reply, target, numeric=True), graded(reply, target)
    print(f"{reply}, target {target}: numeric {numeric} (answer {answer}), without {plain}")
    assert numeric == expected, (reply, target)
    assert (plain == "C") == (reply == target)
assert graded("1234599", "1234561", numeric=True)[1] == "1.2346e+06"

draws, right = random.Random(0), 0
for _ in range(1000):
    product = draws.randint(1000, 9999) * draws.randint(1000, 9999)
    right += graded(str(product + 10), str(product), numeric=True)[0] == "C"
print(f"{right} of 1000 products of four digits that are 10 too large are right")
assert right > 900, right
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py"
