"""Does the chosen cut refuse harmless prompts? Asked after the choice, which does not rest on it.

The prompts of the preserve set are put to the intact model and to the chosen cut, without an
attack, and phrases find the refusals (`keyword`), whatever judges the behaviour. In a run by
likelihood nothing is decoded, and nothing is asked here either.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from resect.data.encode import prompt_text
from resect.evaluation.ask import NO_ATTACK, ask
from resect.evaluation.judging import answers_of, judge_answers, write_judged
from resect.files.writing import plain, write_json
from resect.model import load_model
from resect.records import HARMLESS_FILE
from resect.runs.config import RunConfig
from resect.runs.measure import evaluation_settings
from resect.runs.sets import Sets
from resect.stats import Resampler, same_text
from resect.weights.mask import Mask

SET = "preserve"
JUDGE = "keyword"
# More say little more of a rate that is small, and each is decoded twice.
MOST = 100


def ask_harmless(config: RunConfig, run: Path, mask: Mask) -> None:
    """Write how often both models refuse harmless prompts: `harmless.json`, with the replies.

    Args:
        config: A run of one model with the set `preserve`.
        run: Its folder.
        mask: The chosen cut.

    Raises:
        InputError: A prompt cannot be put to the model.
    """
    if config.evaluation.measure == "likelihood" or (run / HARMLESS_FILE).exists():
        return
    seed = config.seeds[0]
    data = Sets(config, run).named(SET, seed).split("evaluation").limit(MOST, seed)
    settings = replace(evaluation_settings(config), attack=NO_ATTACK)
    loaded = load_model(config.models[config.subject])
    groups = {"": same_text([prompt_text(example) for example in data.examples])}
    resampler, rates = Resampler("harmless"), {}
    for name, variant in (("intact", None), ("cut", mask)):
        replies = ask(loaded, {"refusal": data}, settings, variant)
        answers = judge_answers(answers_of(replies), JUDGE)
        write_judged(run / "harmless" / f"{name}.parquet", name, [answers])
        rates[name] = resampler.rate({"": [answer.judgement.score for answer in answers]}, groups)
    facts = {
        "prompts": len(set(groups[""])),
        "judge": JUDGE,
        "intact": plain(rates["intact"].interval("intact model")),
        "cut": plain(rates["cut"].interval("chosen cut")),
        "rise": plain((rates["cut"] - rates["intact"]).interval("rise")),
    }
    write_json(run / HARMLESS_FILE, facts)
