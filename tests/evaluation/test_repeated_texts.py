"""Texts that repeat are no more texts, and an interval of few of them is as wide as it must be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from scipy import stats as scipy_stats

import tiny
from command_line import ok, write
from resect.evaluation.differences import Arm, differences
from resect.evaluation.judging import answers_of
from resect.evaluation.rates import Rate, summarise
from resect.records import Judgement, Reply

NLLS = (3.1, 2.2, 4.0, 2.9, 3.6, 2.4)


def replies(
    nlls: Sequence[float], probe: str = "perplexity", *, times: int = 1, name: str = "w"
) -> list[Reply]:
    """Return texts of ten tokens each, so often."""
    return [
        Reply(f"{n}/{again}", probe, "none", "", "", "", "", reference=f"{name}{n}", nll=nll,
              tokens=10)
        for again in range(times)
        for n, nll in enumerate(nlls)
    ]  # fmt: skip


def perplexity(rows: Sequence[Reply]) -> Rate:
    (rate,) = summarise("exact", {"intact": answers_of(rows)})
    return rate


def arm(name: str, rows: Sequence[Reply]) -> Arm:
    judgement = asdict(Judgement("none", "none", None))
    records: list[Mapping[str, object]] = [asdict(reply) | judgement for reply in rows]
    return Arm(name, records, {})


def student(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of a mean."""
    reach = scipy_stats.t.isf(0.025, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - reach, fmean(values) + reach


def test_twenty_copies_of_texts_have_the_perplexity_of_one() -> None:
    once, often = perplexity(replies(NLLS)), perplexity(replies(NLLS, times=20))
    for key in ("perplexity", "perplexity_low", "perplexity_high"):
        assert once[key] == pytest.approx(often[key])
    # A file of one text says nothing of others.
    assert perplexity(replies([3.0], times=20))["perplexity_high"] is None


@pytest.mark.parametrize("count", [2, 3, 6])
def test_few_texts_have_an_interval_of_student(count: int) -> None:
    rate = perplexity(replies(NLLS[:count]))
    low, high = student(NLLS[:count])
    assert rate["perplexity"] == pytest.approx(math.exp(fmean(NLLS[:count])))
    assert rate["perplexity_low"] is not None
    assert rate["perplexity_high"] is not None
    # Within what 1,999 draws leave open; no loss is below 0.
    room = 0.1 * (high - low)
    assert math.log(rate["perplexity_low"]) == pytest.approx(max(0, low), abs=room)
    assert math.log(rate["perplexity_high"]) == pytest.approx(high, abs=room)


def test_a_text_weighs_what_it_has_tokens() -> None:
    long, short = replies([2.0, 4.0])
    texts = [replace(long, tokens=90), short]
    rate = perplexity(texts)
    assert rate["perplexity"] == pytest.approx(math.exp(2.2))
    # One text decides it, and there is no other of its kind.
    assert rate["perplexity_low"] is None
    assert rate["perplexity_high"] is None


@pytest.mark.parametrize("probe", ["perplexity", "likelihood"])
def test_a_difference_of_few_losses_is_as_uncertain_as_student_says(probe: str) -> None:
    rises = (0.1, 0.4, 0.2, 0.3)
    before = replies(NLLS[:4], probe)
    after = replies([nll + rise for nll, rise in zip(NLLS, rises, strict=False)], probe)
    (row,) = differences([arm("a", before), arm("b", after)])
    low, high = student(rises)
    assert row["paired"]
    assert row["low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert row["high"] == pytest.approx(high, abs=0.1 * (high - low))


def test_other_texts_are_not_paired_and_copies_are_no_more_texts() -> None:
    first, again = replies(NLLS), replies(NLLS, times=5)
    (row,) = differences([arm("a", first), arm("b", replies(NLLS, name="v"))])
    assert not row["paired"]
    (row,) = differences([arm("a", first), arm("b", again)])
    assert row["paired"]
    assert row["prompts"] == len(NLLS)


def test_eval_of_a_file_that_repeats_its_texts(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    few = [{"text": "w1 w2 w3 w4"}, {"text": "w5 w6 w7"}, {"text": "w8 w2 w9 w1 w3"}]
    found = []
    for name, rows in (("few", few), ("many", few * 10)):
        data = write(tmp_path / f"{name}.jsonl", rows)
        ok("eval", model, "--probe", "perplexity", "--data", data, "-o", tmp_path / name)
        (rate,) = json.loads((tmp_path / name / "results.json").read_text("utf-8"))["rates"]
        found.append([rate["perplexity"], rate["perplexity_low"], rate["perplexity_high"]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
