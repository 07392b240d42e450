"""What a plan counts, against the calls and tokens that really go through a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from resect.data.load import BehaviourSet
from resect.evaluation.ask import ask
from resect.evaluation.divergence import Intact
from resect.evaluation.replies import MOST_BYTES
from resect.evaluation.wide import SPARE
from resect.model import LoadedModel
from resect.records import Example
from resect.runs.config import RunConfig, parse_config
from resect.runs.forecast import forecast
from resect.runs.measure import evaluation_settings
from resect.runs.passes import Asking, Decoder, Passes, asking, intact_once, size_of_set
from resect.runs.run import plan_run
from resect.runs.speed import Assumed
from resect.studies.cells import Cell, Cut

NEW, BATCH = 8, 4
# Prompts of 11 to 20 words, nine of which all open with, and answers of 3 to 6.
OPENING = " ".join(tiny.WORDS[:9])
CELL = Cell("aligned", 0, None, ("generation",))


def rows(count: int, split: str) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"{split}{n}",
            prompt=" ".join([OPENING, *tiny.WORDS[n + 10 : n + 12 + 3 * (n % 4)]]),
            completion=" ".join(tiny.WORDS[n + 20 : n + 23 + n % 4]),
            category="",
            split=split,
        )
        for n in range(count)
    )


DATA = BehaviourSet("rows", rows(11, "evaluation") + rows(5, "calibration"), "none")


def configured(**evaluation: Any) -> RunConfig:
    probes = {"generation": "rows", "utility": "rows", "likelihood": "rows"}
    values = {
        "name": "counted",
        "models": {"aligned": "aligned"},
        "data": {"rows": "rows.jsonl"},
        "format": "raw",
        "targets": {"generation": {"data": "rows", "skip": 1, "limit": 4}},
        "preserve": {"data": "rows"},
        "attack": {"name": "prefill", "tokens": 2},
        "evaluation": {"probes": probes, "max_new_tokens": NEW, "batch_size": BATCH} | evaluation,
        "studies": {"frontier": {"fractions": [0.01], "protected": [0.01]}},
    }
    return parse_config(values, "test")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = tiny.build("llama")
    # No reply ends before the limit: what ends one is not among the words of the model.
    model.generation_config.eos_token_id = None
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    return LoadedModel(model, tokenizer)


DECODER = Decoder(tiny.VOCABULARY, 2 * 2 * 8 * 4, side_by_side=True)


def counted(loaded: LoadedModel, config: RunConfig, cell: Cell) -> Asking:
    """Return the calls and tokens that really go through the model."""
    sets = {name: DATA.split("evaluation") for name in cell.probes}
    settings = evaluation_settings(config, cell.attack, cell.samples, cell.temperature)
    intact = Intact()
    ask(loaded, sets, settings, intact=intact)  # the model is tried, the intact one kept
    calls: list[torch.Size] = []

    def count(_model: Any, _args: Any, named: dict[str, Any]) -> None:
        calls.append(named["input_ids"].shape)

    handle = loaded.model.register_forward_pre_hook(count, with_kwargs=True)  # type: ignore[attr-defined]
    ask(loaded, sets, settings, intact=intact)
    handle.remove()
    parts = ([c for c in calls if c[1] > 1], [c for c in calls if c[1] == 1])
    return Asking(*(Passes(len(part), sum(map(torch.Size.numel, part))) for part in parts))


@pytest.mark.parametrize("probe", ["generation", "utility", "likelihood"])
@pytest.mark.parametrize("how", ["side by side", "exact", "sampled", "measured"])
def test_calls_and_tokens(how: str, probe: str, loaded: LoadedModel) -> None:
    options: dict[str, Any] = {
        "exact": {"decoding": "exact"}, "measured": {"measure": "likelihood"},
    }.get(how, {})  # fmt: skip
    config = configured(**options)
    cell = replace(CELL, probes=(probe,), temperature=float(how == "sampled"))
    really = counted(loaded, config, cell)
    sizes = {"rows": size_of_set(loaded.tokenizer, DATA, "raw")}
    assert sizes["rows"].opening == 9
    plan = asking(config, cell, DECODER, sizes, full=True)
    assert plan.writing.calls == really.writing.calls
    # A sixteenth more for rows that have ended and not left yet; here all end at once.
    spare = 1 / 16 if how == "side by side" else 0
    assert plan.writing.tokens == pytest.approx(really.writing.tokens * (1 + spare), abs=0.5)
    assert plan.reading.calls == really.reading.calls
    assert plan.reading.tokens == really.reading.tokens
    assert plan.reading.rows == 11


def test_more_prompts_than_rows_under_way_are_refilled(loaded: LoadedModel) -> None:
    sizes = {"rows": size_of_set(loaded.tokenizer, DATA, "raw")}
    cell = replace(CELL, probes=("utility",))
    # Memory for five rows: eleven take three rounds of seven tokens behind the first.
    longest = max(row.prompt for row in sizes["rows"].asked)
    small = replace(DECODER, bytes_a_token=MOST_BYTES / 5 / (longest + NEW + SPARE) - 1)
    plan = asking(configured(), cell, small, sizes, full=True)
    assert plan.writing.calls == -(-11 * 7 // 5)
    assert asking(configured(), cell, DECODER, sizes, full=True).writing.calls == 7
    # As long as their answers, of 3 to 6 words and an end.
    short = asking(configured(), cell, DECODER, sizes, full=False)
    assert short.writing.calls == 6
    assert short.writing.tokens < plan.writing.tokens


def test_what_is_asked_once_or_shared_or_found_by_measuring() -> None:
    sizes = {"rows": size_of_set(tiny.tokenizer(), DATA, "raw")}
    plain = replace(CELL, probes=("likelihood", "utility"))
    cut = replace(plain, cut=Cut("generation", "target", 0.01))
    once = intact_once(configured(), DECODER, sizes)
    assert (once.calls, once.rows) == (3, 0)
    assert once.tokens == asking(configured(), replace(CELL, probes=("likelihood",)), DECODER,
                                 sizes, full=True).reading.tokens  # fmt: skip
    usual = asking(configured(), cut, DECODER, sizes, full=True)
    shared = asking(configured(together=4), cut, DECODER, sizes, full=True)
    assert (shared.reading.calls, shared.reading.tokens) == (
        usual.reading.calls / 4, usual.reading.tokens,
    )  # fmt: skip
    large = replace(cut, cut=Cut("generation", "target", 0.5))
    assert asking(configured(together=4), large, DECODER, sizes, full=True) == usual
    damage = replace(cut, cut=Cut("generation", "damage", 0.01))
    more = asking(configured(), damage, DECODER, sizes, full=True).reading.tokens
    assert more == usual.reading.tokens + 8 * once.tokens


def test_seconds_are_what_is_counted_over_the_speed(tmp_path: Path) -> None:
    place = tiny.save("llama", tmp_path / "model")
    config = configured(probes={"generation": "rows", "likelihood": "rows"})
    config = config.model_copy(update={"models": {"aligned": str(place)}})
    cells = plan_run(config)
    sizes = {"rows": size_of_set(tiny.tokenizer(), DATA, "raw")}
    idle = Assumed(rate=1e9, bandwidth=1e9, step=0, overlaps=False, row=0, cell=0, training=0)

    def seconds(**changes: Any) -> float:
        needs = forecast(config, cells, replace(idle, **changes), sizes=sizes)
        return sum(need.asking_seconds for need in needs)

    usual, blocks = seconds(), 2
    plans = [asking(config, cell, DECODER, sizes, full=True) for cell in cells]
    once = intact_once(config, DECODER, sizes)
    calls = sum(plan.reading.calls + plan.writing.calls for plan in plans) + once.calls
    assert seconds(step=1.0) - usual == pytest.approx(calls * blocks)
    replies = sum(plan.reading.rows for plan in plans)
    assert seconds(row=1.0) - usual == pytest.approx(replies)
    assert seconds(cell=1.0) - usual == pytest.approx(len(cells))
    # A device that starts work while it works takes no longer for that.
    assert seconds(step=1e-9, overlaps=True) == pytest.approx(usual)
    searched = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"search": "halving"})}
    )
    (fewer,) = forecast(searched, cells, idle, sizes=sizes)
    assert fewer.asking_seconds < usual
