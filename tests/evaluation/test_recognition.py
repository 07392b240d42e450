"""Recognition: how probable the right one of two answers is, computed another way."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from command_line import call, ok, write
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import parse_attack
from resect.evaluation.judging import judge_replies
from resect.files.tables import read_parquet
from resect.model import LoadedModel
from resect.records import Example

ANSWERS = ("w1 w9", "w2 w9 w9")


def questions(count: int = 6) -> BehaviourSet:
    rows = [
        Example(f"q{n}", f"w{10 + n} w{20 + n}", ANSWERS[n % 2], prefix_tokens=n % 2)
        for n in range(count)
    ]
    return BehaviourSet("questions", tuple(rows), "questions")


def log_prob(model: Any, example: Example, answer: str) -> float:
    """Sum the log-probabilities of an answer's tokens, one forward pass an answer."""
    bare = replace(example, completion=answer, prefix_tokens=0)
    (row,) = encode([bare], tiny.tokenizer(), format="chat")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    logs = torch.log_softmax(logits, dim=-1)
    return sum(
        float(logs[position - 1, row.input_ids[position]])
        for position in range(row.first_scored, len(row.input_ids))
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_it_is_the_share_of_the_right_answer(batch: int) -> None:
    model = tiny.build("llama")
    settings = EvaluationSettings()
    settings = replace(settings, generation=replace(settings.generation, batch_size=batch))
    data = questions()
    replies = ask(LoadedModel(model, tiny.tokenizer()), {"recognition": data}, settings)
    judged = judge_replies(replies, settings)
    for example, reply, judgement in zip(data.examples, replies, judged, strict=True):
        right = log_prob(model, example, example.completion)
        (wrong,) = (log_prob(model, example, a) for a in ANSWERS if a != example.completion)
        expected = 1 / (1 + math.exp(wrong - right))
        assert judgement.score == pytest.approx(expected, rel=1e-4)
        assert reply.nll == pytest.approx(-math.log(expected), rel=1e-4)
        assert (judgement.outcome, reply.reference) == (None, example.completion)


def test_a_cut_or_attacked_model_is_measured_as_it_is() -> None:
    loaded = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    settings = EvaluationSettings()
    rounded = replace(settings, attack=parse_attack("quantise:bits=2+prefill:2"))
    plain, cut, attacked = (
        [reply.nll for reply in ask(loaded, {"recognition": questions()}, how, variant)]
        for how, variant in (
            (settings, None), (settings, tiny.cut(loaded.model)), (rounded, None),
        )
    )  # fmt: skip
    assert plain != cut
    assert plain != attacked


@pytest.mark.parametrize("answers", [("w1", "w1"), ("w1", "w2", "w3"), ("w1", "")])
def test_a_set_without_two_answers_is_refused(answers: tuple[str, ...]) -> None:
    rows = tuple(Example(f"q{n}", f"w{n}", answer) for n, answer in enumerate(answers))
    loaded = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    with pytest.raises(InputError, match="no set for the probe recognition"):
        ask(loaded, {"recognition": BehaviourSet("s", rows, "s")}, EvaluationSettings())


def test_from_the_command_line(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "m")
    rows = [
        {"id": e.id, "prompt": e.prompt, "completion": e.completion} for e in questions().examples
    ]
    write(tmp_path / "two.jsonl", rows)
    write(tmp_path / "one.jsonl", rows[::2])
    command = ["eval", tmp_path / "m", "--probe", "recognition", "-o", tmp_path / "out", "--data"]
    refused = call(*command, tmp_path / "one.jsonl")
    assert refused.returncode == 2
    assert "1 different answers" in refused.stderr
    assert "recognition" in ok(*command, tmp_path / "two.jsonl")
    records = read_parquet(tmp_path / "out" / "records" / "intact.parquet")
    assert all(0 < row["score"] < 1 and row["judge"] == "likelihood" for row in records)
