#!/usr/bin/env bash
# lm-eval 0.4.13: if the first row's answer is in square brackets, the answers of all rows are taken apart: a right
# reply to another row is wrong, and the first character of its answer is right.
#
# One would expect a row to be marked by its own answer. `doc_to_target: "{{answer}}"` makes a list of a text in
# brackets, a list in the first row means several right answers in each row, and the text of another row is
# then a list of its characters. Seen here, with exact_match (row's answer, reply, mark):
#                        first answer [3, 5]     first answer 12
#   12       12          0                       1
#   12       1           1                       0
#   (3, 5)   (3, 5)      0                       1
#   [3, 5]   [3, 5]      0                       1
#   [3,5]    [3,5]       0                       0       it is compared with Python's "[3, 5]"
#   ["a"]    ["a"]       0                       0       and with "['a']"
# The log shows the answer as it should be. With `doc_to_target: answer`, the name of the column without
# braces, all of these are marked as one expects.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "lm-eval==0.4.13" "datasets==5.2.0"

cat >"$folder/look.py" <<'PY'
import json
import os
import pathlib
import sys
from importlib.metadata import version

folder = pathlib.Path(sys.argv[1])
folder.mkdir()
os.environ["HF_HOME"] = str(folder / "cache")

import datasets
from lm_eval.api.task import ConfigurableTask

datasets.disable_progress_bars()
print("lm-eval", version("lm-eval"))
CASES = [  # answer, reply, mark behind "[3, 5]", mark behind "12"
    ("12", "12", 0, 1), ("12", "1", 1, 0), ("(3, 5)", "(3, 5)", 0, 1), ("[3, 5]", "[3, 5]", 0, 1),
    ("[3,5]", "[3,5]", 0, 0), ('["a"]', '["a"]', 0, 0),
]


def marks(first: str, target: str) -> list[int]:
    file = folder / "rows.jsonl"
    rows = [{"question": f"q{n}", "answer": answer} for n, answer in enumerate([first, *(c[0] for c in CASES)])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ConfigurableTask(config={
        "task": "ours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "generate_until", "num_fewshot": 0,
        "doc_to_text": "{{question}}", "doc_to_target": target,
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    })
    docs = list(task.eval_docs)[1:]
    return [
        int(task.process_results(doc, [reply])["exact_match"])
        for doc, (_, reply, _, _) in zip(docs, CASES)
    ]


for position, first in enumerate(["[3, 5]", "12"], start=2):
    template, column = marks(first, "{{answer}}"), marks(first, "answer")
    print(f"first answer {first}: {template} by template, {column} by the column's name")
    assert template == [case[position] for case in CASES], template
    assert column == [int(answer == reply) for answer, reply, _, _ in CASES], column
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/data"
