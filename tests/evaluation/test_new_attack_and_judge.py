"""An attack and a judge are a file and a line in a dictionary: each is added here and used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import tiny
from command_line import write
from resect.data.encode import PromptIds, encode_prompt
from resect.data.load import BehaviourSet
from resect.edit.live import shrunk
from resect.errors import InputError
from resect.evaluation.attacks import MODEL_ATTACKS, PROMPT_ATTACKS, parse_attack
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.patch import Patch
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.evaluation.judges import JUDGES, Judge, each, find_judge
from resect.evaluation.probes import Goal
from resect.files.tables import read_parquet
from resect.model import LoadedModel, prunable_tensors
from resect.records import Example, Format, Judgement, Reply, Tokenizer
from resect.report.words import ATTACKS, readable


@dataclass(frozen=True)
class Shrink:
    """Shrink all prunable weights; the set of its role is only counted."""

    usage: ClassVar[str] = "[:factor=F]"
    words: ClassVar[str] = "shrunk weights"

    factor: float = 0.5

    @property
    def roles(self) -> tuple[str, ...]:
        return ("target",)

    def work(self, examples: int) -> Work:
        return Work(scored=examples)

    def prepare(
        self, loaded: LoadedModel, data: Mapping[str, BehaviourSet], *, format: Format
    ) -> Patch:
        del format
        weights = prunable_tensors(loaded.model)
        counted = {"factor": self.factor, "examples": len(data["target"])}
        return Patch(lambda: shrunk(weights, self.factor), counted)


def whisper(
    example: Example, tokenizer: Tokenizer, format: Format, tokens: int, phrase: str | None
) -> PromptIds:
    """Open the turn with one word, whatever is asked for."""
    del tokens
    return encode_prompt(example, tokenizer, format=format, prefix_text=phrase or "w1")


def short(option: str) -> Judge:
    """Return a judge for which a reply of at most so many words is a hit."""

    def judge(reply: Reply, goal: Goal) -> Judgement:
        hit = (len(reply.text.split()) <= int(option)) == (goal == "comply")
        return Judgement("short", "short/words", float(hit), raw=reply.text)

    return each(judge)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.save("llama", tmp_path / "m")
    write(tmp_path / "items.jsonl", tiny.rows(6, "q"))
    write(tmp_path / "target.jsonl", tiny.rows(5, "tt"))
    return tmp_path


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_ATTACKS, "shrink", Shrink)
    monkeypatch.setitem(PROMPT_ATTACKS, "whisper", whisper)


def request(folder: Path, attack: str, *judges: str) -> EvalRequest:
    return EvalRequest(
        model=str(folder / "m"), data=(str(folder / "items.jsonl"),),
        probes=("generation", "refusal"), attack=attack, judges=judges or ("exact",),
        max_new_tokens=6,
        attack_data=(str(folder / "target.jsonl"),) if "shrink" in attack else (),
    )  # fmt: skip


@pytest.mark.usefixtures("attacks")
def test_new_attacks_are_asked_and_recorded(folder: Path) -> None:
    evaluate_model(request(folder, "none"), folder / "plain")
    evaluate_model(request(folder, "shrink:factor=0.1+whisper"), folder / "attacked")
    plain, rows = (
        read_parquet(folder / name / "records" / "intact.parquet") for name in ("plain", "attacked")
    )
    assert {(row["probe"], row["attack"], row["prefix"]) for row in rows} == {
        ("generation", "shrink+whisper", "w1"), ("refusal", "shrink", ""),
    }  # fmt: skip
    assert [row["text"] for row in rows[6:]] != [row["text"] for row in plain[6:]]
    results = json.loads((folder / "attacked" / "results.json").read_text(encoding="utf-8"))
    assert results["provenance"]["attacks"]["intact"] == {"factor": 0.1, "examples": 5}


@pytest.mark.usefixtures("attacks")
def test_a_new_attack_is_read_costed_and_named() -> None:
    attack = parse_attack("shrink:factor=0.1+whisper=w2 w3")
    assert (attack.on_model, attack.name, attack.phrase) == (Shrink(0.1), "whisper", "w2 w3")
    assert attack.work(7) == Work(scored=7, trained=0)
    assert parse_attack("whisper:3").work(7) == Work()
    assert readable("shrink+whisper") == "shrink + whisper"
    with pytest.raises(InputError, match=r"unknown option[\s\S]*allowed: factor"):
        parse_attack("shrink:speed=3")
    with pytest.raises(
        InputError,
        match=r"unknown attack[\s\S]*whisper\[:K\], whisper=PHRASE[\s\S]*shrink\[:factor=F\]",
    ):
        parse_attack("shrunk")


@pytest.mark.usefixtures("attacks")
def test_a_new_attack_says_which_data_it_lacks(folder: Path) -> None:
    lacking = EvalRequest(
        model=str(folder / "m"), probes=("refusal",), data=(str(folder / "items.jsonl"),),
        attack="shrink",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"the attack shrink lacks data[\s\S]*target=SPEC"):
        evaluate_model(lacking, folder / "out")


def test_the_attacks_at_hand_cost_what_their_settings_say() -> None:
    costs = {
        text: parse_attack(text).work(100)
        for text in (
            "prefill", "finetune", "finetune:limit=20,epochs=2", "finetune:steps=3,batch=4",
            "ablate_refusal", "ablate_refusal:published,limit=none", "ablate_direction",
            "finetune_full:steps=3,batch=4",
        )
    }  # fmt: skip
    assert costs == {
        "prefill": Work(),
        "finetune": Work(trained=500),
        "finetune:limit=20,epochs=2": Work(trained=40),
        "finetune:steps=3,batch=4": Work(trained=12),
        "ablate_refusal": Work(scored=256),
        "ablate_refusal:published,limit=none": Work(scored=200),
        "ablate_direction": Work(scored=200),
        "finetune_full:steps=3,batch=4": Work(trained=12),
    }


def test_reports_call_attacks_what_they_call_themselves() -> None:
    # Reports load no torch and so no attack; their words are held to the attacks' own here.
    assert {name: ATTACKS[name] for name in MODEL_ATTACKS} == {
        name: attack.words for name, attack in MODEL_ATTACKS.items()
    }


def test_a_new_judge_judges_and_is_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown judge"):
        evaluate_model(request(folder, "none", "short:5"), folder / "out")
    monkeypatch.setitem(JUDGES, "short", short)
    evaluation = evaluate_model(request(folder, "none", "short:5", "keyword"), folder / "out")
    rates = {(row["judge"], row["probe"]): row["rate"] for row in evaluation.rates}
    assert set(rates) == {
        ("short:5", "generation"), ("short:5", "refusal"),
        ("keyword", "generation"), ("keyword", "refusal"),
    }  # fmt: skip
    assert {row["judges"] for row in evaluation.agreement} == {"short:5 · keyword"}
    with pytest.raises(InputError, match=r"unknown judge[\s\S]*allowed: .*short"):
        find_judge("shorter")
