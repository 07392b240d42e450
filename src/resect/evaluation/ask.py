"""Put probes to a model variant and judge its replies.

Replies come first and verdicts second, so that replies can be stored before any judge runs and be
judged again later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from torch import Tensor

from resect import stats
from resect.data.encode import check_format, encode, prompt_text, text_ids
from resect.data.load import BehaviourSet, check_disjoint
from resect.edit.direction import Ablation, ablated
from resect.edit.live import removed, replaced
from resect.edit.many import Cuttable, NotTogether, Routes, Together
from resect.edit.swap import swapped
from resect.evaluation.attacks import AttackSettings, prepare_attack, seek_suffix, sought_on
from resect.evaluation.attacks.gcg import Suffix
from resect.evaluation.attacks.patch import Patch
from resect.evaluation.decode import GenerationSettings, generate, mean_nlls, repetition
from resect.evaluation.divergence import Comparison, Intact, Name
from resect.evaluation.likelihood import Reading, Span, read
from resect.evaluation.probes import Probe, find_probe
from resect.evaluation.questions import Around, questions_for, refuse_long
from resect.evaluation.recognition import NAME as RECOGNITION
from resect.evaluation.recognition import recognise
from resect.evaluation.sharing import rows_each
from resect.evaluation.spoken import finish_of, spoken
from resect.evaluation.tasks import TaskSet
from resect.evaluation.windows import document_nlls, windows_of
from resect.model import LoadedModel, context_of
from resect.records import CausalModel, Format, Measure, Reply
from resect.weights.fill import Filled
from resect.weights.mask import Mask

NO_ATTACK = AttackSettings(name="none")


@dataclass(frozen=True)
class EvaluationSettings:
    """How model variants are asked and judged; the same for all arms of a comparison.

    Attributes:
        format: `raw` or `chat`.
        attack: The attack: its model part holds for every probe, its prompt part for those that
            are put under one.
        judge: The judge of generation and refusal.
        coherence: When a reply is incoherent (`evaluation/coherence.py`); None leaves it to the
            judge.
        generation: How replies are decoded.
        window: Most tokens a pass of the perplexity probe; None for the model's context, at most
            `windows.LONGEST_WINDOW`.
        stride: Tokens between the starts of two windows; None for half a window.
        measure: Whether replies are decoded and judged, or the likelihood of the answers that the
            sets hold is measured, for every probe (`resect.evaluation.likelihood`).
        spans: For the likelihood: probe to the tokens of its answers that are scored.
        frame: A text with `{prompt}` in which every question stands; "" for none. Likelihoods are
            read without it.
    """

    format: Format = "chat"
    attack: AttackSettings = field(default_factory=AttackSettings)
    judge: str = "exact"
    coherence: str | None = None
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    window: int | None = None
    stride: int | None = None
    measure: Measure = "replies"
    spans: Mapping[str, Span] = field(default_factory=dict)
    frame: str = ""


# What is asked: the intact model, the model without the weights of a mask or with values in their
# place, without a direction, or with some parameters, by name, in the place of its own.
Variant = Mask | Filled | Ablation | dict[str, Tensor] | None


@dataclass(frozen=True)
class _Asking:
    """Who is asked and how.

    Attributes:
        loaded: The intact model and its tokenizer.
        settings: How to ask.
        in_force: Opens a block in which the model is what is asked.
        intact: Where what the intact model says is kept, if it is.
        attack_data: What the attack needs, by role.
        copies: Variants that answer side by side: so often each batch stands in its pass.
        suffix: What was sought to stand behind questions.
    """

    loaded: LoadedModel
    settings: EvaluationSettings
    in_force: Callable[[], contextlib.AbstractContextManager[object]]
    intact: Intact | None = None
    attack_data: Mapping[str, BehaviourSet] | None = None
    copies: int = 1
    suffix: str = ""

    def rows(self, rows: int, tokens: int) -> int:
        """Return the rows of each variant in a pass, of so many if it were alone."""
        return rows_each(self.loaded.model, rows, tokens, self.copies)


@contextlib.contextmanager
def _attacked(model: CausalModel, variant: Variant, patch: Patch) -> Iterator[None]:
    """Let variant and attack be in force while the block runs."""
    with made(model, variant), patch.applied():
        yield


def made(model: CausalModel, variant: Variant) -> contextlib.AbstractContextManager[object]:
    """Return a context in which the model is the variant; every bit is back after it."""
    if variant is None:
        return contextlib.nullcontext()
    if isinstance(variant, Ablation):
        return ablated(model, variant)
    if isinstance(variant, Filled):
        return replaced(model, variant)
    return removed(model, variant) if isinstance(variant, Mask) else swapped(model, variant)


def ask(
    loaded: LoadedModel,
    probes: Mapping[str, BehaviourSet],
    settings: EvaluationSettings,
    variant: Variant = None,
    *,
    attack_data: Mapping[str, BehaviourSet] | None = None,
    on_attack: Callable[[Mapping[str, object]], None] | None = None,
    intact: Intact | None = None,
) -> list[Reply]:
    """Return the replies of one variant to all probes.

    Args:
        loaded: The intact model and its tokenizer.
        probes: Probe name to the examples that it is put to.
        settings: How to ask.
        variant: Weights that are removed while the model answers, or have values in their place,
            a direction that is taken out of it, or parameters by name that stand in the place of
            its own; None asks the intact model.
        attack_data: What the attack needs, by role. One on weights comes after the cut: it is
            made on the cut model, as an attacker of a released checkpoint would.
        on_attack: Called with what the attack did to the model or showed it, if it did.
        intact: Where prompts and, by the probe likelihood, what the intact model says are kept for
            calls with the same model.

    Raises:
        InputError: An unknown probe, a prompt that leaves no room for a reply, an attack without
            its data or with the prompt of a probe among them.
        MismatchError: The mask belongs to another model.
    """
    check_format(loaded.tokenizer, settings.format)
    for role in settings.attack.roles:
        for examples in probes.values():
            if attack_data is not None and role in attack_data:
                check_disjoint(attack_data[role].split("calibration"), examples)
    attacked = settings.attack.on_model is not None
    with made(loaded.model, variant if attacked else None):
        patch = prepare_attack(loaded, settings.attack, attack_data, format=settings.format)
    asking = _Asking(
        loaded, settings, partial(_attacked, loaded.model, variant, patch), intact, attack_data
    )
    suffix = _sought(asking, probes)
    facts = {**patch.facts, **_shown(settings.attack, attack_data), **_told(asking, suffix)}
    if facts and on_attack is not None:
        on_attack(facts)
    return _replies(replace(asking, suffix=suffix.text), probes)[0]


def _sought(asking: _Asking, probes: Mapping[str, BehaviourSet]) -> Suffix:
    """Return the suffix that the attack seeks against the variant; none that no probe is asked."""
    attack, settings = asking.settings.attack, asking.settings
    if attack.suffix is None or settings.measure == "likelihood":
        return Suffix()
    prompted = [
        example
        for name, examples in probes.items()
        if attack.opens(name, default=find_probe(name).attacked)
        for example in examples.examples
    ]
    if not prompted:
        return Suffix()
    # A search takes long, and a question that will not fit is known before it.
    model, tokenizer = asking.loaded
    questions = questions_for(
        prompted, tokenizer, attack, format=settings.format, samples=1,
        attack_data=asking.attack_data, around=Around(settings.frame),
    )  # fmt: skip
    context, length = context_of(model), attack.suffix.length
    refuse_long(questions, context and context - length, fix="shorten it or the suffix")
    with asking.in_force():
        return seek_suffix(
            asking.loaded, attack, asking.attack_data, format=settings.format,
            batch_size=settings.generation.batch_size,
        )  # fmt: skip


def _told(asking: _Asking, suffix: Suffix) -> dict[str, object]:
    """Return what is written of a suffix that was sought: not its words."""
    settings = asking.settings.attack
    chosen = sought_on(settings, asking.attack_data) if suffix.text else None
    if settings.suffix is None or chosen is None:
        return {}
    return {"gcg": {"settings": asdict(settings.suffix), "data": chosen.hash} | suffix.facts}


def _shown(attack: AttackSettings, data: Mapping[str, BehaviourSet] | None) -> dict[str, object]:
    """Return which examples an attack shows before questions, if it shows any."""
    if attack.shots is None or data is None:
        return {}
    sets = {role: examples.hash for role, examples in data.items()}
    return {"few_shot": asdict(attack.shots), "few_shot_data": sets.get("target")}


def ask_together(
    loaded: LoadedModel,
    probes: Mapping[str, BehaviourSet],
    settings: EvaluationSettings,
    variants: Sequence[Cuttable],
    routes: Routes,
    *,
    intact: Intact | None = None,
) -> list[list[Reply]]:
    """Return the replies of several variants that share each pass (`resect.edit.many`).

    The slow twin is `ask` for one variant after the other. Numbers differ from its numbers by
    rounding, and replies where two tokens are as likely as each other but for that.

    Args:
        loaded: The intact model and its tokenizer.
        probes: Probe name to the examples that it is put to.
        settings: How to ask; the batch size is that of each variant.
        variants: What is cut, for each.
        routes: From `resect.edit.trial.routes_of`, for this model.
        intact: As for `ask`.

    Returns:
        For each variant its replies, in the order of `ask`.

    Raises:
        NotTogether: The variants cannot share a pass, or an attack changes the model.
        InputError: As for `ask`.
        MismatchError: A mask belongs to another model.
    """
    check_format(loaded.tokenizer, settings.format)
    if settings.attack.model != "none":
        raise NotTogether("an attack changes the model")
    if settings.attack.shots is not None:
        raise NotTogether("examples are shown before the questions")
    if settings.attack.suffix is not None:
        raise NotTogether("a suffix is sought against each")
    if any(isinstance(data, TaskSet) for data in probes.values()):
        raise NotTogether("lm-eval asks one variant at a time")
    many = Together(loaded.model, variants, routes)
    asking = _Asking(loaded, settings, many.applied, intact, copies=len(variants))
    return _replies(asking, probes)


def _replies(asking: _Asking, probes: Mapping[str, BehaviourSet]) -> list[list[Reply]]:
    """Return for each copy its replies to all probes."""
    replies: list[list[Reply]] = [[] for _ in range(asking.copies)]
    settings = asking.settings
    # Of the likelihood nothing is decoded, and all sets are read under the same weights.
    by_likelihood = settings.measure == "likelihood"
    with asking.in_force() if by_likelihood else contextlib.nullcontext():
        for name, examples in probes.items():
            if isinstance(examples, TaskSet):
                label, batch = settings.attack.label(prompted=False), settings.generation.batch_size
                with contextlib.nullcontext() if by_likelihood else asking.in_force():
                    several = examples.answers(asking.loaded, name, label, batch)
            elif by_likelihood:
                several = _read(asking, name, examples)
            elif name == "perplexity":
                several = _perplexities(asking, examples)
            elif name == RECOGNITION:
                several = _recognitions(asking, examples)
            elif find_probe(name).judged == "never":
                several = _likelihoods(asking, examples)
            else:
                several = _answers(asking, find_probe(name), examples)
            count = len(several) // asking.copies
            for copy, so_far in enumerate(replies):
                so_far += several[copy * count : (copy + 1) * count]
    return replies


def _read(asking: _Asking, name: str, examples: BehaviourSet) -> list[Reply]:
    """Measure how likely the variants find what a set holds; nothing is decoded."""
    settings = asking.settings
    reading = Reading(
        settings.format, settings.generation.batch_size, settings.spans, asking.copies
    )
    return read(asking.loaded, name, examples, reading, settings.attack.label(prompted=False))


def _answers(asking: _Asking, probe: Probe, examples: BehaviourSet) -> list[Reply]:
    """Decode the replies to one probe; measure their likelihood under the intact model if asked."""
    (model, tokenizer), settings = asking.loaded, asking.settings
    generation = settings.generation
    prompted = settings.attack.opens(probe.name, default=probe.attacked)
    questions = questions_for(
        examples.examples,
        tokenizer,
        settings.attack if prompted else NO_ATTACK,
        format=settings.format,
        samples=generation.samples,
        attack_data=asking.attack_data,
        around=Around(settings.frame, asking.suffix if prompted else ""),
        written=None if asking.intact is None else asking.intact.written,
    )
    shown = prompted and settings.attack.shots is not None
    fewer = ", or show fewer examples before it" if shown else ""
    refuse_long(questions, context_of(model), fix=f"shorten or remove it{fewer}")
    prompts = [question.prompt.ids for question in questions]
    # All variants draw from the same streams, which pairs them as far as sampling can be paired.
    streams = [
        stats.rng(f"reply/{probe.name}/{question.example.id}/{question.sample}", generation.seed)
        for question in questions
    ]
    longest = max(map(len, prompts), default=0) + generation.max_new_tokens
    several = replace(generation, batch_size=asking.rows(generation.batch_size, longest))
    with asking.in_force():
        tokens = generate(model, tokenizer, prompts, several, streams, asking.copies)
    questions, prompts = questions * asking.copies, prompts * asking.copies
    nlls: list[float | None] = [None] * len(tokens)
    if probe.coherent:
        rows = [(*prompt, *reply) for prompt, reply in zip(prompts, tokens, strict=True)]
        starts = [len(prompt) for prompt in prompts]
        nlls = mean_nlls(model, rows, starts, generation.batch_size)
    attack = settings.attack.label(prompted=prompted)
    return [
        question.answered(
            probe.name,
            attack,
            spoken(tokenizer, question.prompt, reply, finish_of(reply, generation.max_new_tokens)),
            nll=nll,
            repetition=repetition(reply) if probe.coherent else None,
        )
        for question, reply, nll in zip(questions, tokens, nlls, strict=True)
    ]


def _perplexities(asking: _Asking, examples: BehaviourSet) -> list[Reply]:
    """Measure the NLL of held-out texts; perplexity is exp of their mean over all tokens."""
    (model, tokenizer), settings = asking.loaded, asking.settings
    windows = windows_of(context_of(model), settings.window, settings.stride)
    documents = [text_ids(tokenizer, example) for example in examples.examples]
    # A long window holds as many tokens as a batch of replies.
    at_once = asking.rows(
        max(1, settings.generation.batch_size * 128 // windows.length),
        min(windows.length, max(map(len, documents), default=1)),
    )
    with asking.in_force():
        nlls = document_nlls(
            model, documents, windows.length, windows.stride, at_once, asking.copies
        )
    return [
        Reply(
            example_id=example.id,
            probe="perplexity",
            attack=settings.attack.label(prompted=False),
            category=example.category,
            prompt=prompt_text(example),
            prefix="",
            text="",
            reference=example.completion,
            nll=nll,
            tokens=max(0, len(document) - 1),
        )
        for example, document, nll in zip(
            examples.examples * asking.copies, documents * asking.copies, nlls, strict=True
        )
    ]


def _recognitions(asking: _Asking, examples: BehaviourSet) -> list[Reply]:
    """Measure how probable the variant finds the right one of two answers."""
    if asking.copies > 1:
        raise NotTogether("two answers to each question are read one cut at a time")
    settings = asking.settings
    attack = settings.attack.label(prompted=False)
    batch = settings.generation.batch_size
    with asking.in_force():
        return recognise(asking.loaded, examples, attack, format=settings.format, batch_size=batch)


def _likelihoods(asking: _Asking, examples: BehaviourSet) -> list[Reply]:
    """Measure NLL of the references under the variant and KL(intact || variant) on them."""
    (model, tokenizer), settings = asking.loaded, asking.settings
    encoded = encode(
        examples.examples, tokenizer, format=settings.format, max_length=context_of(model)
    )
    comparison = Comparison(model, asking.in_force, asking.intact, asking.copies)
    longest = max((len(example.input_ids) for example in encoded), default=1)
    rows = asking.rows(settings.generation.batch_size, longest)
    measured = comparison.likelihoods(encoded, rows)
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
            nll=measured[Name(copy, example.id)].nll,
            kl=measured[Name(copy, example.id)].kl,
        )
        for copy in range(asking.copies)
        for example in examples.examples
    ]
