"""Values to words: the one place that says how a number or a text is written in a report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from resect.errors import visible as visible
from resect.records import Claim, Interval, OfRecipe, Requirement, State, VerdictWord

LONGEST_REPLY = 600
LONGEST_LABEL = 100
# An effect is a fraction and is written in percent, unless its name ends with one of these units.
UNIT = re.compile(r"\((×|examples|steps|prompts|weights|nats|correlation)\)$")


class Sign(NamedTuple):
    """How a verdict looks: the mark before its word, and the class that colours it on the page."""

    mark: str
    style: str


SIGNS: dict[VerdictWord, Sign] = {
    "supported": Sign("✓", "yes"),
    "not supported": Sign("✗", "no"),
    "inconclusive": Sign("?", "unsure"),
    "not measurable": Sign("–", "none"),
}
# How a condition of a rule turned out.
STATES: dict[State, Sign] = {
    "meets": Sign("✓", "yes"),
    "misses": Sign("✗", "no"),
    "crosses": Sign("?", "unsure"),
    "unknown": Sign("–", "none"),
}
STATE_WORDS: dict[State, str] = {
    "meets": "holds",
    "misses": "fails",
    "crosses": "may fail: a bound crosses it",
    "unknown": "not measurable",
}
QUOTES = {
    "supported": "supports the claim",
    "not supported": "does not support the claim",
    "inconclusive": "is inconclusive on the claim",
    "not measurable": "could not measure the claim",
}
# Outcomes whose name in a record says too little by itself.
OUTCOME_NAMES = {"partial": "partly right"}


# How an attack is written in a configuration: a name, options, and more attacks after a plus.
ATTACK = re.compile(
    r"\b(prefill|few_shot|gcg|sampled|finetune_full|finetune|jailbreak_tuning|ablate_refusal|"
    r"ablate_direction|quantise)\b"
    r"((?::[\w.=,-]*[\w])?)"
)
ATTACKS = {
    "prefill": "prefill",
    "few_shot": "few-shot",
    "gcg": "sought suffix",
    "sampled": "sampled",
    "finetune": "fine-tuning",
    "finetune_full": "full fine-tuning",
    "jailbreak_tuning": "jailbreak tuning",
    "ablate_refusal": "ablated refusal",
    "ablate_direction": "ablated direction",
    "quantise": "rounding",
}


# What the number behind an attack's name counts.
COUNTS = {"few_shot": "few-shot with {} examples", "sampled": "best of {} replies"}


def readable(value: object, *, options: bool = True) -> str:
    """Return text of a study with attacks in words and names without underscores.

    Args:
        value: The text.
        options: Say how an attack's training is set; otherwise its name alone.
    """

    def attack(match: re.Match[str]) -> str:
        name, setting = match[1], match[2].removeprefix(":")
        if setting.isdigit():
            words = COUNTS.get(name, f"{ATTACKS[name]} of {{}} tokens").format(setting)
            return words.removesuffix("s") if setting == "1" else words
        settings = setting.replace("=", " ").split(",") if setting and options else []
        return ", ".join((ATTACKS[name], *settings))

    text = ATTACK.sub(attack, visible(value))
    text = re.sub(r"(?<=\w)\+(?=[a-z])", " + ", text)
    return re.sub(r"(?<=[a-z0-9])_(?=[a-z0-9])", " ", text)


def glued(value: object, options: bool = True) -> str:
    """Return text for the page in which a number stays on one line with its unit and bounds."""
    text = re.sub(r"(?<=\d) (?=[%×])", "\u00a0", readable(value, options=options))
    return re.sub(r"(?<=[%×\d]) (?=\[(?:range )?-?\d)", "\u00a0", text)


def sentence(value: object, options: bool = True) -> str:
    """Return `glued` text with a capital first: a reason may begin with a checkpoint's name."""
    text = glued(value, options)
    return text[:1].upper() + text[1:]


def plain_number(value: float | None) -> str:
    """Return a number with four digits at most."""
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def percent(value: float | None) -> str:
    """Return a fraction in percent: one decimal, or three digits where it is below 1 %."""
    if value is None or math.isnan(value):
        return "–"
    scaled = 100 * value
    if 0 < abs(scaled) < 1:
        return f"{scaled:.3g} %"
    return f"{scaled:.1f}".removesuffix(".0") + " %"


def spread(value: float | None, low: float | None, high: float | None) -> str:
    """Return a fraction with its bounds, in percent with one decimal, so that columns align."""
    if value is None or math.isnan(value):
        return "–"
    return f"{_tenth(value)} %{_brackets(low, high, _tenth)}"


def _brackets(
    low: float | None, high: float | None, write: Callable[[float], str], word: str = ""
) -> str:
    """Return bounds in brackets with a space before them; nothing where one is not known."""
    return "" if low is None or high is None else f" [{word}{write(low)}, {write(high)}]"


