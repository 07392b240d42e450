"""Variants that share passes: the replies and likelihoods of the variants one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

import masked
import tiny
from command_line import write
from resect.data.load import BehaviourSet, load_data
from resect.edit.many import Cuttable, NotTogether
from resect.edit.trial import routes_of
from resect.evaluation.ask import EvaluationSettings, ask, ask_together
from resect.evaluation.attacks import parse_attack
from resect.evaluation.decode import GenerationSettings
from resect.evaluation.drift import drift
from resect.model import LoadedModel, prunable_tensors
from resect.records import Reply
from resect.weights.fill import fill

WORDS = range(4, tiny.VOCABULARY)
# Ten tokens that all prompts open with, so that their keys are lent to all rows.
OPENING = " ".join(tiny.WORDS[:10])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BehaviourSet]:
    """Return answers behind a common opening, answers of different lengths, and texts."""
    folder = tmp_path_factory.mktemp("sets")
    rows = tiny.rows(7, "r")
    for number, row in enumerate(rows):
        row["completion"] = " ".join(row["completion"].split()[: 3 + number % 4])
    opened = [row | {"prompt": f"{OPENING} {row['prompt']}"} for row in rows]
    texts = [{"text": f"{row['prompt']} {row['completion']}"} for row in rows]
    named = {"answers": rows, "opened": opened, "texts": texts}
    return {name: load_data(write(folder / f"{name}.jsonl", of)) for name, of in named.items()}


def variants_of(model: Any) -> list[Cuttable]:
    filled = fill(tiny.cut(model, 0.02, seed=7), prunable_tensors(model), "mean")
    return [tiny.cut(model, 0.01), tiny.cut(model, 0.03), tiny.cut(model, 0.02, 5), None, filled]


def both(
    model: Any, probes: dict[str, BehaviourSet], settings: EvaluationSettings
) -> list[tuple[Reply, Reply]]:
    """Return each reply of the variants asked one by one, beside the one asked together."""
    loaded, variants = LoadedModel(model, tiny.tokenizer()), variants_of(model)
    before = masked.state(model)
    joint = ask_together(loaded, probes, settings, variants, routes_of(model, WORDS))
    assert masked.same(model, before)
    alone: list[Sequence[Reply]] = [ask(loaded, probes, settings, variant) for variant in variants]
    pairs = [
        pair
        for usual, shared in zip(alone, joint, strict=True)
        for pair in zip(usual, shared, strict=True)
    ]
    # Other variants have other numbers, so that a row of another one would be seen.
    assert len({reply.nll for reply in alone[0] + alone[1]}) > len(alone[0])  # type: ignore[operator]
    return pairs


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gemma2"])
def test_likelihoods(architecture: str, batch_size: int, sets: dict[str, BehaviourSet]) -> None:
    settings = EvaluationSettings(
        format="raw", measure="likelihood", generation=GenerationSettings(batch_size=batch_size)
    )
    probes = {"any": sets["answers"], "opened": sets["opened"], "prompts": sets["answers"]}
    for usual, shared in both(
        tiny.build(architecture), probes | {"texts": sets["texts"]}, settings
    ):
        # Rounding of float32 through two layers.
        assert shared.nll == pytest.approx(usual.nll, rel=1e-5, abs=1e-6)
        assert replace(shared, nll=usual.nll) == usual


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_replies(architecture: str, temperature: float, sets: dict[str, BehaviourSet]) -> None:
    settings = EvaluationSettings(
        format="raw",
        attack=parse_attack("prefill:2"),
        generation=GenerationSettings(
            6, 3, temperature=temperature, samples=2 if temperature else 1
        ),
    )
    probes = {"generation": sets["answers"], "refusal": sets["answers"]}
    probes |= {"likelihood": sets["answers"], "perplexity": sets["texts"]}
    pairs = both(tiny.build(architecture), probes, settings)
    assert len({shared.text for _, shared in pairs}) > 10
    for usual, shared in pairs:
        for name in ("nll", "kl"):
            value = getattr(usual, name)
            close = None if value is None else pytest.approx(value, rel=1e-5, abs=1e-6)
            assert getattr(shared, name) == close
        # No two tokens of these models are as likely as each other.
        assert replace(shared, nll=usual.nll, kl=usual.kl) == usual
    compared = drift(tiny.tokenizer(), *map(list, zip(*pairs, strict=True)))
    assert (compared.different, compared.replies) == (0, len(pairs))
    assert compared.tokens > 100
    assert compared.nll == pytest.approx(0, abs=1e-4)


def test_an_attack_on_the_weights_is_refused(sets: dict[str, BehaviourSet]) -> None:
    model = tiny.build("llama")
    settings = EvaluationSettings(format="raw", attack=parse_attack("finetune"))
    loaded, routes = LoadedModel(model, tiny.tokenizer()), routes_of(model, WORDS)
    with pytest.raises(NotTogether, match="attack"):
        ask_together(loaded, {"generation": sets["answers"]}, settings, [None, None], routes)


def test_drift_counts_the_tokens_that_differ() -> None:
    def reply(text: str, nll: float | None) -> Reply:
        return Reply("id", "generation", "none", "", "", "", text, nll=nll)

    alone = [reply("w1 w2 w3", 1.0), reply("w1 w2", 2.0), reply("w1", None), reply("w1", 3.0)]
    joint = [reply("w1 w4 w3", 9.0), reply("w1 w2 w5", 9.0), reply("w1", 1.0), reply("w1", 3.25)]
    compared = drift(tiny.tokenizer(), alone, joint)
    assert (compared.replies, compared.tokens, compared.different) == (4, 7, 2)
    # Of replies with other words the NLL is of those words.
    assert compared.nll == 0.25
