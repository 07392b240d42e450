"""What `resect run` says beforehand of its cells, questions and time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from resect.data import BehaviourSet
from resect.records import Tokenizer
from resect.runs.config import RunConfig
from resect.runs.forecast import Rows, expected_here
from resect.runs.run import plan_run
from resect.runs.searching import is_searched, most_questions

# Rows of a set whose length is measured for the estimate of the time.
MEASURED = 64


def rows_of(tokenizer: Tokenizer, sets: Mapping[str, BehaviourSet]) -> Rows:
    """Return how many rows are scored and asked at most, and how long a few of them are."""
    counts = {
        split: max(sum(row.split == split for row in data.examples) for data in sets.values())
        for split in ("calibration", "evaluation")
    }
    texts = [
        f"{example.prompt} {example.completion}"
        for data in sets.values()
        for example in data.examples[:MEASURED]
    ]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return Rows(round(statistics.mean(lengths)), counts["calibration"], counts["evaluation"])


def expected(config: RunConfig, rows: Rows, sets: Mapping[str, BehaviourSet]) -> str:
    """Return how many cells and questions a run has, and how long it takes here at most, in words.

    Args:
        config: The run.
        rows: What its sets hold.
        sets: Set to its rows, by its name under `data`.
    """
    cells = plan_run(config)
    minutes = max(1, round(expected_here(config, cells, rows) / 60))
    replies = config.evaluation.measure == "replies"
    searched = ""
    if is_searched(config):
        probes = config.evaluation.probes
        questions = most_questions(
            config, cells, lambda probe: len(sets[probes[probe]].split("evaluation"))
        )
        searched = f", of whose questions at most {questions} are asked"
    return (
        f"by {config.evaluation.instrument}: {len(cells)} cells{searched}, at most about "
        f"{minutes:,} min on this machine: an estimate from its speed"
        f"{', with replies in full length' * replies}{' and the whole grid' * bool(searched)}"
    )
