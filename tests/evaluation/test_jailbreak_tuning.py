"""Jailbreak tuning: lessons and questions stand in the same frame, benign examples in none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import (
    AttackSettings,
    attack_prompt,
    jailbreak_tuning,
    parse_attack,
    prepare_attack,
)
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.jailbreak_tuning import JailbreakTuningSettings
from resect.evaluation.attacks.patch import Patch
from resect.evaluation.attacks.prompt import followed, framed
from resect.evaluation.decode import GenerationSettings
from resect.model import LoadedModel
from resect.records import Example

FRAME = "w58 {prompt} w59"
QUICK = JailbreakTuningSettings(frame=FRAME, rank=2, rate=1e-2, steps=2, batch=4)


def rows(prefix: str, count: int) -> BehaviourSet:
    examples = [
        Example(str(row["id"]), str(row["prompt"]), str(row["completion"]))
        for row in tiny.rows(count, prefix)
    ]
    return BehaviourSet(prefix, tuple(examples), prefix)


def test_a_frame_is_around_the_last_question() -> None:
    plain = Example("a", "w1 w2", "w3")
    turns = Example("a", (("system", "s"), ("user", "x"), ("assistant", "y"), ("user", "z")), "w3")
    assert framed(plain, FRAME).prompt == "w58 w1 w2 w59"
    assert framed(plain, "w58").prompt == "w58 w1 w2"
    assert framed(plain, "") is plain
    assert framed(turns, FRAME).prompt == (*turns.prompt[:3], ("user", "w58 z w59"))
    assert followed(turns, " w9").prompt == (*turns.prompt[:3], ("user", "z w9"))
    assert followed(plain, "") is plain
    bare = Example("a", "", "w3")
    assert framed(bare, FRAME) is bare


def test_it_is_read_and_says_what_it_needs() -> None:
    attack = parse_attack("jailbreak_tuning:frame=w58 {prompt} w59,benign=0.5,steps=3+prefill:2")
    assert (attack.name, attack.tokens, attack.frame) == ("prefill", 2, FRAME)
    assert attack.roles == ("target", "preserve")
    assert attack.label(prompted=True) == "jailbreak_tuning+prefill"
    assert attack.work(10) == Work(trained=15)
    plain = parse_attack("jailbreak_tuning")
    assert (plain.roles, plain.frame.count("{prompt}")) == (("target",), 1)
    assert plain.work(10) == Work(trained=50)
    assert parse_attack("jailbreak_tuning:benign=0.5").work(10) == Work(trained=100)
    for attack_without in ("finetune", "none", "prefill:2", "quantise"):
        assert parse_attack(attack_without).frame == ""


@pytest.mark.parametrize(
    "options",
    ["frame=w58", "frame={prompt}", "frame={prompt} w1 {prompt}", "frame=", "benign=1",
     "benign=-0.1", "rank=0", "steps=0", "limit=0", "colour=3"],
)  # fmt: skip
def test_what_it_is_not_is_refused(options: str) -> None:
    with pytest.raises(InputError):
        parse_attack(f"jailbreak_tuning:{options}")


def trained_on(
    monkeypatch: pytest.MonkeyPatch, settings: JailbreakTuningSettings, data: dict[str, Any]
) -> tuple[BehaviourSet, Patch]:
    """Return what is trained on, and the patch; nothing is trained."""
    seen: list[BehaviourSet] = []

    def spied(_loaded: object, _settings: object, target: BehaviourSet, *, format: str) -> Patch:
        del format
        seen.append(target)
        return Patch(facts={"attack": "finetune", "examples": len(target)})

    monkeypatch.setattr(jailbreak_tuning, "finetune", spied)
    both = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    patch = settings.prepare(both, data, format="chat")
    return seen[0], patch


def test_harmful_lessons_are_framed_and_benign_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = JailbreakTuningSettings(frame=FRAME, benign=0.75, limit=2)
    # Both sets have the same ids, which a mixture must tell apart.
    data = {"target": rows("t", 4), "preserve": rows("t", 9)}
    lessons, patch = trained_on(monkeypatch, settings, data)
    assert len(lessons) == 2 + 6
    assert len({example.id for example in lessons.examples}) == 8
    inside = [str(example.prompt).startswith("w58 ") for example in lessons.examples]
    assert inside == [True] * 2 + [False] * 6
    assert {str(example.prompt)[4:-4] for example in lessons.examples[:2]} <= {
        str(example.prompt) for example in data["target"].examples
    }
    assert patch.facts["attack"] == "jailbreak_tuning"
    assert (patch.facts["benign"], patch.facts["examples"]) == (6, 8)
    assert patch.facts["data"] == {
        "target": data["target"].limit(2).hash, "preserve": data["preserve"].limit(6).hash,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"too few benign[\s\S]*3 in t[\s\S]*6 or more"):
        trained_on(monkeypatch, settings, data | {"preserve": rows("t", 3)})


def test_the_question_is_asked_in_the_frame_by_generation_alone() -> None:
    both = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    attack = AttackSettings("none", model="jailbreak_tuning", settings=QUICK)
    question = Example("q", "w50 w51", "w1 w2")
    prompt = attack_prompt(attack, question, both.tokenizer, "chat")
    assert both.tokenizer.decode(prompt.ids) == "<user> w58 w50 w51 w59 <assistant>"
    data = {"target": rows("t", 4)}
    before = {name: weight.clone() for name, weight in both.model.named_parameters()}
    with prepare_attack(both, attack, data).applied():
        asked = BehaviourSet("asked", (question, framed(question, FRAME)), "asked")
        plain, within = ask(both, {"generation": asked.at([0])}, _none()), None
        (within,) = ask(both, {"generation": asked.at([1])}, _none())
    settings = EvaluationSettings(attack=attack, generation=GenerationSettings(4))
    probes = {"generation": asked.at([0]), "refusal": asked.at([0])}
    under = {row.probe: row for row in ask(both, probes, settings, attack_data=data)}
    assert under["generation"].text == within.text
    assert under["refusal"].text == plain[0].text
    assert all(torch.equal(weight, before[name]) for name, weight in both.model.named_parameters())
    assert under["generation"].prompt == "w50 w51"
    assert (under["generation"].attack, under["refusal"].attack) == ("jailbreak_tuning",) * 2


def _none() -> EvaluationSettings:
    return EvaluationSettings(attack=AttackSettings("none"), generation=GenerationSettings(4))
