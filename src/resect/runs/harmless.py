"""Does the chosen cut refuse harmless prompts? Asked after the choice, which does not rest on it.

The prompts are those of the preserve set. In a run by likelihood nothing is decoded, and nothing is
asked here either.
"""

from __future__ import annotations

from pathlib import Path

from resect.evaluation.harmless import JUDGE, count_refusals
from resect.evaluation.judging import write_judged
from resect.files.writing import plain, write_json
from resect.model import load_model
from resect.records import HARMLESS_FILE
from resect.runs.config import RunConfig
from resect.runs.measure import evaluation_settings
from resect.runs.sets import Sets
from resect.weights.mask import Mask

SET = "preserve"
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
    loaded = load_model(config.models[config.subject])
    refusals = count_refusals(loaded, data, mask, evaluation_settings(config))
    for name, answers in refusals.answers.items():
        write_judged(run / "harmless" / f"{name}.parquet", name, [answers])
    rates = {name: plain(getattr(refusals, name)) for name in ("intact", "cut", "rise")}
    write_json(run / HARMLESS_FILE, {"prompts": refusals.prompts, "judge": JUDGE, **rates})
