"""The permutation test, and the choice of the smallest cut that cannot be told from the best."""

from __future__ import annotations

import pytest

from invented_run import Invented, Rate, invented_config
from resect.runs.config import RunConfig, parse_config
from resect.studies import specificity
from resect.studies.cells import Cell, Cut
from resect.studies.choice import choose
from resect.studies.permutation import Permuted, permuted, permuted_cuts
from resect.studies.weighing import weigh

GRID = (0.001, 0.01)


def contrasted(*, contrast: str | None = "facts") -> RunConfig:
    section = {"fractions": list(GRID), "benign": ["facts"], "matched": [], "permutations": 19}
    values = invented_config({"specificity": section}).model_dump(mode="json")
    values["targets"]["generation"]["contrast"] = contrast
    return parse_config(values, "test")


def rates(swapped: float) -> Rate:
    """Return rates of a world in which the true labels' cuts leave .1 of the harm."""

    def rate(cell: Cell, probe: str) -> float:
        if probe != "generation" or cell.cut is None or cell.cut.target != "generation":
            return 1.0
        if cell.cut.kind != "target":
            return 1.0
        return swapped if cell.cut.permutation else 0.1

    return rate


def test_p_counts_the_labellings_that_do_as_much() -> None:
    assert Permuted(0.9, (0.1,) * 19).p == pytest.approx(0.05)
    assert Permuted(0.9, (0.1,) * 18 + (0.9,)).p == pytest.approx(0.1)
    assert Permuted(0.0, (0.1,) * 19).p == 1
    assert weigh(Permuted(0.9, (0.1,) * 19).condition(0.05), supported="").verdict == "supported"
    assert weigh(Permuted(0.1, (0.9,) * 19).condition(0.05), supported="").verdict == (
        "not supported"
    )
    numbers = [row["permutation"] for row in Permuted(0.9, (0.1, 0.2)).rows]
    assert numbers == [None, 1, 2]


def test_a_target_without_contrast_has_no_labels_to_swap() -> None:
    assert permuted_cuts(contrasted(contrast=None), 19, GRID) == []
    assert permuted_cuts(contrasted(), 0, GRID) == []
    cuts = permuted_cuts(contrasted(), 19, GRID)
    assert len(cuts) == 20 * len(GRID)
    # The true labels of the same pairs are the first.
    assert [cut.permutation for cut in cuts[:3]] == [0, 0, 1]


@pytest.mark.parametrize(("swapped", "supported"), [(0.95, True), (0.1, False)])
def test_what_swapped_labels_do_as_well_is_not_specific(swapped: float, supported: bool) -> None:
    config = contrasted()
    section = config.section(specificity.STUDY)
    assert section is not None
    measured = Invented(config, rates(swapped), prompts=330)
    null = permuted(measured, 19, GRID, 0.05)
    assert null is not None
    assert null.p == (0.05 if supported else 1.0)
    claim = specificity.summarise(measured, section).claims[0]
    assert (claim.verdict == "supported") == supported, claim.reason
    planned = {cell.cut.permutation for cell in specificity.plan(config, section) if cell.cut}
    assert planned == {None, *range(20)}


def test_of_cuts_that_cannot_be_told_apart_the_smallest_is_chosen() -> None:
    left = {0.001: 0.5, 0.002: 0.1, 0.01: 0.09}

    def rate(cell: Cell, probe: str) -> float:
        return 1.0 if probe != "generation" or cell.cut is None else left[cell.cut.q]

    cuts = [Cut("generation", "target", q) for q in left]
    measured = Invented(invented_config({"compactness": {}}), rate, prompts=120)
    assert choose(measured, "aligned", cuts, 0.05).cuts == {0: cuts[1]}
    left[0.01] = 0.0
    measured = Invented(invented_config({"compactness": {}}), rate, prompts=600)
    assert choose(measured, "aligned", cuts, 0.05).cuts == {0: cuts[2]}
