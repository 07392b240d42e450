"""Put probes to a model variant and judge its replies.

Replies come first and verdicts second, so that replies can be stored before any judge runs and be
judged again later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from resect import stats
from resect.data.encode import check_format, decode, encode, prompt_text, text_ids
from resect.data.load import BehaviourSet, check_disjoint
from resect.edit.live import removed
from resect.edit.swap import swapped
from resect.errors import InputError
from resect.evaluation.attacks import AttackSettings, attack_prompt, prepare_attack
from resect.evaluation.attacks.patch import Patch
from resect.evaluation.decode import (
    GenerationSettings,
    by_length,
    document_nlls,
    generate,
    mean_nll,
    mean_nlls,
    repetition,
    token_log_probs,
)
from resect.evaluation.probes import Probe, find_probe
from resect.model import context_of
from resect.records import Format, Reply
from resect.weights.mask import Mask

NO_ATTACK = AttackSettings(name="none")
LONGEST_WINDOW = 2048


@dataclass(frozen=True)
class EvaluationSettings:
    """How model variants are asked and judged; the same for all arms of a comparison.

    Attributes:
        format: `raw` or `chat`.
        attack: The attack: its model part holds for every probe, its prompt part for those that
            are put under one.
        judge: The judge of generation and refusal.
        generation: How replies are decoded.
        window: Most tokens a pass of the perplexity probe; None for the model's context, at most
            `LONGEST_WINDOW`.
        stride: Tokens between the starts of two windows; None for half a window.
    """

    format: Format = "chat"
    attack: AttackSettings = field(default_factory=AttackSettings)
    judge: str = "exact"
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    window: int | None = None
    stride: int | None = None


# A variant: None for the intact model, a mask to cut, or weights by name to put in.
Variant = Mask | dict[str, Tensor] | None


@dataclass(frozen=True)
class _Answering:
    """What the model is while it answers: a variant, then attacked."""

    variant: Variant
    patch: Patch

    @contextlib.contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        with _cut(model, self.variant), self.patch.applied():
            yield


def _cut(model: Any, variant: Variant) -> contextlib.AbstractContextManager[Any]:
    if variant is None:
        return contextlib.nullcontext()
    return removed(model, variant) if isinstance(variant, Mask) else swapped(model, variant)


def ask(
    model: Any,
    tokenizer: Any,
    probes: Mapping[str, BehaviourSet],
    settings: EvaluationSettings,
    mask: Variant = None,
    *,
    attack_data: Mapping[str, BehaviourSet] | None = None,
    on_attack: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[Reply]:
    """Return the replies of one variant to all probes.

    Args:
        model: The intact model.
        tokenizer: Its tokenizer.
        probes: Probe name to the examples that it is put to.
        settings: How to ask.
        mask: Weights that are removed while the model answers, or parameters by name that stand in
            the place of its own; None asks the intact model.
        attack_data: What the model attack needs, by role. The attack comes after the cut: it is
            made on the cut model, as an attacker of a released checkpoint would.
        on_attack: Called with what the model attack did, if there is one.

    Raises:
        InputError: An unknown probe, a prompt that leaves no room for a reply, an attack without
            its data or with the prompt of a probe among them.
        MismatchError: The mask belongs to another model.
    """
    check_format(tokenizer, settings.format)
    for role in settings.attack.roles:
        for examples in probes.values():
            if attack_data is not None and role in attack_data:
                check_disjoint(attack_data[role].split("calibration"), examples)
    with _cut(model, mask):
        patch = prepare_attack(
            model, tokenizer, settings.attack, attack_data, format=settings.format
        )
    if patch.facts and on_attack is not None:
        on_attack(patch.facts)
    answering = _Answering(mask, patch)
    replies: list[Reply] = []
    for name, examples in probes.items():
        probe = find_probe(name)
        if name == "perplexity":
            replies += _perplexities(model, tokenizer, examples, settings, answering)
        elif probe.judged == "never":
            replies += _likelihoods(model, tokenizer, examples, settings, answering)
        else:
            replies += _answers(model, tokenizer, (probe, examples), settings, answering)
    return replies


def _answers(
    model: Any,
    tokenizer: Any,
    question: tuple[Probe, BehaviourSet],
    settings: EvaluationSettings,
    answering: _Answering,
) -> list[Reply]:
    probe, examples = question
    prompted = settings.attack.opens(probe.name, default=probe.attacked)
    attack = settings.attack if prompted else NO_ATTACK
    how = settings.generation
    asked = [(example, at) for example in examples.examples for at in range(how.samples)]
    prompts = [attack_prompt(attack, example, tokenizer, settings.format) for example, _ in asked]
    room = context_of(model)
    for (example, _), prompt in zip(asked, prompts, strict=True):
        if room is not None and len(prompt.ids) >= room:
            raise InputError(
                f"example {example.id!r} leaves no room for a reply",
                got=f"{len(prompt.ids)} prompt tokens",
                allowed=f"fewer than the context of {room} tokens",
                fix="shorten or remove it",
            )
    ids = [prompt.ids for prompt in prompts]
    # All variants draw from the same streams, which pairs them as far as sampling can be paired.
    streams = [stats.rng(f"reply/{probe.name}/{e.id}/{at}", how.seed) for e, at in asked]
    with answering.applied(model):
        tokens = generate(model, tokenizer, ids, how, streams)
    nlls: list[float | None] = [None] * len(tokens)
    if probe.coherent:
        rows = [(*prompt, *reply) for prompt, reply in zip(ids, tokens, strict=True)]
        starts = [len(prompt) for prompt in ids]
        nlls = mean_nlls(model, rows, starts, settings.generation.batch_size)
    return [
        Reply(
            example_id=example.id,
            probe=probe.name,
            attack=settings.attack.label(prompted=prompted),
            category=example.category,
            prompt=prompt_text(example),
            prefix=prompt.prefix,
            text=decode(tokenizer, reply),
            key=example.key,
            reference=example.completion,
            nll=nll,
            repetition=repetition(reply) if probe.coherent else None,
            sample=at,
        )
        for (example, at), prompt, reply, nll in zip(asked, prompts, tokens, nlls, strict=True)
    ]


def _windows(model: Any, settings: EvaluationSettings) -> tuple[int, int]:
    """Return window and stride of the perplexity probe in tokens."""
    room = context_of(model)
    window = settings.window or min(room or LONGEST_WINDOW, LONGEST_WINDOW)
    stride = settings.stride or max(1, window // 2)
    if window < 2 or not 1 <= stride < window or (room is not None and window > room):
        raise InputError(
            "the windows of the perplexity probe do not fit",
            got=f"window {window}, stride {stride}",
            allowed=f"a window of 2 to {room or 'any number of'} tokens, a shorter stride",
            fix="set --window and --stride",
        )
    return window, stride


def _perplexities(
    model: Any,
    tokenizer: Any,
    examples: BehaviourSet,
    settings: EvaluationSettings,
    answering: _Answering,
) -> list[Reply]:
    """Measure the NLL of held-out texts; perplexity is exp of their mean over all tokens."""
    window, stride = _windows(model, settings)
    documents = [text_ids(tokenizer, example) for example in examples.examples]
    # A long window holds as many tokens as a batch of replies.
    together = max(1, settings.generation.batch_size * 128 // window)
    with answering.applied(model):
        nlls = document_nlls(model, documents, window, stride, together)
    return [
        Reply(
            example_id=example.id,
            probe="perplexity",
            attack=settings.attack.label(prompted=False),
            category=example.category,
            prompt="",
            prefix="",
            text="",
            nll=nll,
            tokens=max(0, len(row) - 1),
        )
        for example, row, nll in zip(examples.examples, documents, nlls, strict=True)
    ]


def _likelihoods(
    model: Any,
    tokenizer: Any,
    examples: BehaviourSet,
    settings: EvaluationSettings,
    answering: _Answering,
) -> list[Reply]:
    """Measure NLL of the references under the variant and KL(intact || variant) on them."""
    encoded = encode(
        examples.examples, tokenizer, format=settings.format, max_length=context_of(model)
    )
    found: dict[str, tuple[float, float]] = {}
    for batch in by_length([e.input_ids for e in encoded], settings.generation.batch_size):
        rows = [encoded[at].input_ids for at in batch]
        starts = [encoded[at].first_scored for at in batch]
        # Both models see the same batch, and only one batch of distributions exists at a time.
        intact = token_log_probs(model, rows, starts)
        with answering.applied(model):
            changed = token_log_probs(model, rows, starts)
        for at, before, after in zip(batch, intact, changed, strict=True):
            divergence = (before.exp() * (before - after)).sum(dim=-1).mean()
            nll = mean_nll(after, encoded[at].input_ids[encoded[at].first_scored :])
            found[encoded[at].id] = (nll, float(divergence))
    return [
        Reply(
            example_id=example.id,
            probe="likelihood",
            attack=settings.attack.label(prompted=False),
            category=example.category,
            prompt=prompt_text(example),
            prefix="",
            text="",
            reference=example.completion,
            nll=found[example.id][0],
            kl=found[example.id][1],
        )
        for example in examples.examples
    ]
