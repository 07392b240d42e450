"""Replies by our own loop, and many side by side, against those of transformers' `generate`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from resect import stats
from resect.errors import InputError
from resect.evaluation import replies, steps, tried, wide
from resect.evaluation.decode import GenerationSettings, by_length, decoding_as, evaluating
from resect.evaluation.decode import generate as ours
from resect.evaluation.padding import padded
from resect.evaluation.picking import Draw
from resect.evaluation.room import Room

LENGTHS = (3, 9, 5, 14, 7, 6, 11, 4)
PROMPTS = [
    stats.rng("test/replies", number).integers(4, tiny.VOCABULARY, size=length).tolist()
    for number, length in enumerate(LENGTHS)
]
NEW = 12
WIDE_AND_NARROW = (torch.float32, torch.bfloat16)
OWN = ("llama", "gemma3", "qwen3", "gpt_neox", "gpt2", "bloom", "qwen3_moe", "phi3", "gemma2")


def mamba() -> Any:
    """Return a random model that keeps a state in the place of keys and values."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = MambaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def build(architecture: str, ends: Sequence[int] = (1,), **options: Any) -> Any:
    model = mamba() if architecture == "mamba" else tiny.build(architecture, **options)
    model.generation_config.eos_token_id = list(ends)
    return model


def generated(
    model: Any, prompts: Sequence[Sequence[int]], settings: GenerationSettings
) -> list[list[int]]:
    """Return the replies of transformers' own loop, batch by batch: the slow twin."""
    from transformers import GenerationConfig

    ends = sorted({*model.generation_config.eos_token_id, 1})
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens, pad_token_id=0, eos_token_id=ends
    )
    answers: list[list[int]] = [[] for _ in prompts]
    with evaluating(model), decoding_as(model, config):
        for batch in by_length(prompts, settings.batch_size):
            ids, mask = padded([prompts[number] for number in batch], 0, left=True)
            processors = []
            if settings.temperature:
                uniforms = [stats.rng(f"reply/{n}").random(settings.max_new_tokens) for n in batch]
                draw = Draw(torch.tensor(np.stack(uniforms)), settings.temperature, ids.shape[1])
                processors.append(draw)
            output = model.generate(input_ids=ids, attention_mask=mask, logits_processor=processors)
            for number, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                answers[number] = list(itertools.takewhile(lambda t: t not in ends, row))
    return answers


def decoded(
    model: Any, prompts: Sequence[Sequence[int]], settings: GenerationSettings
) -> list[list[int]]:
    streams = [stats.rng(f"reply/{n}") for n in range(len(prompts) if settings.temperature else 0)]
    return ours(model, tiny.tokenizer(), prompts, settings, streams)


def ways(model: Any) -> tried.Ways:
    """Return what the trial of a model has shown."""
    (way,) = tried._WAYS[model].values()
    return way


def some_ends(model: Any, settings: GenerationSettings) -> list[int]:
    """Return two tokens at which some replies end, at different places, and others do not."""
    free = generated(model, PROMPTS, settings)
    words = sorted({token for reply in free for token in reply})
    pairs = itertools.combinations(words, 2)
    stops = [
        [next((n for n, t in enumerate(reply) if t in pair), None) for reply in free]
        for pair in pairs
    ]
    best = max(
        range(len(stops)), key=lambda n: len(set(stops[n])) + (None in stops[n]) * len(stops[n])
    )
    assert len(set(stops[best])) > 2
    return list(list(itertools.combinations(words, 2))[best])


class Rows:
    """Counts the rows and tokens that a model is called with."""

    def __init__(self, model: Any):
        self.calls: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model: Any, _args: Any, named: dict[str, Any]) -> None:
        self.calls.append(tuple(named["input_ids"].shape))

    @property
    def rows(self) -> int:
        return sum(rows for rows, tokens in self.calls if tokens == 1)


