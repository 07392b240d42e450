"""A sought suffix: its gradient, its swaps, what of it is text, and what it is joined with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import oracles
import tiny
from command_line import call, ok, write
from resect import stats
from resect.data.chat import text_ids
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.evaluation import attacks
from resect.evaluation.ask import EvaluationSettings, ask, made
from resect.evaluation.attacks import AttackSettings, parse_attack, seek_suffix, sought_on
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.gcg import (
    Around,
    Gcg,
    Lesson,
    Suffix,
    as_text,
    changes_by_gradient,
    find_suffix,
    first_suffix,
    losses_of,
    writable,
)
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.served import Asking, ask_server, parse_backend
from resect.files.tables import read_parquet
from resect.model import LoadedModel
from resect.records import Encoded, Example, Reply

QUICK = Gcg(steps=3, length=3, candidates=12, prompts=2, tokens=3)
ASKED = BehaviourSet("asked", (Example("q", "w50 w51 w52", "w1 w2"),), "asked")


def loaded(architecture: str = "llama") -> LoadedModel:
    return LoadedModel(tiny.build(architecture), tiny.tokenizer())


def pool(count: int = 4, *, split: str = "calibration") -> BehaviourSet:
    rows = [
        Example(f"e{n}", f"w{3 * n} w{3 * n + 1}", f"w{n + 40} w{n + 41} w7 w8 w9", split=split)
        for n in range(count)
    ]
    return BehaviourSet("pool", tuple(rows), "pool")


def lessons_of(data: BehaviourSet, tokens: int = 3) -> list[Lesson]:
    """Return the lessons of a set in raw format, with nothing else around a prompt."""

    def lesson(example: Example) -> Lesson:
        return Lesson(
            lambda suffix: tuple(text_ids(tiny.tokenizer(), f"{example.prompt}{suffix}\n")),
            tuple(text_ids(tiny.tokenizer(), example.completion)[:tokens]),
        )

    return [lesson(example) for example in data.examples]


def brute_loss(model: Any, lessons: Sequence[Lesson], suffix: str) -> float:
    """Return the loss of a suffix from its text: each prompt by itself, plain logits."""
    total = 0.0
    for lesson in lessons:
        asked = lesson.prompt(suffix)
        row = Encoded("", (*asked, *lesson.answer), len(asked))
        with torch.no_grad():
            total += float(oracles.example_loss(model, row))
    return total / len(lessons)


def test_where_all_swaps_are_tried_the_best_single_one_is_found() -> None:
    both = loaded()
    settings = Gcg(steps=1, length=2, candidates=1000, top=64, prompts=2, tokens=3)
    lessons = lessons_of(pool(2))
    words = writable(both.tokenizer, 64)
    draw = stats.rng("attack/gcg/here", 0)
    start = first_suffix(both.tokenizer, words, settings, lessons, draw).suffix
    swapped = [(*start[:place], word, *start[place + 1 :]) for place in range(2) for word in words]
    losses = {ids: brute_loss(both.model, lessons, as_text(both.tokenizer, ids)) for ids in swapped}
    best = min(losses, key=lambda ids: losses[ids])
    suffix = find_suffix(both, settings, lessons, label="here")
    assert suffix.text == as_text(both.tokenizer, best)
    assert suffix.losses == pytest.approx((losses[start], losses[best]), rel=1e-5)
    assert losses[best] < losses[start]


def by_one_hot(model: Any, prompt: Around, suffix: tuple[int, ...]) -> Tensor:
    """Return the gradient [n, V] of a prompt's loss by one-hot vectors of the suffix' tokens."""
    row = torch.tensor(prompt.row(suffix))
    table = model.get_input_embeddings()(torch.arange(64)[None])[0].detach()
    hot = torch.nn.functional.one_hot(torch.tensor(suffix), 64).float().requires_grad_()
    start = len(prompt.before)
    embedded = torch.cat([table[row[:start]], hot @ table, table[row[start + len(suffix) :]]])
    logits = model(inputs_embeds=embedded[None]).logits[0]
    first = len(row) - len(prompt.answer)
    loss = torch.nn.functional.cross_entropy(logits[first - 1 : -1], row[first:])
    (gradient,) = torch.autograd.grad(loss, hot)
    return gradient


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_the_gradient_is_that_by_one_hot_vectors(architecture: str) -> None:
    model = tiny.build(architecture)
    suffix, words = (9, 30, 31), list(range(4, 64))
    prompts = [Around((5, 6, 7), (3,), (20, 21)), Around((8,), (3,), (22,))]
    changes = changes_by_gradient(model, prompts, suffix, words)
    gradient = torch.stack([by_one_hot(model, each, suffix) for each in prompts]).mean(0)
    now = torch.stack([row[token] for row, token in zip(gradient, suffix, strict=True)])
    assert torch.allclose(changes, gradient[:, words] - now[:, None], atol=1e-4, rtol=1e-4)
    assert changes.abs().max() > 0.01


@pytest.mark.parametrize("batch", [1, 16])
def test_losses_are_those_of_each_prompt_alone(batch: int) -> None:
    both, lessons = loaded(), lessons_of(pool(2))
    prompts = [
        Around(tuple(text_ids(both.tokenizer, str(example.prompt))), (), lesson.answer)
        for example, lesson in zip(pool(2).examples, lessons, strict=True)
    ]
    suffixes = [(9, 10), (11, 12), (13, 14)]
    expected = [brute_loss(both.model, lessons, as_text(both.tokenizer, each)) for each in suffixes]
    assert losses_of(both.model, prompts, suffixes, batch) == pytest.approx(expected, rel=1e-5)


def test_the_loss_never_rises_and_the_seed_says_all() -> None:
    both = loaded()
    before = {name: weight.clone() for name, weight in both.model.named_parameters()}
    attack = AttackSettings("none", suffix=QUICK)

    def seek(seed: int) -> Suffix:
        settings = replace(attack, suffix=replace(QUICK, seed=seed))
        return seek_suffix(both, settings, {"target": pool()}, format="chat")

    first, again, other = seek(0), seek(0), seek(1)
    assert first == again
    assert first.text != other.text
    for suffix in (first, other):
        assert len(suffix.losses) == 4
        assert list(suffix.losses) == sorted(suffix.losses, reverse=True)
        assert suffix.losses[-1] < suffix.losses[0]
        assert len(suffix.text.split()) == 3
    assert all(torch.equal(weight, before[name]) for name, weight in both.model.named_parameters())
    assert all(weight.requires_grad for weight in both.model.parameters())


def merging() -> Any:
    """Return a tokenizer that reads some pairs of its tokens as one, as those of real models do."""
    names = ["<pad>", "<eos>", "Ċ", "Ġ", "0", "a", "b", "c", "Ġa", "Ġb", "Ġc", "ab", "Ġab", "Ġcb"]
    merges = [("Ġ", "a"), ("Ġ", "b"), ("Ġ", "c"), ("a", "b"), ("Ġa", "b"), ("Ġc", "b")]
    backend = tokenizers.Tokenizer(
        models.BPE({name: number for number, name in enumerate(names)}, merges)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def test_what_is_read_again_as_other_tokens_is_dropped() -> None:
    tokenizer = merging()
    # Neither special tokens nor blanks and breaks; the model has more rows than there are words.
    words = writable(tokenizer, 64)
    assert tokenizer.convert_ids_to_tokens(words) == [
        "0", "a", "b", "c", "Ġa", "Ġb", "Ġc", "ab", "Ġab", "Ġcb",
    ]  # fmt: skip
    assert writable(tokenizer, 6) == words[:2]
    rows = (Example("x", "a b", "c a b c"), Example("y", "b c", "a b c"))
    data = {"target": BehaviourSet("merging", rows, "merging")}
    both = LoadedModel(tiny.build("llama"), tokenizer)
    dropped = 0
    for seed in range(4):
        quick = Gcg(steps=3, length=3, candidates=16, prompts=2, tokens=2, seed=seed)
        settings = AttackSettings("none", suffix=quick)
        suffix = seek_suffix(both, settings, data, format="raw")
        ids = attacks.attack_prompt(settings, rows[0], tokenizer, "raw", suffix=suffix.text).ids
        plain = attacks.attack_prompt(settings, rows[0], tokenizer, "raw").ids
        assert (ids[: len(plain) - 1], ids[-1]) == (plain[:-1], plain[-1])
        # A first token without a blank of its own has one before it.
        assert ids[len(plain) - 1 : -4] in ((), (3,))
        assert set(ids[-4:-1]) <= set(words)
        assert as_text(tokenizer, ids[-4:-1]) == suffix.text
        dropped += suffix.dropped
    assert dropped > 0


def test_where_no_suffix_can_be_text_it_is_said() -> None:
    tokenizer = merging()
    lesson = Lesson(lambda suffix: (5, 6), (7,))
    with pytest.raises(InputError, match=r"no suffix of 2 tokens[\s\S]*length=N"):
        find_suffix(LoadedModel(tiny.build("llama"), tokenizer), Gcg(length=2), [lesson], label="x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gcg", AttackSettings("none", suffix=Gcg())),
        (
            "gcg:steps=5,length=3,candidates=7,prompts=2,seed=1",
            AttackSettings("none", suffix=Gcg(5, 3, 7, prompts=2, seed=1)),
        ),
        ("gcg:top=9,tokens=2+prefill:3", AttackSettings("prefill", 3, suffix=Gcg(top=9, tokens=2))),
    ],
)
def test_it_is_read(text: str, expected: AttackSettings) -> None:
    assert parse_attack(text) == expected


@pytest.mark.parametrize(
    "text",
    ["gcg:steps=0", "gcg:length=0", "gcg:candidates=0", "gcg:top=0", "gcg:prompts=0",
     "gcg:tokens=0", "gcg:seed=-1", "gcg:steps=x", "gcg:colour=1", "gcg:5", "gcg+gcg", "gcg=words"],
)  # fmt: skip
def test_what_it_is_not_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_attack(text)


def test_what_it_needs_costs_and_is_called() -> None:
    attack = parse_attack("ablate_refusal+few_shot:2+gcg:steps=2,prompts=3,candidates=6+prefill:1")
    assert attack.roles == ("refusal", "target")
    assert attack.label(prompted=True) == "ablate_refusal+few_shot+gcg+prefill"
    assert attack.label(prompted=False) == "ablate_refusal"
    assert attack.work(10) == Work(scored=2 * 128 + 2 * 3 * (1 + 2))
    mixed = BehaviourSet(
        "mixed", (*pool(4).examples, Example("n", "w1", "", split="calibration"),
                  *pool(6, split="evaluation").examples), "mixed",
    )  # fmt: skip
    few = AttackSettings("none", suffix=Gcg(prompts=4))
    chosen = sought_on(few, {"target": mixed})
    assert chosen is not None
    assert {example.split for example in chosen.examples} == {"calibration"}
    with pytest.raises(InputError, match=r"too few examples for a suffix on 5[\s\S]*4 with answ"):
        sought_on(AttackSettings("none", suffix=Gcg(prompts=5)), {"target": mixed})
    with pytest.raises(InputError, match=r"gcg lacks data[\s\S]*target=SPEC"):
        sought_on(few, {})


def test_it_is_sought_under_the_rest_of_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Lesson] = []

    def spied(*arguments: Any, **_named: Any) -> Suffix:
        seen.extend(arguments[2])
        return Suffix(" w9", (1.0,))

    monkeypatch.setattr(attacks, "find_suffix", spied)
    settings = parse_attack("few_shot:1+gcg:prompts=1,tokens=2+prefill:2")
    seek_suffix(loaded(), settings, {"target": pool(3)}, format="raw")
    (lesson,) = seen
    (example,) = sought_on(settings, {"target": pool(3)}).examples  # type: ignore[union-attr]
    words = tiny.tokenizer().decode(lesson.prompt(" w9"))
    shown, _, asked = words.rpartition(f"{example.prompt} w9")
    assert asked.split() == example.completion.split()[:2]
    # A prompt, and an answer of five words, of another example.
    assert len(shown.split()) == 2 + 5
    assert tiny.tokenizer().decode(lesson.answer).split() == example.completion.split()[2:4]
    # Of a fixed opening nothing says where in the answer it would stand.
    seen.clear()
    seek_suffix(loaded(), replace(settings, phrase="w3", shots=None), {"target": pool(3)},
                format="raw")  # fmt: skip
    assert tiny.tokenizer().decode(seen[0].answer).split() == example.completion.split()[:2]


def test_each_variant_has_its_own_and_its_words_are_not_written() -> None:
    both = loaded()
    attack = AttackSettings("none", suffix=replace(QUICK, steps=6))
    replies: dict[tuple[str, str, str], Reply] = {}
    noted: list[Mapping[str, Any]] = []
    for name, variant in {"intact": None, "cut": tiny.cut(both.model)}.items():
        for put in (AttackSettings("none"), attack):
            settings = EvaluationSettings(attack=put, generation=GenerationSettings(6))
            rows = ask(
                both, {"generation": ASKED, "refusal": ASKED}, settings, variant,
                attack_data={"target": pool()}, on_attack=noted.append,
            )  # fmt: skip
            for row in rows:
                replies[name, row.probe, row.attack] = row
    for name in ("intact", "cut"):
        asked = replies[name, "generation", "gcg"]
        assert asked.nll != replies[name, "generation", "none"].nll
        assert asked.prompt == "w50 w51 w52"
    assert {key[2] for key in replies if key[1] == "refusal"} == {"none"}
    facts: list[Any] = [note["gcg"] for note in noted]
    assert len({fact["suffix"] for fact in facts}) == 2
    assert all(fact["loss_after"] < fact["loss_before"] for fact in facts)
    assert all(fact["settings"]["steps"] == fact["steps"] == 6 for fact in facts)
    with made(both.model, tiny.cut(both.model)):
        found = seek_suffix(both, attack, {"target": pool()}, format="chat")
    assert found.facts["suffix"] == facts[1]["suffix"]
    assert not any(word in str(facts) for word in found.text.split())


def test_nothing_is_sought_where_no_probe_is_asked_so() -> None:
    settings = EvaluationSettings(
        attack=AttackSettings("none", suffix=QUICK), generation=GenerationSettings(2)
    )
    noted: list[object] = []
    ask(loaded(), {"refusal": ASKED}, settings, attack_data={"target": pool()},
        on_attack=noted.append)  # fmt: skip
    assert noted == []


def test_prompts_without_room_are_refused_before_the_search() -> None:
    longer, long = (
        AttackSettings("none", suffix=replace(QUICK, length=length)) for length in (59, 58)
    )
    settings = EvaluationSettings(attack=longer, generation=GenerationSettings(2))
    with pytest.raises(InputError, match=r"'q' leaves no room[\s\S]*or the suffix"):
        ask(loaded(), {"generation": ASKED}, settings, attack_data={"target": pool()})
    with pytest.raises(InputError, match=r"longer than the model's context[\s\S]*length=N"):
        seek_suffix(loaded(), long, {"target": pool()}, format="chat")


def test_a_server_has_no_gradients() -> None:
    settings = EvaluationSettings(attack=AttackSettings("none", suffix=QUICK))
    with pytest.raises(InputError, match="a server gives none"):
        ask_server(
            parse_backend("openai:http://127.0.0.1:9/v1"), Asking(tiny.tokenizer(), {}, settings)
        )


def test_from_the_command_line(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "m")
    write(tmp_path / "items.jsonl", tiny.rows(4, "q"))
    write(tmp_path / "pool.jsonl", tiny.rows(3, "ssss"))
    arguments = [
        "eval", tmp_path / "m", "--probe", "generation", "--data", tmp_path / "items.jsonl",
        "--attack-data", f"target={tmp_path / 'pool.jsonl'}", "--max-new-tokens", 4,
        "-o", tmp_path / "out",
    ]  # fmt: skip
    many = call(*arguments, "--attack", "gcg:prompts=9")
    assert many.returncode == 2
    assert "too few examples for a suffix on 9 prompts" in many.stderr
    assert not (tmp_path / "out").exists()
    ok(*arguments, "--attack", "gcg:prompts=2,steps=1,length=2,candidates=4")
    rows = read_parquet(tmp_path / "out" / "records" / "intact.parquet")
    assert {row["attack"] for row in rows} == {"gcg"}
