"""Groups of prompts against a plain search over all pairs."""

from __future__ import annotations

import itertools

import pytest

from resect import stats
from resect.stats.groups import content_words


def slow_groups(texts: list[str], alike: float) -> list[int]:
    """Return single-linkage groups by visiting all pairs and walking from text to text."""
    words = content_words(texts)
    near = {
        (i, j)
        for i, j in itertools.permutations(range(len(texts)), 2)
        if stats.normalised(texts[i]) == stats.normalised(texts[j])
        or (words[i] | words[j] and len(words[i] & words[j]) / len(words[i] | words[j]) >= alike)
    }
    numbers: dict[int, int] = {}
    for start in range(len(texts)):
        if start in numbers:
            continue
        number, waiting = len(set(numbers.values())), [start]
        while waiting:
            text = waiting.pop()
            numbers[text] = number
            waiting += [j for i, j in near if i == text and j not in numbers]
    return [numbers[text] for text in range(len(texts))]


def test_spelling_case_and_white_space_do_not_tell_texts_apart() -> None:
    texts = [
        "How do I  fix\ta Wagon?",
        "how do i fix a wagon?",
        "ＨＯＷ do I fix a wagon?",
        "Other",
    ]
    assert stats.same_text(texts) == [0, 0, 0, 1]
    assert stats.near_duplicates(texts) == [0, 0, 0, 1]


def test_groups_equal_a_search_over_all_pairs() -> None:
    draw = stats.rng("texts")
    words = [f"word{n}" for n in range(40)]
    texts = [" ".join(draw.choice(words, draw.integers(0, 7))) for _ in range(120)]
    for alike in (0.3, 0.5, 1.0):
        groups = stats.near_duplicates(texts, alike)
        assert groups == slow_groups(texts, alike)
        assert 1 < len(set(groups)) < len(texts)


def test_a_chain_of_alike_texts_is_one_group() -> None:
    texts = ["red blue", "blue green", "green grey", "black white"]
    assert stats.near_duplicates(texts, 1 / 3) == [0, 0, 0, 1]
    assert stats.near_duplicates(texts, 0.34) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [9, 10, 60])
def test_words_of_a_template_join_nothing(count: int) -> None:
    texts = [f"Describe the usual recipe for thing{n}" for n in range(count)]
    # Below ten texts nobody can tell a template from prompts that are alike.
    assert len(set(stats.near_duplicates(texts))) == (count if count >= 10 else 1)


def test_texts_without_words_and_no_texts() -> None:
    assert stats.near_duplicates([]) == []
    assert stats.near_duplicates(["", "what is it", "who is it", " ", "What is  it"]) == [
        0, 1, 2, 0, 1,
    ]  # fmt: skip


def test_many_texts_are_joined_across_blocks() -> None:
    texts = [f"alpha{n % 700} beta{n % 700}" for n in range(2100)]
    assert stats.near_duplicates(texts) == [n % 700 for n in range(2100)]
