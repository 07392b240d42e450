"""Thoughts are told from answers, and replies that the limit cut off from those that ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from resect.cli.eval import _show
from resect.data.encode import PromptIds
from resect.data.load import BehaviourSet
from resect.data.thought import heard
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.evaluate import Evaluation
from resect.evaluation.judging import answers_of, judge_answers, judge_replies, reply_of
from resect.evaluation.probes import find_probe
from resect.evaluation.rates import Rate, notes_of, summarise
from resect.evaluation.spoken import Spoken, cut_off, spoken
from resect.model import LoadedModel
from resect.records import Example, Reply

HARMONY = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("so it goes", None, "so it goes"),
        ("<think> I cannot </think> so it goes", " I cannot ", "so it goes"),
        ("\n<think>\n</think>\n\nso", "\n", "so"),
        ("I cannot </think>\n\nso", "I cannot ", "so"),
        ("<think> so it goes", " so it goes", ""),
        ("<think>a</think><think>b</think>so", "a\nb", "so"),
        ("write <think> and </think> around it", None, "write <think> and </think> around it"),
        ("[THINK]a[/THINK]so", "a", "so"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>so", "a", "<|START_RESPONSE|>so"),
        ("<|channel>thought\na<channel|>so", "thought\na", "so"),
        (f"<|channel|>analysis<|message|>a<|end|>{HARMONY}so<|return|>", "a", "so"),
        ("<|channel|>analysis<|message|>a", "a", ""),
        ("<|channel|>anal", "", ""),
        ("<|channel|>final<|message|>so", None, "so"),
        ("analysisI cannot.assistantfinalso", "I cannot.", "so"),
        (" to=self<|message|>a<|eom|><|start|>assistant to=user<|message|>so<|eot|>", "a", "so"),
    ],
)
def test_replies_are_taken_apart(text: str, thought: str | None, answer: str) -> None:
    assert heard(text) == (thought, answer)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [("a</think>so", "a", "so"), ("a b", "a b", ""), ("", "", "")],
)
def test_a_prompt_may_leave_a_thought_open(text: str, thought: str, answer: str) -> None:
    assert heard(text, within=True) == (thought, answer)


class _Letters:
    """A tokenizer of one token a word, of which those in brackets are special."""

    all_special_tokens = ("<think>", "</think>", "<end>")

    def decode(self, ids: list[str], skip_special_tokens: bool) -> str:
        special = self.all_special_tokens if skip_special_tokens else ()
        return " ".join(word for word in ids if word not in special)


def told(prompt: str, reply: str, prefix: str = "") -> Spoken:
    asked: Any = PromptIds(tuple(prompt.split()), prefix)  # type: ignore[arg-type]
    letters: Any = _Letters()
    words: Any = reply.split()
    return spoken(letters, asked, words, "stop")


@pytest.mark.parametrize(
    ("prompt", "prefix", "reply", "text", "thought"),
    [
        ("how bot", "", "<think> no </think> so it goes <end>", "so it goes", "no"),
        ("how bot <think>", "", "no </think> so it goes <end>", "so it goes", "no"),
        ("how bot <think>", "", "no no", "", "no no"),
        ("how bot <think> sure", "<think> sure", "no no", "", "no no"),
        ("how bot <think> sure </think>", "<think> sure </think>", "so", "so", None),
        ("what is <think> for bot", "", "so it goes", "so it goes", None),
        ("how bot", "", "so it goes <end>", "so it goes", None),
    ],
)
def test_tags_are_found_though_they_are_special_tokens(
    prompt: str, prefix: str, reply: str, text: str, thought: str | None
) -> None:
    assert told(prompt, reply, prefix) == Spoken(text, thought, "stop")


BASE = Reply("1", "generation", "none", "", "how", "", "", reference="so it goes")


@pytest.mark.parametrize("judge", ["exact", "keyword", "keyword:published"])
@pytest.mark.parametrize(
    "reply",
    [
        replace(BASE, text="", thought="I cannot"),
        replace(BASE, text="<think> I cannot"),  # as earlier versions stored it
        replace(BASE, text="<think> I cannot </think>"),
        replace(BASE, prefix="<think> Sure", text="and so on"),
    ],
)
def test_a_thought_without_an_answer_is_unscored(reply: Reply, judge: str) -> None:
    for probe in ("generation", "refusal"):
        settings = EvaluationSettings(judge=judge)
        (judgement,) = judge_replies([replace(reply, probe=probe)], settings)
        assert judgement.score is None
        assert judgement.rule == f"{judge.partition(':')[0]}/no-answer"
        assert judgement.reason == "a thought without an answer"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("<think> I cannot </think> so it goes", "complied"),
        ("<think> so it goes </think> I cannot", "refused"),
    ],
)
def test_what_follows_a_thought_is_judged(text: str, outcome: str) -> None:
    settings = EvaluationSettings(judge="keyword")
    (judgement,) = judge_replies([replace(BASE, text=text)], settings)
    assert judgement.outcome == outcome
    exact = judge_replies([replace(BASE, text=text)], EvaluationSettings(judge="exact"))
    assert exact[0].score == float(outcome == "complied")


def test_a_record_without_thought_and_finish_is_read() -> None:
    row = {"example_id": "1", "probe": "generation", "attack": "none", "category": "",
           "prompt": "how", "prefix": "", "text": "so", "judge_at": 0}  # fmt: skip
    reply = reply_of(row)
    assert (reply.thought, reply.finish) == (None, None)
    assert cut_off([reply]) is None


@pytest.mark.parametrize(("limit", "finish"), [(2, "length"), (3, "stop")])
def test_replies_say_why_they_ended(
    limit: int, finish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model says two words and its end token."""
    from resect.evaluation import ask as asking

    def generate(_model: Any, _tokens: Any, prompts: Any, settings: Any, *_rest: Any) -> Any:
        return [[5, 6][: settings.max_new_tokens] for _ in prompts]

    monkeypatch.setattr(asking, "generate", generate)
    examples = BehaviourSet("x", (Example("1", "w1", "w2"),), "x")
    settings = EvaluationSettings(generation=GenerationSettings(limit))
    loaded = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    (reply,) = ask(loaded, {"utility": examples}, settings)
    assert reply.finish == finish