@pytest.mark.parametrize("architecture", [*OWN, "qwen3_next", "mamba"])
def test_greedy(architecture: str) -> None:
    model, settings = build(architecture), GenerationSettings(NEW, 3)
    model.generation_config.eos_token_id = some_ends(model, settings)
    answers = decoded(model, PROMPTS, settings)
    assert answers == generated(model, PROMPTS, settings)
    assert len({len(answer) for answer in answers}) > 2
    assert ways(model).ours == (architecture in OWN)
    if architecture in OWN:
        # Rounding of float32 through two layers; where experts are chosen it can be anything.
        continuous = tried.LEAST <= ways(model).rounding < 1e-5
        assert continuous == (architecture != "qwen3_moe")


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampled_and_16_bit(architecture: str, dtype: torch.dtype) -> None:
    model = build(architecture, dtype=dtype)
    for temperature in (0.0, 0.8) if dtype is torch.float32 else (0.0,):
        settings = GenerationSettings(NEW, 3, temperature)
        assert decoded(model, PROMPTS, settings) == generated(model, PROMPTS, settings)


@pytest.mark.parametrize("architecture", OWN)
def test_logits_are_those_of_generate_to_the_bit(architecture: str) -> None:
    """Also behind more tokens than a window holds, which the trial does not reach."""
    from transformers import GenerationConfig

    model = build(architecture)
    batch = padded(PROMPTS[:4], 0, left=True)
    config = GenerationConfig(
        max_new_tokens=NEW, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    with evaluating(model), decoding_as(model, config):
        whole = model.generate(input_ids=batch.ids, attention_mask=batch.mask).logits
        ending = steps.Ending(frozenset(), NEW, 0)
        own = [step.logits for step in steps.stepped(steps.Steps(model), batch, ending)]
    assert len(own) == NEW
    assert all(torch.equal(a, b) for a, b in zip(whole, own, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bloom"])
def test_rows_leave_and_join(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MOST_ROWS", 6)
    monkeypatch.setattr(wide, "SPARE", 1)
    model, settings = build(architecture), GenerationSettings(NEW, 4)
    prompts = PROMPTS * 2
    model.generation_config.eos_token_id = some_ends(model, settings)
    usual = Rows(model)
    twin = generated(model, prompts, settings)
    before = usual.rows
    decoded(model, PROMPTS[:1], settings)  # the trial
    usual.calls.clear()
    assert decoded(model, prompts, settings) == twin
    assert max(rows for rows, _ in usual.calls) <= 6
    # Rows that have ended are not decoded on, save a few, and calls are fewer.
    assert usual.rows < before


class Shifted:
    """Lets what comes side by side be off by more than the trial has seen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.times = 0
        take = wide.Wide._take

        def shifted(way: wide.Wide, logits: Tensor, places: slice) -> None:
            self.times += 1
            take(way, logits.roll(1, -1), places)

        monkeypatch.setattr(wide.Wide, "_take", shifted)


def test_a_lead_that_said_too_much_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = build("llama"), GenerationSettings(NEW, 3)
    twin = generated(model, PROMPTS, settings)
    decoded(model, PROMPTS, settings)
    # One reply is not sure, so that its batch is decoded again; the others do not agree with that.
    answers = wide.Wide.answers

    def unsure(way: wide.Wide, batches: Sequence[wide.Batch]) -> dict[wide.Name, wide.Answer]:
        several = answers(way, batches)
        name = wide.Name(0, batches[0].numbers[0])
        return several | {name: several[name]._replace(unsure=[0])}

    monkeypatch.setattr(wide.Wide, "answers", unsure)
    shifted = Shifted(monkeypatch)
    assert decoded(model, PROMPTS, settings) == twin
    times = shifted.times
    assert times > 0
    assert ways(model).rounding == float("inf")
    assert decoded(model, PROMPTS, settings) == twin
    assert shifted.times == times


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        *((name, dtype) for name in ("llama", "gemma3", "bloom") for dtype in WIDE_AND_NARROW),
        ("qwen3_moe", torch.float32),
    ],
)
def test_continuous_differs_by_rounding_alone(architecture: str, dtype: torch.dtype) -> None:
    """Where a token is another one, the model finds both as likely, but for rounding."""
    model, settings = build(architecture, dtype=dtype), GenerationSettings(NEW, 2)
    model.generation_config.eos_token_id = some_ends(model, settings)
    every = replace(settings, decoding="continuous")
    decoded(model, PROMPTS[:1], every)  # the trial
    assert ways(model).rounding < (0.1 if dtype.itemsize == 2 else tried.MOST)
    twin, seen = generated(model, PROMPTS, settings), Rows(model)
    answers = decoded(model, PROMPTS, every)
    # More rows than a batch, and no batch again.
    assert max(rows for rows, tokens in seen.calls if tokens == 1) > 4
    assert sum(tokens > 1 for _, tokens in seen.calls) == len(by_length(PROMPTS, 2))
    for prompt, ours_, usual in zip(PROMPTS, answers, twin, strict=True):
        same = [a == b for a, b in zip([*ours_, None], [*usual, None], strict=False)]
        if all(same):
            continue
        place = same.index(False)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *usual[:place]]])).logits[0, -1].float()
        ends = model.generation_config.eos_token_id
        likely = [
            logits[[row[place]] if place < len(row) else ends].max() for row in (ours_, usual)
        ]
        assert abs(likely[0] - likely[1]) <= 2 * ways(model).rounding * logits.abs().max()


def test_continuous_leaves_a_model_alone_that_minds_its_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, settings = build("llama", dtype=torch.bfloat16), GenerationSettings(NEW, 3)
    forward = type(model).forward

    def minding(*args: Any, **named: Any) -> Any:
        output = forward(*args, **named)
        output.logits = output.logits.roll(len(named["input_ids"]), -1)
        return output

    monkeypatch.setattr(type(model), "forward", minding)
    every = replace(settings, decoding="continuous")
    assert decoded(model, PROMPTS, every) == generated(model, PROMPTS, settings)
    assert ways(model) == tried.Ways(True, float("inf"), ways(model).bytes_a_token)


def test_the_spread_of_changes_minds_no_shift_and_no_words_ruled_out() -> None:
    draw = torch.Generator().manual_seed(0)
    usual, noise = (torch.randn(3, 500, generator=draw) for _ in range(2))
    usual[:, 7] = -torch.inf
    rows = torch.tensor([2, 0, 1])
    changed = tried._Compared(usual[rows] + 5 + 0.1 * noise, rows)
    assert tried._spread(usual, changed) == pytest.approx(0.1, rel=0.15)
    assert tried._spread(usual, changed._replace(rows=torch.arange(3))) > 1.3
    changed.logits[1, 7] = 0
    assert tried._spread(usual, changed) == torch.inf


def test_continuous_draws_what_fast_draws() -> None:
    model, settings = build("llama"), GenerationSettings(NEW, 3, 0.8)
    answers = decoded(model, PROMPTS, replace(settings, decoding="continuous"))
    assert answers == decoded(model, PROMPTS, settings)


def test_tokens_as_likely_as_each_other_are_decoded_as_before() -> None:
    """Two words with one row of the head: which one comes is a matter of the last bit."""
    model, settings = build("gpt_neox"), GenerationSettings(NEW, 3)
    twin = generated(model, PROMPTS, settings)
    word = max(range(4, 64), key=lambda token: sum(reply.count(token) for reply in twin))
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[(word + 1) % 64] = head[word] * (1 + 2**-22)
    twin = generated(model, PROMPTS, settings)
    decoded(model, PROMPTS[:1], settings)
    seen = Rows(model)
    assert decoded(model, PROMPTS, settings) == twin
    batches = sum(tokens > 1 for _, tokens in seen.calls)
    assert batches > len(by_length(PROMPTS, 3))


def test_a_model_that_minds_the_cache_is_decoded_by_generate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, settings = build("llama"), GenerationSettings(NEW, 3)
    forward = type(model).forward

    def minding(*args: Any, **named: Any) -> Any:
        output = forward(*args, **named)
        layers = getattr(named.get("past_key_values"), "layers", ())
        if any(type(layer).__module__.startswith("resect") for layer in layers):
            output.logits = output.logits * (1 + 2**-20)
        return output

    monkeypatch.setattr(type(model), "forward", minding)
    assert decoded(model, PROMPTS, settings) == generated(model, PROMPTS, settings)
    assert not ways(model).ours


def test_numbers_that_are_none_are_refused() -> None:
    model, settings = build("llama"), GenerationSettings(NEW, 3)
    decoded(model, PROMPTS, settings)
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        decoded(model, PROMPTS, settings)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bloom"])
def test_what_all_prompts_open_with(architecture: str) -> None:
    """It goes through the model once, of each copy."""
    model, settings = build(architecture), GenerationSettings(NEW, 3)
    prompts = [[5, 9, 20, 33, 8, 11, 40, 41, 42, *prompt] for prompt in PROMPTS]
    model.generation_config.eos_token_id = some_ends(model, settings)
    twin = generated(model, prompts, settings)
    for copies in (1, 3):
        ours(model, tiny.tokenizer(), prompts[:2], settings, copies=copies)  # the trial
        seen = Rows(model)
        assert ours(model, tiny.tokenizer(), prompts, settings, copies=copies) == twin * copies
        assert (copies, 9) in seen.calls
        assert (3 * copies, max(LENGTHS)) in seen.calls


def test_the_likeliest_by_blocks() -> None:
    for words in (64, 4096, 4097, 5000):
        logits = torch.randn(6, words, generator=torch.Generator().manual_seed(words))
        logits[0, -1], logits[1, 3], logits[2] = 50, logits[1].max(), 1.0
        logits[3, 7] = -torch.inf
        two = logits.topk(2).values
        tokens, best, leads = wide.picked(logits)
        assert torch.equal(tokens, logits.argmax(-1))
        assert torch.equal(best, two[:, 0])
        assert leads[1] == leads[2] == 0
        scale = logits.abs().masked_fill(logits.isinf(), 0).amax(1)
        far = [0, 1, 2, 4, 5]
        assert torch.allclose(leads[far], ((two[:, 0] - two[:, 1]) / scale)[far])
        assert 0 < leads[3] < torch.inf


def test_views_are_what_transformers_joins() -> None:
    from transformers.cache_utils import DynamicCache

    model = build("gemma3")
    room, usual = Room(model, 2, 20), DynamicCache(config=model.config)
    draw = torch.Generator().manual_seed(0)
    for tokens in (3, 1, 6, 1, 1, 4):
        for layer in range(2):
            pair = torch.randn(2, 2, 1, tokens, 8, generator=draw)
            assert room.cache.get_mask_sizes(tokens, layer) == usual.get_mask_sizes(tokens, layer)
            mine, joined = (cache.update(*pair, layer) for cache in (room.cache, usual))
            assert all(torch.equal(a, b) for a, b in zip(mine, joined, strict=True))
        assert room.cache.get_seq_length() == usual.get_seq_length()


@pytest.mark.parametrize("prompts", [[[5]], [[5], [6]], [[5, 6, 7], [9]]])
def test_few_and_short_prompts(prompts: list[list[int]]) -> None:
    for architecture in ("gpt2", "qwen3_moe"):
        model, settings = build(architecture), GenerationSettings(4, 3)
        assert decoded(model, prompts, settings) == generated(model, prompts, settings)
        assert ways(model).ours
        assert (ways(model).rounding < 1) == (architecture == "gpt2")


def test_exact_is_transformers_own_loop_and_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fast = build("llama"), GenerationSettings(NEW, 3)
    exact = replace(fast, decoding="exact")
    rows, batches = Rows(model), len(by_length(PROMPTS, 3))
    calls: list[tuple[int, ...]] = []
    generate = model.generate

    def counted(**named: Any) -> Tensor:
        calls.append(tuple(named["input_ids"].shape))
        answers: Tensor = generate(**named)
        return answers

    monkeypatch.setattr(model, "generate", counted)
    monkeypatch.setattr(replies, "ways_of", lambda *_: pytest.fail("the model was tried"))
    answers = decoded(model, PROMPTS, exact)
    # A call for each batch, and never more rows in a pass than it has.
    assert [shape[0] for shape in calls] == [3, 3, 2]
    assert len(calls) == batches
    assert max(count for count, _ in rows.calls) == 3
    monkeypatch.undo()
    assert decoded(model, PROMPTS, fast) == answers == generated(model, PROMPTS, exact)
    assert max(count for count, _ in rows.calls) > 3
