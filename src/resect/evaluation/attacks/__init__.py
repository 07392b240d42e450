"""Ways to bypass the refusal gate, so that a harm number speaks of the capability behind it.

A prompt attack says how the assistant's turn is opened; a model attack trains or cuts the model.
The two combine: `finetune+prefill:10`. An attacked model lives in memory alone, and every bit of it
comes back:

    settings = parse_attack("ablate_refusal+prefill:10")
    with attacked(model, tokenizer, settings, {"refusal": refusals, "target": answers}):
        ...                                  # the model's refusals are cut
    ...                                      # and are back
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from resect.data.encode import PromptIds
from resect.data.load import BehaviourSet
from resect.errors import InputError, unknown_name
from resect.evaluation.attacks.ablate import AblationSettings, ablate_refusal
from resect.evaluation.attacks.finetune import FinetuneSettings, finetune
from resect.evaluation.attacks.patch import Patch
from resect.evaluation.attacks.prompt import none, prefill
from resect.records import Example, Format


@dataclass(frozen=True)
class AttackSettings:
    """How a model is attacked.

    Attributes:
        name: The prompt attack, `none` or `prefill`.
        tokens: For `prefill`: tokens of the target answer that open the reply.
        phrase: For `prefill`: a fixed opening instead of the target answer's.
        model: The model attack, `none`, `finetune` or `ablate_refusal`.
        finetune: Settings of that model attack.
        ablation: Settings of that model attack.
        probes: Probes whose replies the prompt attack opens; empty for those that are marked so
            in `resect.evaluation.probes`. A model attack holds for all probes.
    """

    name: str = "prefill"
    tokens: int = 10
    phrase: str | None = None
    model: str = "none"
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    ablation: AblationSettings = field(default_factory=AblationSettings)
    probes: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the behaviour sets that the model attack needs."""
        if self.model == "finetune":
            return ("target",)
        return self.ablation.roles if self.model == "ablate_refusal" else ()

    def opens(self, probe: str, *, default: bool) -> bool:
        """Return whether the prompt part opens the replies to a probe."""
        return probe in self.probes if self.probes else default

    def label(self, *, prompted: bool) -> str:
        """Return the attack's name in records, with its prompt part only where that is used."""
        parts = [self.model, self.name if prompted else "none"]
        return "+".join(part for part in parts if part != "none") or "none"


PromptAttack = Callable[[Example, Any, Format, int, str | None], PromptIds]
ATTACKS: dict[str, PromptAttack] = {"none": none, "prefill": prefill}

MODEL_ATTACKS: dict[str, Callable[..., Patch]] = {
    "finetune": finetune,
    "ablate_refusal": ablate_refusal,
}


def attack_prompt(
    settings: AttackSettings, example: Example, tokenizer: Any, format: Format
) -> PromptIds:
    """Encode one prompt under the prompt part of an attack.

    Raises:
        InputError: The attack is unknown.
    """
    if settings.name not in ATTACKS:
        raise unknown_name("attack", settings.name, list(ATTACKS))
    attack = ATTACKS[settings.name]
    return attack(example, tokenizer, format, settings.tokens, settings.phrase)


def prepare_attack(
    model: Any,
    tokenizer: Any,
    settings: AttackSettings,
    data: Mapping[str, BehaviourSet] | None = None,
    *,
    format: Format = "chat",
) -> Patch:
    """Do the work of the model part of an attack; the model is as before when this returns.

    Args:
        model: A Hugging Face causal LM, intact or cut: what is attacked is what it is now.
        tokenizer: Its tokenizer.
        settings: Which attack.
        data: Behaviour sets by role, as `settings.roles` names them: `target` (prompts with the
            answers wanted), `refusal` (prompts with refusals), `preserve` (benign examples).
        format: `raw` or `chat`, as the evaluation asks.

    Returns:
        A patch whose `applied()` attacks the model for the length of a block, as often as wanted.

    Raises:
        InputError: The attack is unknown, its data are missing or cannot be used.
    """
    if settings.model == "none":
        return Patch()
    if settings.model not in MODEL_ATTACKS:
        raise unknown_name("model attack", settings.model, ["none", *MODEL_ATTACKS])
    data = data or {}
    missing = [role for role in settings.roles if role not in data]
    if missing:
        raise InputError(
            f"the attack {settings.model} lacks data",
            got=", ".join(data) or "none",
            allowed="sets for " + ", ".join(settings.roles),
            fix=" ".join(f"--attack-data {role}=SPEC" for role in missing),
        )
    attack = MODEL_ATTACKS[settings.model]
    own = settings.finetune if settings.model == "finetune" else settings.ablation
    return attack(model, tokenizer, own, data, format=format)