def test_the_share_that_was_cut_off_stands_beside_the_rate() -> None:
    finishes = ["length", "stop", "stop", "length", None]
    replies = [replace(BASE, example_id=str(n), text="so") for n in range(5)]
    replies = [replace(r, finish=f) for r, f in zip(replies, finishes, strict=True)]  # type: ignore[arg-type]
    (rate,) = summarise("keyword", {"intact": judge_answers(answers_of(replies), "keyword")})
    assert rate["cut_off"] == 0.5
    assert rate["counts"] == "not refused"


@pytest.mark.parametrize(
    ("judge", "probe", "counts"),
    [
        ("keyword:arditi", "generation", "not refused"),
        ("keyword", "refusal", "refused"),
        ("keyword", "utility", "right"),
        ("exact", "generation", "right"),
        ("llm:harmfulness@m", "generation", "grade"),
        ("keyword", "likelihood", None),
    ],
)
def test_rates_say_what_their_judge_counts(judge: str, probe: str, counts: str | None) -> None:
    from resect.evaluation.judges import counted_by

    assert counted_by(judge, find_probe(probe)) == counts


@pytest.mark.parametrize(("share", "warned"), [(0.2, False), (0.25, True), (None, False)])
def test_many_cut_off_replies_are_warned_of(
    share: float | None, warned: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = judge_answers(answers_of([BASE]), "keyword")
    (rate,) = (Rate({**row, "cut_off": share}) for row in summarise("keyword", {"intact": said}))
    # Two judges of the same replies give one warning.
    evaluation = Evaluation([rate], [], notes_of([rate, rate]))
    assert len(evaluation.notes) == warned
    _show(evaluation, tmp_path)
    assert ("cut off by the limit on tokens" in capsys.readouterr().err) == warned
