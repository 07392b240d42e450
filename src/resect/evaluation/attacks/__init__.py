"""Ways to bypass the refusal gate, so that a harm number speaks of the capability behind it.

A prompt attack says how the assistant's turn is opened, `few_shot` what stands before the question
and `gcg` what stands behind it; a model attack trains or cuts the model. They combine:
`finetune+few_shot:4+prefill:10`.
An attacked model lives in memory alone, and every bit of it comes back:

    settings = parse_attack("ablate_refusal+prefill:10")
    with attacked(load_model(FOLDER), settings, {"refusal": refusals, "target": answers}):
        ...                                  # the model's refusals are cut
    ...                                      # and are back

An attack is a file of this folder and a line in one of the two dictionaries. What else is to be
known of it, the data that it needs, what it costs, how it is written, it says itself.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

from resect.data.encode import PromptIds, Written, encode
from resect.data.load import BehaviourSet
from resect.errors import InputError, unknown_name
from resect.evaluation.attacks.ablate import AblationSettings
from resect.evaluation.attacks.direction import DirectionSettings
from resect.evaluation.attacks.family import Framing, ModelAttack, Work
from resect.evaluation.attacks.few_shot import NAME as FEW_SHOT
from resect.evaluation.attacks.few_shot import ROLE as SHOTS_FROM
from resect.evaluation.attacks.few_shot import FewShot, draw_shots, preceded
from resect.evaluation.attacks.finetune import FinetuneSettings
from resect.evaluation.attacks.finetune_full import FullFinetuneSettings
from resect.evaluation.attacks.gcg import NAME as GCG
from resect.evaluation.attacks.gcg import ROLE as SOUGHT_ON
from resect.evaluation.attacks.gcg import Gcg, Lesson, Suffix, find_suffix
from resect.evaluation.attacks.jailbreak_tuning import JailbreakTuningSettings
from resect.evaluation.attacks.patch import Patch
from resect.evaluation.attacks.prompt import followed, framed, none, prefill
from resect.evaluation.attacks.quantise import QuantiseSettings
from resect.model import LoadedModel
from resect.records import CausalModel, Example, Format, Tokenizer


class _Dataclass(Protocol):
    """What is made of settings by name."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **settings: object) -> None:
        """Take the settings."""


Settings = TypeVar("Settings", bound=_Dataclass)
# How a turn is opened: with so many tokens of the target answer, or with a fixed phrase.
PromptAttack = Callable[[Example, Tokenizer, Format, int, str | None], PromptIds]
PROMPT_ATTACKS: dict[str, PromptAttack] = {"none": none, "prefill": prefill}

MODEL_ATTACKS: dict[str, type[ModelAttack]] = {
    "finetune": FinetuneSettings,
    "finetune_full": FullFinetuneSettings,
    "jailbreak_tuning": JailbreakTuningSettings,
    "ablate_refusal": AblationSettings,
    "ablate_direction": DirectionSettings,
    "quantise": QuantiseSettings,
}