@contextlib.contextmanager
def attacked(
    model: Any,
    tokenizer: Any,
    settings: AttackSettings,
    data: Mapping[str, BehaviourSet] | None = None,
    *,
    format: Format = "chat",
) -> Iterator[Any]:
    """Attack a model in memory while the block runs; every bit is back after it.

    Yields:
        The model itself, changed in place; arguments and errors as for `prepare_attack`.
    """
    with prepare_attack(model, tokenizer, settings, data, format=format).applied():
        yield model


def parse_attack(text: str) -> AttackSettings:
    """Read an attack as the command line writes it: `MODEL_ATTACK+PROMPT_ATTACK`, either alone.

    `none` · `prefill` · `prefill:K` (K tokens of the answer) · `prefill=PHRASE` · `finetune` ·
    `finetune:rank=4,rate=1e-3,steps=30` · `ablate_refusal` · `ablate_refusal:published` ·
    `ablate_refusal:q=0.001`; for instance `finetune+prefill:10`.

    Raises:
        InputError: The text is something else.
    """
    head, equals, phrase = text.partition("prefill=")
    parts = [part for part in head.split("+") if part or not equals]
    changes: dict[str, Any] = {"name": "none"}
    if equals:
        changes |= {"name": "prefill", "phrase": phrase}
    for part in parts:
        name, _, options = part.partition(":")
        place = "name" if name == "prefill" else "model"
        known = name in ("none", "prefill", *MODEL_ATTACKS)
        taken = changes.get(place, "none") != "none"
        if not known or taken or (name == "none" and (options or text != "none")):
            raise _unreadable(text)
        if name == "prefill":
            if options and not (options.isdigit() and int(options) > 0):
                raise _unreadable(text)
            changes |= {"name": "prefill", "tokens": int(options or 10)}
        elif name != "none":
            changes["model"] = name
        if name == "finetune":
            changes["finetune"] = _options(FinetuneSettings, options, text)
        if name == "ablate_refusal":
            changes["ablation"] = _options(AblationSettings, options, text)
    if equals and not phrase.strip():
        raise _unreadable(text)
    return AttackSettings(**changes)


def _unreadable(text: str) -> InputError:
    return InputError(
        "unknown attack",
        got=repr(text),
        allowed="none, prefill[:K], prefill=PHRASE, finetune[:OPTION=VALUE,...], "
        "ablate_refusal[:published], or a model attack + a prefill (K ≥ 1)",
    )


def _options(kind: type[Any], text: str, whole: str) -> Any:
    """Read `name=value,...` into the settings of a model attack."""
    types = {column.name: str(column.type) for column in fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals and "preset" in types:
            name, value = "preset", part
        if name not in types or not value:
            raise InputError(
                f"unknown option of the attack {whole!r}", got=part, allowed=", ".join(types)
            )
        try:
            values[name] = _value(value, types[name])
        except ValueError as error:
            raise InputError(f"cannot read {part!r}", got=value, allowed=types[name]) from error
    return kind(**values)


def _value(text: str, type_name: str) -> Any:
    if text == "none" and "None" in type_name:
        return None
    if type_name.startswith("int"):
        return int(text)
    return float(text) if type_name.startswith("float") else text
