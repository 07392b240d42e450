"""What is scored of a set: answers where their target is, texts, the words of prompts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from command_line import write
from oracles import reference_nll
from resect.data.load import BehaviourSet, load_data
from resect.edit.live import removed
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import parse_attack
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.judging import judge_replies, reply_of, rows_of
from resect.evaluation.likelihood import (
    Reading,
    Span,
    read,
    refuse_without_answers,
    score,
)
from resect.model import LoadedModel
from resect.records import Format, Reply


def loaded(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
    return LoadedModel(tiny.build(architecture, dtype=dtype), tiny.tokenizer())


def answers(folder: Path, count: int = 7) -> BehaviourSet:
    rows = tiny.rows(count, "r")
    for number, row in enumerate(rows):
        # Of different lengths, so that batches are padded.
        row["completion"] = " ".join(row["completion"].split()[: 4 + number % 3])
    return load_data(write(folder / "answers.jsonl", rows))


def ids_of(format: Format, prompt: str, answer: str = "") -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of an answer, written by hand from the template of `tiny`."""

    def encoded(text: str) -> list[int]:
        ids: list[int] = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
        return ids

    if format == "raw":
        return encoded(prompt), encoded(answer)
    return encoded(f"<user> {prompt} <assistant>"), encoded(answer)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("format", ["raw", "chat"])
@pytest.mark.parametrize("span", [Span(), Span(2), Span(1, 2)])
def test_answers_are_scored_where_their_target_is(
    span: Span, format: Format, dtype: torch.dtype, batch_size: int, tmp_path: Path
) -> None:
    model = loaded(dtype=dtype)
    data = answers(tmp_path)
    reading = Reading(format, batch_size, {"any name": span})
    replies = read(model, "any name", data, reading, "finetune")
    for example, reply in zip(data.examples, replies, strict=True):
        assert isinstance(example.prompt, str)
        prompt, answer = ids_of(format, example.prompt, example.completion)
        answer = answer[: None if span.tokens is None else span.skip + span.tokens]
        expected = reference_nll(model.model, prompt + answer, len(prompt) + span.skip)
        close = 1e-5 if dtype == torch.float32 else 0.05
        assert reply.nll == pytest.approx(expected, abs=close)
        assert reply.tokens == len(answer) - span.skip
        assert score(reply).score == math.exp(-(reply.nll or 0))
        assert (reply.probe, reply.attack) == ("any name", "finetune")
        assert (reply.text, reply.reference) == ("", example.completion)
    assert len({reply.tokens for reply in replies}) > 1 or span.tokens


@pytest.mark.parametrize("format", ["raw", "chat"])
def test_the_words_of_a_prompt_are_scored_and_the_template_is_not(
    format: Format, tmp_path: Path
) -> None:
    model = loaded()
    rows: list[dict[str, Any]] = tiny.rows(3, "p")
    rows[1]["prompt"] = "w5"
    rows[2]["prompt"] = [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w3"},
        {"role": "user", "content": "w4 w5 w6"},
    ]
    data = load_data(write(tmp_path / "prompts.jsonl", rows[1:] if format == "chat" else rows[:1]))
    for reply, example in zip(
        read(model, "prompts", data, Reading(format)), data.examples, strict=True
    ):
        if format == "raw":
            before, words = ids_of("raw", "")[0], ids_of("raw", rows[0]["prompt"])[0]
        elif example.prompt == "w5":
            before, words = ids_of("raw", "<user>", "w5")
        else:
            before, words = ids_of("raw", "<user> w1 w2 <assistant> w3 <user>", "w4 w5 w6")
        start = max(1, len(before))
        expected = reference_nll(model.model, before + words, start)
        assert reply.nll == pytest.approx(expected, abs=1e-5)
        assert reply.tokens == len(before + words) - start
        assert reply.reference == ""


def test_texts_are_scored_as_a_whole_and_in_windows(tmp_path: Path) -> None:
    model = loaded()
    long = " ".join(f"w{number % 50}" for number in range(100))
    data = load_data(write(tmp_path / "texts.jsonl", [{"text": "w1 w2 w3"}, {"text": long}]))
    short, windowed = read(model, "prose", data, Reading())
    ids = [1, *ids_of("raw", "w1 w2 w3")[0]]
    beginning = getattr(tiny.tokenizer(), "bos_token_id", None)
    ids = ids if beginning is not None else ids[1:]
    assert short.nll == pytest.approx(reference_nll(model.model, ids, 1), abs=1e-5)
    assert windowed.tokens == 99 + (beginning is not None)
    assert windowed.reference == long


def test_a_cut_is_in_force_and_an_opening_is_not(tmp_path: Path) -> None:
    model = loaded()
    data = answers(tmp_path)
    mask = tiny.cut(model.model)

    def asked(attack: str, cut: bool) -> list[Reply]:
        settings = EvaluationSettings(
            attack=parse_attack(attack),
            generation=GenerationSettings(batch_size=3),
            measure="likelihood",
            spans={"generation": Span(1)},
        )
        return ask(model, {"generation": data, "side": data}, settings, mask if cut else None)

    intact, cut = asked("none", cut=False), asked("none", cut=True)
    assert asked("prefill:2", cut=True) == cut
    assert {reply.attack for reply in cut} == {"none"}
    for reply in cut:
        example = next(e for e in data.examples if e.id == reply.example_id)
        assert isinstance(example.prompt, str)
        prompt, answer = ids_of("chat", example.prompt, example.completion)
        skip = 1 if reply.probe == "generation" else 0
        with removed(model.model, mask):
            expected = reference_nll(model.model, prompt + answer, len(prompt) + skip)
        assert reply.nll == pytest.approx(expected, abs=1e-5)
    assert all(a.nll != b.nll for a, b in zip(intact, cut, strict=True))
    # What a record holds is judged without a judge, whatever the probe is called.
    again = [reply_of(row) for row in rows_of(cut, None)]
    settings = EvaluationSettings(measure="likelihood", judge="no such judge")
    assert judge_replies(again, settings) == [score(reply) for reply in cut]


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    model = loaded()
    bare = load_data(write(tmp_path / "bare.jsonl", [{"prompt": "w1"}]), prompts_only=True)
    text = load_data(write(tmp_path / "text.jsonl", [{"text": "w1"}]))
    with pytest.raises(InputError, match="has no answer whose likelihood"):
        refuse_without_answers("side", bare)
    refuse_without_answers("prompts", bare)
    with pytest.raises(InputError, match="has no prompt whose words"):
        refuse_without_answers("prompts", text)
    refuse_without_answers("side", text)
    with pytest.raises(InputError, match="too short a text"):
        read(model, "side", text, Reading())
    with pytest.raises(InputError, match="no token to score"):
        read(model, "side", answers(tmp_path), Reading("chat", 4, {"side": Span(9)}))
    long = load_data(write(tmp_path / "long.jsonl", [{"prompt": "w1 " * 80, "completion": "w2"}]))
    with pytest.raises(InputError, match="the words of the prompt"):
        read(model, "prompts", long, Reading())
    unread = Reply("x", "side", "none", "", "p", "", "")
    assert score(unread).score is None