@dataclass(frozen=True)
class AttackSettings:
    """How a model is attacked.

    Attributes:
        name: The prompt attack, a key of `PROMPT_ATTACKS`.
        tokens: Tokens of the target answer that open the reply.
        phrase: A fixed opening instead of the target answer's.
        model: The model attack, `none` or a key of `MODEL_ATTACKS`.
        settings: The model attack with its settings; None for its defaults.
        probes: Probes whose replies the prompt attack opens; empty for those that are marked so
            in `resect.evaluation.probes`. A model attack holds for all probes.
        shots: Examples with the answers wanted that stand before the question, for the same
            probes; None for none.
        suffix: How words are sought that stand behind the question, for the same probes; None for
            none.
    """

    name: str = "prefill"
    tokens: int = 10
    phrase: str | None = None
    model: str = "none"
    settings: ModelAttack | None = None
    probes: tuple[str, ...] = ()
    shots: FewShot | None = None
    suffix: Gcg | None = None

    @property
    def on_model(self) -> ModelAttack | None:
        """The model attack with its settings, None if there is none.

        Raises:
            InputError: The attack is unknown.
        """
        if self.model == "none":
            return None
        if self.model not in MODEL_ATTACKS:
            raise unknown_name("model attack", self.model, ["none", *MODEL_ATTACKS])
        return self.settings or MODEL_ATTACKS[self.model]()

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the behaviour sets that the attack needs."""
        attack = self.on_model
        shown = () if self.shots is None else (SHOTS_FROM,)
        sought = () if self.suffix is None else (SOUGHT_ON,)
        return tuple(dict.fromkeys((*(() if attack is None else attack.roles), *shown, *sought)))

    @property
    def frame(self) -> str:
        """The text in which questions stand under the prompt part, "" for none."""
        attack = self.on_model
        return attack.frame if isinstance(attack, Framing) else ""

    def work(self, examples: int) -> Work:
        """Return what the attack costs, beside its replies, where a set has this many examples."""
        attack = self.on_model
        on_model = Work() if attack is None else attack.work(examples)
        sought = Work() if self.suffix is None else self.suffix.work
        return Work(on_model.scored + sought.scored, on_model.trained)

    def opens(self, probe: str, *, default: bool) -> bool:
        """Return whether the prompt part holds for a probe."""
        return probe in self.probes if self.probes else default

    def label(self, *, prompted: bool) -> str:
        """Return the attack's name in records, with its prompt part only where that is used."""
        shown = FEW_SHOT if prompted and self.shots is not None else "none"
        sought = GCG if prompted and self.suffix is not None else "none"
        parts = [self.model, shown, sought, self.name if prompted else "none"]
        return "+".join(part for part in parts if part != "none") or "none"


def attack_prompt(
    settings: AttackSettings,
    example: Example,
    tokenizer: Tokenizer,
    format: Format,
    shots: Sequence[Example] = (),
    *,
    suffix: str = "",
    written: Written | None = None,
) -> PromptIds:
    """Encode one prompt under the prompt part of an attack, after some examples.

    Args:
        settings: Which attack.
        example: Its prompt, with the answer wanted.
        tokenizer: A Hugging Face tokenizer.
        format: `raw` or `chat`.
        shots: Examples before the question.
        suffix: Words right behind it, from `seek_suffix`.
        written: Prompts that this tokenizer has encoded, which are not encoded again; this one is
            added.

    Raises:
        InputError: The attack is unknown.
    """
    if settings.name not in PROMPT_ATTACKS:
        raise unknown_name("attack", settings.name, list(PROMPT_ATTACKS))
    attack = PROMPT_ATTACKS[settings.name]
    shown = followed(preceded(framed(example, settings.frame), shots, format), suffix)
    if written is None:
        return attack(shown, tokenizer, format, settings.tokens, settings.phrase)
    # All that the attacks on prompts read of an example.
    name = (shown.prompt, shown.completion, settings.name, settings.tokens, settings.phrase, format)
    if name not in written:
        written[name] = attack(shown, tokenizer, format, settings.tokens, settings.phrase)
    return written[name]


def shots_for(
    settings: AttackSettings,
    data: Mapping[str, BehaviourSet] | None,
    questions: Sequence[Example],
) -> list[tuple[Example, ...]]:
    """Return the examples that stand before each question, none where the attack shows none.

    Args:
        settings: Which attack.
        data: Behaviour sets by role; `target` has the examples.
        questions: What is asked.

    Raises:
        InputError: The set is missing or too small.
    """
    if settings.shots is None:
        return [() for _ in questions]
    _refuse_lack(settings, (SHOTS_FROM,), data or {})
    return draw_shots(settings.shots, (data or {})[SHOTS_FROM], questions)


def sought_on(
    settings: AttackSettings, data: Mapping[str, BehaviourSet] | None
) -> BehaviourSet | None:
    """Return the examples that a suffix is sought on, None where the attack seeks none.

    Args:
        settings: Which attack.
        data: Behaviour sets by role; `target` has prompts with the answers wanted, of a set with
            splits in the calibration split.

    Raises:
        InputError: The set is missing or too small.
    """
    if settings.suffix is None:
        return None
    _refuse_lack(settings, (SOUGHT_ON,), data or {})
    whole = (data or {})[SOUGHT_ON].split("calibration")
    answered = whole.at([n for n, example in enumerate(whole.examples) if example.completion])
    if len(answered) < settings.suffix.prompts:
        raise InputError(
            f"too few examples for a suffix on {settings.suffix.prompts} prompts",
            got=f"{len(answered)} with answers in {whole.source}",
            fix=f"ask for fewer ({GCG}:prompts=N), or add calibration examples to the set",
        )
    return answered.limit(settings.suffix.prompts, settings.suffix.seed)


