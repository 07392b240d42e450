"""How often a model refuses harmless prompts, intact and cut, in pairs.

They are asked without an attack, and phrases find the refusals (`keyword`), whatever judges the
behaviour that is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from resect.data.encode import prompt_text
from resect.data.load import BehaviourSet
from resect.evaluation.ask import NO_ATTACK, EvaluationSettings, ask
from resect.evaluation.judging import Answer, answers_of, judge_answers
from resect.model import LoadedModel
from resect.records import Interval
from resect.stats import Resampler, same_text
from resect.weights.mask import Mask

JUDGE = "keyword"


@dataclass(frozen=True)
class Refusals:
    """What became of harmless prompts.

    Attributes:
        prompts: Different prompts.
        answers: `intact` and `cut` to the judged answers, in the order of the prompts.
        intact: Share of refusals of the intact model.
        cut: The same of the cut one.
        rise: Their paired difference.
    """

    prompts: int
    answers: Mapping[str, list[Answer]]
    intact: Interval
    cut: Interval
    rise: Interval


def count_refusals(
    loaded: LoadedModel, data: BehaviourSet, mask: Mask, settings: EvaluationSettings
) -> Refusals:
    """Ask both models, and count what they refuse.

    Args:
        loaded: The intact model and its tokenizer.
        data: Harmless prompts.
        mask: The cut.
        settings: How to ask; attack and judge do not count.

    Raises:
        InputError: A prompt cannot be put to the model.
        MismatchError: The mask belongs to another model.
    """
    plainly = replace(settings, attack=NO_ATTACK)
    groups = {"": same_text([prompt_text(example) for example in data.examples])}
    resampler = Resampler("harmless")
    answers = {
        name: judge_answers(answers_of(ask(loaded, {"refusal": data}, plainly, variant)), JUDGE)
        for name, variant in (("intact", None), ("cut", mask))
    }
    before, after = (
        resampler.rate({"": [answer.judgement.score for answer in answers[name]]}, groups)
        for name in ("intact", "cut")
    )
    return Refusals(
        len(set(groups[""])),
        answers,
        before.interval("intact model"),
        after.interval("chosen cut"),
        (after - before).interval("rise"),
    )
