"""Few-shot: what stands before a question is answered, of the other half, and not the question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from command_line import call, ok, write
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings, ask
from resect.evaluation.attacks import AttackSettings, attack_prompt, parse_attack, shots_for
from resect.evaluation.attacks.few_shot import FewShot, draw_shots, preceded
from resect.evaluation.decode import GenerationSettings
from resect.files.tables import read_parquet
from resect.model import LoadedModel
from resect.records import Example

QUESTION = Example("q", "w50 w51 w52", "w1 w2")


def pool(*prompts: str, split: str = "calibration") -> BehaviourSet:
    rows = [Example(f"e{n}", prompt, f"w{n} w7", split=split) for n, prompt in enumerate(prompts)]
    return BehaviourSet("pool", tuple(rows), "pool")


def apart(count: int) -> list[str]:
    """Return prompts of which no two share a word."""
    return [f"w{3 * n} w{3 * n + 1} w{3 * n + 2}" for n in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("few_shot", AttackSettings("none", shots=FewShot(4))),
        ("few_shot:2", AttackSettings("none", shots=FewShot(2))),
        ("few_shot:k=2,seed=5", AttackSettings("none", shots=FewShot(2, 5))),
        ("few_shot:2+prefill:3", AttackSettings("prefill", 3, shots=FewShot(2))),
        ("few_shot:2+prefill=Sure: 1+1", AttackSettings("prefill", phrase="Sure: 1+1",
                                                         shots=FewShot(2))),
        ("finetune+few_shot:1", AttackSettings("none", model="finetune", shots=FewShot(1))),
        ("prefill:tokens=3", AttackSettings("prefill", 3)),
    ],
)  # fmt: skip
def test_it_is_read(text: str, expected: AttackSettings) -> None:
    assert parse_attack(text) == expected


@pytest.mark.parametrize(
    "text", ["few_shot:0", "few_shot:x", "few_shot=4", "few_shot+few_shot", "few_shot:n=3"]
)
def test_what_it_is_not_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_attack(text)


def test_it_says_which_data_it_needs_and_what_it_is_called() -> None:
    attack = parse_attack("ablate_refusal+few_shot:2+prefill:1")
    assert attack.roles == ("refusal", "target")
    assert attack.label(prompted=True) == "ablate_refusal+few_shot+prefill"
    assert attack.label(prompted=False) == "ablate_refusal"
    assert parse_attack("prefill").roles == ()
    with pytest.raises(InputError, match=r"few_shot lacks data[\s\S]*target=SPEC"):
        shots_for(parse_attack("few_shot"), {}, [QUESTION])


def test_examples_are_of_the_calibration_half_and_none_says_the_same() -> None:
    mixed = [*pool(*apart(6)).examples, *pool("w40 w41", "w42 w43", split="evaluation").examples]
    data = BehaviourSet("mixed", tuple(replace(e, id=str(n)) for n, e in enumerate(mixed)), "m")
    (shots,) = draw_shots(FewShot(6), data, [QUESTION])
    assert {shot.split for shot in shots} == {"calibration"}
    assert len({shot.prompt for shot in shots}) == 6
    with pytest.raises(InputError, match="too few examples for few_shot:7"):
        draw_shots(FewShot(7), data, [QUESTION])


def test_what_says_the_same_as_the_question_or_as_another_example_is_left_out() -> None:
    twin, reworded, other = "W50  w51 w52", "w50 w51 w52 w9", "w20 w21 w22"
    data = pool(twin, reworded, other, "w20 w21 w22 w23", "w30 w31")
    far = Example("far", "w44 w45", "w1")
    shots, of_far = draw_shots(FewShot(2), data, [QUESTION, far])
    assert {shot.prompt for shot in shots} <= {other, "w20 w21 w22 w23", "w30 w31"}
    # Two of a group stand for one example: the question has two groups left, the other has three.
    with pytest.raises(InputError, match=r"2 in pool[\s\S]*'q'"):
        draw_shots(FewShot(3), data, [QUESTION])
    assert len(draw_shots(FewShot(3), data, [far])[0]) == 3
    assert len(of_far) == 2


def test_a_seed_draws_others_and_questions_share_theirs() -> None:
    data = pool(*apart(12))
    asked = [QUESTION, Example("r", "w55 w56", "")]
    first, second = draw_shots(FewShot(3), data, asked)
    assert first == second == draw_shots(FewShot(3), data, asked[:1])[0]
    assert draw_shots(FewShot(5), data, asked)[0][:3] == first
    assert any(draw_shots(FewShot(3, seed), data, asked)[0] != first for seed in (1, 2, 3))


def test_an_example_without_an_answer_shows_nothing() -> None:
    data = pool("w1 w2", "w3 w4")
    bare = replace(data, examples=(replace(data.examples[0], completion=""), data.examples[1]))
    with pytest.raises(InputError, match="1 in pool"):
        draw_shots(FewShot(2), bare, [QUESTION])


def test_in_a_chat_examples_are_turns_after_the_system_message() -> None:
    shots = (Example("a", (("system", "w9"), ("user", "w1")), "w2"), Example("b", "w3", "w4"))
    asked = Example("q", (("system", "w8"), ("user", "w5")), "w6 w7")
    settings = AttackSettings("prefill", 1, shots=FewShot(2))
    prompt = attack_prompt(settings, asked, tiny.tokenizer(), "chat", shots)
    # The tokenizer of the tests knows no word <system>.
    assert tiny.tokenizer().decode(prompt.ids) == (
        "<pad> w8 <user> w1 <assistant> w2 <user> w3 <assistant> w4 <user> w5 <assistant> w6"
    )
    assert prompt.prefix == "w6"


def test_in_raw_format_a_blank_line_parts_them() -> None:
    shots = (Example("a", "w1", "w2"), Example("b", "w3", "w4"))
    assert preceded(QUESTION, shots, "raw").prompt == "w1\nw2\n\nw3\nw4\n\nw50 w51 w52"
    assert preceded(QUESTION, (), "raw") is QUESTION


def test_generation_alone_is_asked_so_and_the_question_is_recorded() -> None:
    loaded = LoadedModel(tiny.build("llama"), tiny.tokenizer())
    asked = BehaviourSet("asked", (QUESTION,), "asked")
    noted: list[object] = []
    replies = {}
    for attack in ("none", "few_shot:3"):
        settings = EvaluationSettings(
            attack=parse_attack(attack), generation=GenerationSettings(max_new_tokens=6)
        )
        data = {"target": pool(*apart(5))}
        rows = ask(loaded, {"generation": asked, "refusal": asked}, settings, attack_data=data,
                   on_attack=noted.append)  # fmt: skip
        replies[attack] = {row.probe: row for row in rows}
    plain, shown = replies["none"], replies["few_shot:3"]
    assert shown["generation"].text != plain["generation"].text
    assert shown["refusal"].text == plain["refusal"].text
    assert (shown["generation"].prompt, shown["generation"].attack) == ("w50 w51 w52", "few_shot")
    assert noted == [{"few_shot": {"k": 3, "seed": 0}, "few_shot_data": "pool"}]


def test_from_the_command_line(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "m")
    write(tmp_path / "items.jsonl", tiny.rows(4, "q"))
    write(tmp_path / "shots.jsonl", tiny.rows(3, "ssss"))
    arguments = [
        "eval", tmp_path / "m", "--probe", "generation", "--data", tmp_path / "items.jsonl",
        "--attack-data", f"target={tmp_path / 'shots.jsonl'}", "--max-new-tokens", 4,
        "-o", tmp_path / "out",
    ]  # fmt: skip
    many = call(*arguments, "--attack", "few_shot:9")
    assert many.returncode == 2
    assert "too few examples for few_shot:9" in many.stderr
    assert not (tmp_path / "out").exists()
    ok(*arguments, "--attack", "few_shot:2")
    rows = read_parquet(tmp_path / "out" / "records" / "intact.parquet")
    assert {row["attack"] for row in rows} == {"few_shot"}