def seek_suffix(
    loaded: LoadedModel,
    settings: AttackSettings,
    data: Mapping[str, BehaviourSet] | None,
    *,
    format: Format,
    batch_size: int = 16,
) -> Suffix:
    """Seek the suffix of an attack; the model is as before when this returns.

    It is sought under the rest of the prompt part: in the same frame, after as many examples, and
    where the turn is opened with words of the answer, for the words after them.

    Args:
        loaded: A Hugging Face causal LM as it is attacked, and its tokenizer.
        settings: Which attack; one that seeks no suffix has an empty one.
        data: As for `sought_on`.
        format: `raw` or `chat`, as the evaluation asks.
        batch_size: Candidates of a pass.

    Raises:
        InputError: The data cannot be used, or no suffix can be found.
    """
    data = data or {}
    chosen = sought_on(settings, data)
    if settings.suffix is None or chosen is None:
        return Suffix()
    tokenizer, examples = loaded.tokenizer, chosen.examples
    opened = settings.tokens if settings.name == "prefill" and settings.phrase is None else 0
    answers = encode(
        [replace(example, prefix_tokens=opened) for example in examples],
        tokenizer,
        format=format,
        tokens=settings.suffix.tokens,
    )
    question = partial(_question, settings, tokenizer, format)
    lessons = [
        Lesson(partial(question, example, shots), answer.input_ids[answer.first_scored :])
        for example, shots, answer in zip(
            examples, shots_for(settings, data, examples), answers, strict=True
        )
    ]
    return find_suffix(loaded, settings.suffix, lessons, label=chosen.hash, batch_size=batch_size)


def _question(
    settings: AttackSettings,
    tokenizer: Tokenizer,
    format: Format,
    example: Example,
    shots: Sequence[Example],
    suffix: str,
) -> tuple[int, ...]:
    """Return the token ids of a question with a suffix."""
    return attack_prompt(settings, example, tokenizer, format, shots, suffix=suffix).ids


def prepare_attack(
    loaded: LoadedModel,
    settings: AttackSettings,
    data: Mapping[str, BehaviourSet] | None = None,
    *,
    format: Format = "chat",
) -> Patch:
    """Do the work of the model part of an attack; the model is as before when this returns.

    Args:
        loaded: A Hugging Face causal LM, intact or cut (what is attacked is what it is now), and
            its tokenizer.
        settings: Which attack.
        data: Behaviour sets by role, as `settings.roles` names them: `target` (prompts with the
            answers wanted), `refusal` (prompts with refusals), `preserve` (benign examples).
        format: `raw` or `chat`, as the evaluation asks.

    Returns:
        A patch whose `applied()` attacks the model for the length of a block, as often as wanted.

    Raises:
        InputError: The attack is unknown, its data are missing or cannot be used.
    """
    attack = settings.on_model
    if attack is None:
        return Patch()
    data = data or {}
    _refuse_lack(settings, attack.roles, data)
    return attack.prepare(loaded, data, format=format)


def _refuse_lack(
    settings: AttackSettings, roles: Sequence[str], data: Mapping[str, BehaviourSet]
) -> None:
    """Refuse an attack that lacks data for one of these roles."""
    missing = [role for role in roles if role not in data]
    if missing:
        raise InputError(
            f"the attack {settings.label(prompted=True)} lacks data",
            got=", ".join(data) or "none",
            allowed="sets for " + ", ".join(settings.roles),
            fix=" ".join(f"--attack-data {role}=SPEC" for role in missing),
        )


@contextlib.contextmanager
def attacked(
    loaded: LoadedModel,
    settings: AttackSettings,
    data: Mapping[str, BehaviourSet] | None = None,
    *,
    format: Format = "chat",
) -> Iterator[CausalModel]:
    """Attack a model in memory while the block runs; every bit is back after it.

    Yields:
        The model itself, changed in place; arguments and errors as for `prepare_attack`.
    """
    with prepare_attack(loaded, settings, data, format=format).applied():
        yield loaded.model


