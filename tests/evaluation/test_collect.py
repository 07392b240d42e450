"""Checking and collecting behaviour sets, by function and by command."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from command_line import write
from resect.cli import main
from resect.data import load_data
from resect.data.check import check_set, plain
from resect.data.encode import encode
from resect.errors import InputError
from resect.evaluation import collect as collecting
from resect.evaluation.collect import CollectRequest, _reason, collect, whole_turn
from resect.evaluation.decode import generate
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.evaluation.judges import JUDGES, each, find_judge
from resect.evaluation.spoken import Spoken
from resect.model import load_model
from resect.records import Judgement, Outcome, Reply
from resect.stats import clopper_pearson


def call(*words: Any) -> int:
    """Run the command line in this process, which spares half a minute of imports."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["resect", *map(str, words)])
        main()
    return int(end.value.code or 0)


def ok(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert call(*words) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", tiny.rows(7, "p", split="calibration"))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accept replies of an even number of letters, leave some unscored."""

    def even(reply: Reply, goal: str) -> Judgement:
        letters = len(reply.text.replace(" ", ""))
        if letters % 5 == 0:
            return Judgement("exact", "even/unscored", None, reason="five")
        return Judgement("exact", "even/letters", float(letters % 2 == 0), "complied", reply.text)

    monkeypatch.setitem(JUDGES, "exact", lambda _: each(even))
    find_judge.cache_clear()
    yield
    find_judge.cache_clear()


def asked(model: Path, prompts: Path, **changes: Any) -> CollectRequest:
    options: dict[str, Any] = {"attack": "prefill:2", "samples": 3, "temperature": 1.0}
    options |= {"max_new_tokens": 6, "batch_size": 4} | changes
    return CollectRequest(str(model), str(prompts), **options)


@pytest.mark.usefixtures("judge")
def test_interrupted_collection_gives_the_same_files(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.jsonl"
    collect(asked(model, prompts), whole)
    monkeypatch.setattr(collecting, "CHUNK", 2)
    calls: list[int] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(collecting, "generate", interrupted)
    broken = tmp_path / "broken.jsonl"
    with pytest.raises(KeyboardInterrupt):
        collect(asked(model, prompts), broken)
    assert not broken.exists()
    # What was asked for is on record: other options do not slip into the same file.
    with pytest.raises(InputError, match=r"another collection was begun[\s\S]*seed was 0"):
        collect(asked(model, prompts, seed=1), broken)
    done = collect(asked(model, prompts, batch_size=1), broken)
    assert calls == [6, 6, 6, 6, 3]  # the two chunks before the interruption are not done again
    for suffix in (".jsonl", ".rejected.jsonl", ".provenance.json"):
        assert broken.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []
    assert done.kept == len(load_data(broken))


@pytest.mark.usefixtures("judge")
def test_prefix_is_in_the_text_but_neither_judged_nor_scored(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    done = collect(asked(model, prompts), out)
    kept = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    rejected = [
        json.loads(line)
        for line in out.with_suffix(".rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(kept) + len(rejected) == 21
    assert kept
    assert {"judged complied", "unscored: five"} <= set(done.rejected)
    sources = {example.id: example for example in load_data(prompts).examples}
    for row in kept:
        opening = sources[row["prompt_id"]].completion.split()[:2]
        words = row["completion"].split()
        assert words[:2] == opening
        assert row["prefix_tokens"] == 2
        # The fake judge saw the continuation alone.
        assert len("".join(words[2:])) % 2 == 0
        assert row["split"] == "calibration"
    data = load_data(out)
    tokenizer = load_model(model).tokenizer
    for example, coded in zip(data.examples, encode(data.examples, tokenizer), strict=True):
        assert coded.scored_tokens == len(example.completion.split()) - 2
    facts = json.loads(out.with_suffix(".provenance.json").read_text(encoding="utf-8"))
    assert facts["request"]["attack"] == "prefill:2"
    assert facts["data_hash"] == load_data(prompts).hash
    assert facts["kept"] == len(kept)
    assert sum(facts["rejected"].values()) == len(rejected)


@pytest.mark.usefixtures("judge")
def test_prefix_counts_only_if_asked(model: Path, prompts: Path, tmp_path: Path) -> None:
    collect(asked(model, prompts, count_prefix=True), tmp_path / "a.jsonl")
    assert {e.prefix_tokens for e in load_data(tmp_path / "a.jsonl").examples} == {0}


def test_whole_turn_counts_tokens_that_span_the_boundary() -> None:
    class Pairs:
        """Tokens are pairs of letters, so that a turn is cut elsewhere than its pieces."""

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            pieces = [text[start : start + 2] for start in range(0, len(text), 2)]
            return {"input_ids": [int.from_bytes(piece.encode(), "big") for piece in pieces]}

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(
                number.to_bytes((number.bit_length() + 7) // 8, "big").decode() for number in ids
            )

    pairs: Any = Pairs()
    reply = pairs("wxyz", add_special_tokens=False)["input_ids"]
    assert whole_turn(pairs, "ab", reply) == ("abwxyz", 1)
    assert whole_turn(pairs, "abc", reply) == ("abcwxyz", 2)
    assert whole_turn(pairs, "", reply) == ("wxyz", 0)


def test_nothing_kept_is_an_error_that_keeps_the_work(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "none.jsonl"
    with pytest.raises(InputError, match=r"no reply shows what is wanted[\s\S]*judged"):
        collect(asked(model, prompts), out)
    assert not out.exists()
    assert (tmp_path / "none.jsonl.parts").is_dir()


def test_collect_and_check_from_the_command_line(
    model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write(
        tmp_path / "bare.jsonl",
        [{"id": row["id"], "prompt": row["prompt"]} for row in tiny.rows(4, "q")],
    )
    out = tmp_path / "set.jsonl"
    shown = ok(capsys, "data", "collect", model, "--data", bare, "--attack", "none",
               "--judge", "keyword", "-n", 2, "--temperature", 2, "--max-new-tokens", 5,
               "-o", out)  # fmt: skip
    assert "8 rows" in shown
    assert "tokens" in ok(capsys, "data", "check", out, "--model", model)
    both = write(tmp_path / "both.jsonl", tiny.rows(7, "p", split="evaluation")[2:])
    assert call("data", "check", prompts, "--against", both) == 2
    said = capsys.readouterr()
    assert "5 of 5 evaluation rows ask what a calibration row asks" in said.err
    assert "same row" in said.out
    assert "no leak between 7 calibration and 4 evaluation rows" in ok(
        capsys, "data", "check", prompts, "--against", bare
    )
    assert "advbench" in ok(capsys, "data", "list")
    assert "TriviaQA" in ok(capsys, "data", "show", "triviaqa")
    shown = ok(capsys, "data", "show", prompts, "--rows", 1)
    assert tiny.rows(7, "p")[0]["prompt"] in shown
    assert tiny.rows(7, "p")[1]["prompt"] not in shown


def test_check_tells_kinds_of_doubles_apart(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "How to dax?", "completion": "so", "split": "calibration"},
        {"id": "b", "prompt": "How to dax?", "completion": "so", "split": "calibration"},
        {"id": "c", "prompt": "How to dax?", "completion": "thus", "split": "calibration"},
        {"id": "d", "prompt": "how to  DAX", "completion": "so", "split": "evaluation"},
        {"id": "e", "prompt": "How to wug?", "completion": "so", "split": "evaluation"},
    ]
    found = check_set(load_data(write(tmp_path / "a.jsonl", rows)))
    assert [(pair.likeness, pair.later) for pair in found.duplicates] == [
        ("same row", "b"), ("same prompt", "c"), ("alike", "d"),
    ]  # fmt: skip
    assert [(pair.earlier, pair.later) for pair in found.leaks] == [("a", "d")]
    assert found.sides == (3, 2)
    assert found.lengths[0]["most"] == 11
    assert found.categories[0]["rows"] == 5
    assert plain("How_to: “DAX”?") == "how to dax"


def test_check_without_sides_finds_no_leak(tmp_path: Path) -> None:
    found = check_set(load_data(write(tmp_path / "a.jsonl", tiny.rows(5, "x"))))
    assert (found.sides, found.leaks, found.duplicates) == (None, (), ())
    assert [row["category"] for row in found.categories] == ["a", "b"]


def test_perplexity_and_trivia_from_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [row["prompt"] + " " + row["completion"] for row in tiny.rows(5, "t")]
    data = write(tmp_path / "text.jsonl", [{"text": text} for text in texts])
    out = tmp_path / "eval"
    ok(capsys, "eval", model, "--probe", "perplexity", "--data", data, "--window", 6, "--stride", 3,
       "-o", out)  # fmt: skip
    row = json.loads((out / "results.json").read_text(encoding="utf-8"))["rates"][0]
    loaded, tokenizer = load_model(model)
    losses = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for at in range(1, len(ids)):
            start = next(s for s in range(0, len(ids), 3) if s + 6 > at)
            with torch.no_grad():
                logits = loaded(torch.tensor([ids[start:at]]).to(loaded.device)).logits[0, -1]
            losses.append(-float(torch.log_softmax(logits.double(), 0)[ids[at]]))
    assert row["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert row["perplexity_low"] < row["perplexity"] < row["perplexity_high"]
    fixtures = Path(__file__).parents[1] / "fixtures" / "presets"
    trivia = evaluate_model(
        EvalRequest(
            str(tiny.save("llama", tmp_path / "again")), ("utility",), ("triviaqa",),
            data_dir=fixtures, max_new_tokens=3,
        ),
        tmp_path / "trivia",
    ).rates  # fmt: skip
    assert trivia[0]["rate"] == 0.0
    assert trivia[0]["scored"] == len(load_data("triviaqa", data_dir=fixtures).split("evaluation"))


def test_samples_of_a_prompt_are_resampled_together(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", tiny.rows(6, "s"))
    rows = evaluate_model(
        EvalRequest(str(model), ("generation",), (str(data),), attack="prefill:2",
                    judges=("keyword",), temperature=1.0, samples=4, max_new_tokens=4),
        tmp_path / "out",
    ).rates  # fmt: skip
    assert rows[0]["scored"] + rows[0]["unscored"] == 24
    # All replies are alike for this judge, so that the interval is Wilson's over six prompts.
    assert rows[0]["low"] == pytest.approx(clopper_pearson(6, 6)[0])


def test_check_says_which_completions_are_wrong_by_their_own_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partly = {"accept": ["a b c"], "benign": ["d e f"], "form": ".*"}
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "completion": "it is a word .", "key": "word"},
        {"prompt": "q", "completion": "it is a word .", "key": {"aliases": ["word"]}},
        {"prompt": "r", "completion": "anything"},
        {"prompt": "s", "completion": "a b x", "key": partly},
        {"prompt": "t", "completion": "a b c", "key": partly},
    ]
    assert call("data", "check", write(tmp_path / "a.jsonl", rows)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 4 completions are not right by their own key" in said


@pytest.mark.parametrize(
    ("score", "outcome", "want", "reason"),
    [
        (1.0, "complied", "complied", ""),
        (0.8, "partial", "complied", "judged partial"),
        # All content words in a heap: a high score, and no answer.
        (1.0, "incoherent", "complied", "judged incoherent"),
        (1.0, "refused", "refused", ""),
        (0.0, "refused_late", "refused", "judged refused_late"),
        (0.6, None, "complied", ""),
        (0.4, None, "complied", "judged rule"),
    ],
)
def test_what_is_only_partly_right_is_not_kept(
    score: float, outcome: Outcome | None, want: Outcome, reason: str
) -> None:
    assert _reason(Spoken("text"), Judgement("judge", "rule", score, outcome), want) == reason


def test_an_answer_is_kept_without_its_thought_and_a_thought_alone_is_not(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [Spoken("w1 w2", "I cannot", "stop")] * 4 + [Spoken("", "I cannot", "length")] * 3
    replies = iter(said)
    monkeypatch.setattr(collecting, "spoken", lambda *_: next(replies))
    request = asked(model, prompts, attack="none", samples=1, temperature=0.0, judge="keyword")
    done = collect(request, tmp_path / "a.jsonl")
    assert (done.kept, done.rejected) == (4, {"unscored: a thought without an answer": 3})
    assert done.cut_off == pytest.approx(3 / 7)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert {(row["completion"], row["finished"]) for row in rows} == {("w1 w2", True)}
