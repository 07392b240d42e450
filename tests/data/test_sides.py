"""Prompts that say the same are never on both sides."""

from __future__ import annotations

import pytest

from resect.data.sides import apart_from, deal_prompts
from resect.errors import InputError
from resect.stats.groups import near_duplicates

WORDS = "vorp zim dax blick tarn fep gorm lunk quib wug snar plo".split()
# Two wordings of each of twelve requests.
PROMPTS = [
    f"{start} the {word} {word}ish {word}ly" for word in WORDS for start in ("Bend", "Please bend")
]


def test_near_duplicates_are_on_one_side_and_asked_once() -> None:
    groups = near_duplicates(PROMPTS)
    dealt = deal_prompts(PROMPTS, calibration=8, evaluation=5, label="x")
    asked, scored = ([groups[place] for place in side] for side in (dealt[1], dealt[0]))
    assert len(set(asked)) == 5
    assert len(scored) == 8
    assert not set(asked) & set(scored)
    assert len(set(scored)) < 8


def test_a_draw_is_named_by_its_label_and_seed() -> None:
    def asked(label: str, seed: int) -> tuple[int, ...]:
        return deal_prompts(PROMPTS, calibration=8, evaluation=4, label=label, seed=seed).evaluation

    assert asked("x", 0) == asked("x", 0)
    assert len({asked("x", 0), asked("y", 0), asked("x", 1)}) > 1


@pytest.mark.parametrize(("calibration", "evaluation"), [(0, 13), (20, 5)])
def test_too_few_prompts_are_refused(calibration: int, evaluation: int) -> None:
    with pytest.raises(InputError, match="12 groups"):
        deal_prompts(PROMPTS, calibration=calibration, evaluation=evaluation, label="x")


def test_whatever_says_what_a_used_prompt_says_is_left_out() -> None:
    used = {PROMPTS[0], PROMPTS[5]}
    # Both wordings go, whichever of them was used.
    assert apart_from(used, PROMPTS) == [place for place in range(24) if place // 2 not in (0, 2)]
    assert apart_from(set(), PROMPTS) == list(range(24))