# The prompt attack with its phrase, which is all that is left of the text.
_PHRASE = re.compile(r"(?:^|\+)(\w+)=(.*)", re.DOTALL)


def parse_attack(text: str) -> AttackSettings:
    """Read an attack as the command line writes it: its parts joined by +, or one of them alone.

    `none` · `few_shot:K` (K examples before the question) · `few_shot:k=4,seed=1` ·
    `gcg:steps=50,length=10` (words behind it that are sought by gradients) · `prefill` ·
    `prefill:K` (K tokens of the answer) · `prefill:tokens=K` · `prefill=PHRASE` · `finetune` ·
    `finetune:rank=4,rate=1e-3,steps=30` · `finetune_full:rate=1e-5,steps=50` ·
    `jailbreak_tuning:benign=0.9,steps=30` · `ablate_refusal` ·
    `ablate_refusal:published` · `ablate_refusal:q=0.001` · `ablate_direction` ·
    `ablate_direction:depth=0.6` · `quantise:bits=4,group=128`; for instance
    `finetune+few_shot:4+prefill:10`.

    Raises:
        InputError: The text is something else.
    """
    attack = AttackSettings("none")
    if text == "none":
        return attack
    openings = [name for name in PROMPT_ATTACKS if name != "none"]
    parts = text.split("+")
    phrase = _PHRASE.search(text)
    if phrase is not None and phrase[1] in openings:
        if not phrase[2].strip():
            raise _unreadable(text)
        attack = replace(attack, name=phrase[1], phrase=phrase[2])
        parts = [part for part in text[: phrase.start()].split("+") if part]
    for part in parts:
        name, _, options = part.partition(":")
        if name == FEW_SHOT and attack.shots is None:
            options = f"k={options}" if options.isdigit() else options
            attack = replace(attack, shots=_read_settings(FewShot, options, text))
        elif name == GCG and attack.suffix is None:
            attack = replace(attack, suffix=_read_settings(Gcg, options, text))
        elif name in openings and attack.name == "none":
            options = options.removeprefix("tokens=")
            if options and not (options.isdigit() and int(options) > 0):
                raise _unreadable(text)
            attack = replace(attack, name=name, tokens=int(options or 10))
        elif name in MODEL_ATTACKS and attack.model == "none":
            settings = _read_settings(MODEL_ATTACKS[name], options, text) if options else None
            attack = replace(attack, model=name, settings=settings)
        else:
            raise _unreadable(text)
    return attack


def _unreadable(text: str) -> InputError:
    openings = [f"{name}[:K], {name}=PHRASE" for name in PROMPT_ATTACKS if name != "none"]
    attacks = [name + attack.usage for name, attack in MODEL_ATTACKS.items()]
    return InputError(
        "unknown attack",
        got=repr(text),
        allowed=", ".join(
            ("none", f"{FEW_SHOT}[:K]", f"{GCG}[:OPTION=VALUE,...]", *openings, *attacks)
        )
        + f", or a model attack + {FEW_SHOT} + {GCG} + a prefill (K ≥ 1)",
    )


def _read_settings(attack: type[Settings], options: str, text: str) -> Settings:
    """Read the `name=value,...` of an attack that was written as `text`."""
    types = {column.name: str(column.type) for column in fields(attack)}
    values: dict[str, object] = {}
    for option in filter(None, options.split(",")):
        name, equals, value = option.partition("=")
        if not equals and "preset" in types:
            name, value = "preset", option
        if name not in types or not value:
            raise InputError(
                f"unknown option of the attack {text!r}", got=option, allowed=", ".join(types)
            )
        try:
            values[name] = _value(value, types[name])
        except ValueError as error:
            raise InputError(f"cannot read {option!r}", got=value, allowed=types[name]) from error
    return attack(**values)


def _value(text: str, type_name: str) -> str | int | float | None:
    if text == "none" and "None" in type_name:
        return None
    if type_name.startswith("int"):
        return int(text)
    return float(text) if type_name.startswith("float") else text