def _tenth(fraction: float) -> str:
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def interval(effect: Interval) -> str:
    """Return a claim's effect or control with its bounds, in its unit; a range is called one."""
    value, low, high = effect.value, effect.low, effect.high
    if value is None or math.isnan(value):
        return "–"
    word = "range " if is_range(effect) else ""
    unit = UNIT.search(effect.name)
    if unit is None:
        return f"{_tenth(value)} %{_brackets(low, high, _tenth, word)}"
    bounds = _brackets(low, high, "{:.3g}".format, word)
    return f"{value:.2f}{bounds}" if unit[1] == "correlation" else f"{value:.3g} {unit[1]}{bounds}"


def weighed(requirement: Requirement) -> str:
    """Return what a condition weighs; a number that it weighs by itself has no bounds."""
    measured = requirement.interval
    if measured.low == measured.value == measured.high:
        return interval(Interval(measured.name, measured.value))
    return interval(measured)


def threshold(requirement: Requirement) -> str:
    """Return how a condition compares and with what, in the unit of what it weighs."""
    limit = Interval(requirement.interval.name, requirement.threshold)
    return f"{requirement.sense} {interval(limit)}"


def models_of(recipe: OfRecipe) -> str:
    """Return what a statement on a recipe rests on: its models, and their mean with its bounds."""
    models = f"{recipe.models} {'model' if recipe.models == 1 else 'models'}"
    return models if recipe.effect.value is None else f"{models}; {interval(recipe.effect)}"


def is_fraction(effect: Interval) -> bool:
    """Return whether an effect is written in percent."""
    return UNIT.search(effect.name) is None


def is_range(effect: Interval) -> bool:
    """Return whether the bounds of an effect are the smallest and the largest of a few values."""
    return effect.bounds == "range" and effect.low is not None


def effects_of(claim: Claim) -> tuple[Interval, ...]:
    """Return the effect of a claim and its controls."""
    return (claim.effect, *claim.controls)


def bounds_of(effects: Iterable[Interval]) -> str:
    """Return what the bounds of effects are, for a heading."""
    ranges = _which_are_ranges(effects)
    if ranges and all(ranges):
        return "range"
    return "95 % interval or range" if any(ranges) else "95 % interval"


def bounds_sentence(effects: Iterable[Interval]) -> str:
    """Return what the bounds of effects are, for a sentence or a caption."""
    ranges = _which_are_ranges(effects)
    if ranges and all(ranges):
        return "ranges from the smallest to the largest value"
    return "95 % intervals, or ranges where it says so" if any(ranges) else "95 % intervals"


def _which_are_ranges(effects: Iterable[Interval]) -> list[bool]:
    return [is_range(effect) for effect in effects if effect.low is not None]


def cell(value: object, *, thousands: bool = False) -> str:
    """Return a table cell: what is unknown as a dash, numbers with four digits at most.

    Args:
        value: What stands in it.
        thousands: Write whole numbers with commas.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return plain_number(value)
    if isinstance(value, int) and thousands:
        return f"{value:,}"
    return visible(value)


def outcome(value: object) -> str:
    """Return what became of a reply, in words; a dash where no judge has said it."""
    return "–" if value is None else OUTCOME_NAMES.get(str(value), readable(value))


def label(value: object) -> str:
    """Return a text of a figure: one line, cut where it would cover the rest."""
    text = " ".join(visible(value).split())
    return text if len(text) <= LONGEST_LABEL else f"{text[:LONGEST_LABEL]} …"


def short(value: object) -> str:
    """Return a reply, cut where it becomes too long to read."""
    text = visible(value)
    return text if len(text) <= LONGEST_REPLY else f"{text[:LONGEST_REPLY]} …"


def quote(claim: Claim, run: str, version: str, judge: str = "") -> str:
    """Return what a reader may quote: claim, verdict, number, size, source, and by which judge."""
    text = claim.claim.rstrip(".")
    seeds = ", ".join(str(seed) for seed in claim.seeds)
    opening = f"resect{f' {version}' if version else ''} {QUOTES[claim.verdict]} “{text}” for {run}"
    sample = f"{counted(claim)}, seed{'s' if len(claim.seeds) != 1 else ''} {seeds}"
    sample = f"{judge}, {sample}" if judge else sample
    if claim.effect.value is None:
        return f"{opening} ({sample}): {claim.reason.rstrip('.')}."
    controls = [control for control in claim.controls if control.value is not None][:1]
    effects = [claim.effect, *controls]
    numbers = "; ".join(f"{effect.name}: {interval(effect)}" for effect in effects)
    return f"{opening}: {numbers} ({bounds_sentence(effects)}; {sample})."


def counted(claim: Claim) -> str:
    """Return how many prompts, or other things, an effect was measured on."""
    unit = claim.counted
    return f"{claim.n} {unit.removesuffix('s') if claim.n == 1 else unit}"


def slug(text: str) -> str:
    """Return a name that is safe in a file name and in an id."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "x"
