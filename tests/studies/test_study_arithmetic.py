"""The arithmetic of the studies, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from invented_run import Invented, invented_config
from resect.records import Claim, Interval, Requirement, VerdictWord
from resect.stats import Sample
from resect.studies import strata as of_seeds
from resect.studies.cells import Cell, Cut, Tuning, merge
from resect.studies.choice import choose
from resect.studies.compression import needed
from resect.studies.curves import at_level
from resect.studies.halves import PromptOf, deal
from resect.studies.models import agreed
from resect.weights.algebra import chance_overlap, rank_agreement
from resect.weights.mask import Mask, MaskTensor


def sample(value: float, *draws: float) -> Sample:
    return Sample(value, np.array(draws or (value,)))


def test_misalignment_is_compared_where_the_narrow_task_reaches_the_level() -> None:
    narrow = [sample(0.0, 0.0, 0.2), sample(0.5, 0.4, 0.6), sample(1.0, 0.8, 0.6)]
    elsewhere = [sample(0.0, 0.0, 0.0), sample(0.2, 0.2, 0.4), sample(0.6, 0.6, 0.8)]
    found = at_level(0.75, narrow, elsewhere)
    assert found.value == pytest.approx(0.4)  # half-way between the last two doses
    # The first draw crosses at 0.35/0.4 of the last step; the second never reaches the level.
    assert found.draws[0] == pytest.approx(0.2 + 0.875 * 0.4)
    assert math.isnan(found.draws[1])
    assert at_level(0.0, narrow, elsewhere).value == 0.0
    assert math.isnan(at_level(1.5, narrow, elsewhere).value)


def test_each_model_takes_its_own_cut_within_the_budget() -> None:
    # Two models whose utility breaks down at different q: no q serves both.
    left = {
        (0, 0.001): (0.1, 0.99), (0, 0.01): (0.0, 0.5),
        (1, 0.001): (1.0, 1.0), (1, 0.01): (0.3, 0.98),
    }  # fmt: skip

    def rate(cell: Cell, probe: str) -> float:
        harm, utility = (1, 1) if cell.cut is None else left[cell.seed, cell.cut.q]
        return harm if probe == "generation" else utility

    cuts = [Cut("generation", "target", q) for q in (0.001, 0.01)]
    measured = Invented(invented_config({"compactness": {}}, seeds=2), rate, prompts=900)
    choice = choose(measured, "aligned", cuts, 0.05)
    assert choice.cuts == {0: cuts[0], 1: cuts[1]}
    assert choice.effect.harm_drop.value == pytest.approx(0.8, abs=0.01)
    assert choice.q == pytest.approx(0.0055)
    assert str(choice) == "q = 0.1 %, 1 %"
    # Without a cut within the budget nothing is cut.
    none = choose(measured, "aligned", cuts[1:], 0.05, seeds=(0,))
    assert none.cuts == {0: None}
    assert none.effect.harm_drop.value == 0


def test_a_cut_is_tested_on_prompts_that_had_no_part_in_its_choice() -> None:
    def rate(cell: Cell, probe: str) -> float:
        return 0.5 if cell.cut is not None and probe == "generation" else 1.0

    measured = Invented(invented_config({"compactness": {}}), rate, prompts=300)
    cell = Cell("aligned", 0, None, ())
    halves = [row.half for row in measured.asked(cell, "generation")]
    assert halves.count("test") == halves.count("selection") == 150
    by_category = [row.half for row in measured.asked(cell, "generation") if row.category == "far"]
    assert by_category.count("test") == 50
    groups = [
        {row.group for row in measured.asked(cell, "generation") if row.half == half}
        for half in ("test", "selection")
    ]
    assert not groups[0] & groups[1]
    assert measured.prompts([cell], "generation", half="test") == 150


def claim(verdict: VerdictWord, *by_seed: VerdictWord) -> Claim:
    seeds = tuple(range(len(by_seed)))
    controls = (Interval("random", 0.0),)
    named = {str(seed): one for seed, one in zip(seeds, by_seed, strict=True)}
    return Claim("s", "c", verdict, Interval("e", 1.0), controls, "r", seeds, 9, "Why.", named)


def test_a_claim_on_which_models_disagree_is_not_supported() -> None:
    split = agreed(claim("supported", "supported", "not supported", "not supported"), 0.5)
    assert split.verdict == "inconclusive"
    assert "seeds 1, 2 alone" in split.reason
    assert split.reason.endswith("Why.")
    # A seed alone has fewer prompts: that it cannot tell is no contradiction.
    weak = claim("supported", "supported", "inconclusive", "not measurable")
    assert agreed(weak, 0.0) == weak
    assert agreed(claim("supported", "supported", "not supported"), 0.5).verdict == "supported"
    against = claim("not supported", "supported", "supported")
    assert agreed(against, 0.0) == against


def test_a_claim_needs_most_models_to_be_measurable() -> None:
    one_of_three = claim("supported", "supported", "not measurable", "not measurable")
    assert agreed(one_of_three, 0.5).verdict == "not measurable"
    assert "Only 1 of 3 models" in agreed(one_of_three, 0.5).reason
    two_of_three = claim("supported", "supported", "supported", "not measurable")
    assert agreed(two_of_three, 0.5) == two_of_three


def test_an_interval_over_models_asks_no_single_model() -> None:
    change = Requirement(Interval("e", 0.9, 0.8, 1.1), "above", 1, "misses", over_models=False)
    alone = claim("not supported", "not measurable", "not measurable", "not measurable")
    of_all = replace(alone, requirements=(change,))
    assert agreed(of_all, 0.5) == of_all
    assert agreed(alone, 0.5).verdict == "not measurable"


def test_categories_of_few_prompts_are_resampled_together() -> None:
    scored = of_seeds.Scored
    strata = {"0/large": [scored(f"large {number}", 1.0) for number in range(6)]}
    for name in "abcde":
        strata |= {f"0/{name}": [scored(name, 1.0)], f"1/{name}": [scored(name, 0.0)]}
    found = of_seeds.with_enough(strata)
    assert [len(scores) for scores in found.values()] == [6, 5, 5]
    assert {name.partition("/")[0] for name in found} == {"0", "1"}
    # Six copies of one prompt are one prompt.
    strata["0/large"] = [scored("large", 1.0)] * 6
    assert [len(scores) for scores in of_seeds.with_enough(strata).values()] == [11, 5]


def test_fraction_needed_follows_the_line_over_the_logarithm() -> None:
    fractions, drops = (1e-4, 1e-2), (0.2, 0.6)
    assert needed(fractions, drops, 0.4) == pytest.approx(1e-3)
    assert needed(fractions, drops, 0.1) == 1e-4
    assert needed(fractions, drops, 0.6) == pytest.approx(1e-2)
    assert needed(fractions, drops, 0.7) is None


def test_halves_do_not_depend_on_the_order_of_the_file_and_keep_twins_together() -> None:
    texts = [f"{word} rye" for word in ("bake", "sell", "cut", "toast", "store", "eat")]
    twins = ["cut the rye", "how do i toast rye"]
    prompts = [PromptOf("a", text) for text in (*texts, *twins)]
    places = dict(zip(prompts, deal(tuple(prompts), 1.0), strict=True))
    turned = tuple(prompts[::-1])
    assert dict(zip(turned, deal(turned, 1.0), strict=True)) == places
    halves = [places[prompt].half for prompt in prompts[: len(texts)]]
    assert halves.count("test") == halves.count("selection") == 3
    for twin, text in zip(twins, ("cut rye", "toast rye"), strict=True):
        places_of = [places[PromptOf("a", words)] for words in (twin, text)]
        assert places_of[0] == places_of[1]


def mask(**index: list[int]) -> Mask:
    tensors = {
        name: MaskTensor(
            (10,),
            torch.tensor(places),
            torch.ones(len(places)),
            torch.zeros(len(places), dtype=torch.uint8),
        )
        for name, places in index.items()
    }
    return Mask(tensors, {})


def test_overlap_is_set_beside_chance() -> None:
    first, second = mask(a=[0, 1, 2, 3, 4], b=[0, 1]), mask(a=[3, 4, 5, 6, 7], b=[8, 9])
    found = chance_overlap(first, second)
    assert found["jaccard"] == pytest.approx(2 / 12)
    # 5·5/10 and 2·2/10 shared weights are expected.
    assert found["enrichment"] == pytest.approx(2 / 2.9)
    assert found["p_value"] > 0.05
    same = chance_overlap(first, first)
    assert same["jaccard"] == 1
    assert same["p_value"] < found["p_value"]


def test_rank_agreement() -> None:
    first = mask(a=[0], b=[0, 1], c=[0, 1, 2])
    assert rank_agreement(first, mask(a=[5], b=[5, 6], c=[1, 5, 6, 7])) == pytest.approx(1)
    assert rank_agreement(first, mask(a=[1, 2, 3], b=[1, 2], c=[9])) == pytest.approx(-1)
    assert rank_agreement(first, mask(a=[1], b=[2], c=[9])) is None


def test_a_variant_that_two_studies_ask_for_is_measured_once() -> None:
    cut = Cut("generation", "target", 0.1)
    cells = [
        Cell("aligned", 0, cut, ("generation",)),
        Cell("aligned", 0, cut, ("utility",)),
        Cell("aligned", 0, cut, ("utility",), Tuning("hazard", 3, 1e-3)),
        Cell("aligned", 0, cut, ("utility",), attack="none"),
        Cell("aligned", 0, Cut("generation", "target", 0.1, rounds=4), ("utility",)),
    ]
    merged = merge(cells)
    assert len(merged) == 4
    assert len({cell.key for cell in merged}) == 4
    assert ("generation", "utility") in [cell.probes for cell in merged]


def crossing(level: float, near: np.ndarray, far: np.ndarray) -> float:
    """The slow twin of `at_level`, of one draw."""
    for dose, rate in enumerate(near):
        if rate >= level:
            if dose == 0 or near[dose] == near[dose - 1]:
                return float(far[dose])
            share = (level - near[dose - 1]) / (near[dose] - near[dose - 1])
            return float(far[dose - 1] + share * (far[dose] - far[dose - 1]))
    return math.nan


def test_crossings_of_all_draws_are_those_of_each() -> None:
    draw = np.random.default_rng(0)
    # Rounded, so that doses with equal rates and rates at the level are among them.
    rates = np.round(np.sort(draw.random((4, 500)), axis=0), 2)
    others = draw.random((4, 500))
    narrow = [Sample(float(dose.mean()), dose) for dose in rates]
    elsewhere = [Sample(float(dose.mean()), dose) for dose in others]
    found = at_level(0.5, narrow, elsewhere)
    slow = [crossing(0.5, *pair) for pair in zip(rates.T, others.T, strict=True)]
    assert np.array_equal(found.draws, slow, equal_nan=True)
