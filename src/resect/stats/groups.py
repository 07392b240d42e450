"""Which prompts say the same: equal texts, and near-duplicates.

Answers to prompts that say the same are not independent. What is resampled are groups of prompts:

    text     Unicode NFKC, case folded, white space as one blank
    words    of the text, without `STOP_WORDS`, and without template words: those that more than
             half of the texts have, counted from `LEAST_TEXTS` texts on
    alike    |words of both| / |words of either| (Jaccard) reaches the threshold
    group    all that a chain of alike texts joins (single linkage)

Texts without words are alike where they are equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


# Two prompts that share half of their content words; on AdvBench 34 % of one half of the prompts
# have such a twin in the other half.
ALIKE = 0.5
LEAST_TEXTS = 10
# Texts whose likeness to all others is computed at once.
ROWS = 1024
# Words without content; fixed, so that groups do not depend on a package's version.
STOP_WORDS = frozenset(
    "a about all also an and any are as at be because been but by can could do does doing done for "
    "from get give had has have he her him his how i if in into is it its just let make makes "
    "making may me might more most must my no nor not of on once only or other our out over own "
    "please shall she should so some such tell than that the their them then there these they this "
    "those through to too under until up us very was way ways we were what when where which while "
    "who whom whose why will with would you your".split()
)


def normalised(text: str) -> str:
    """Return a text with one spelling of characters, case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def same_text(texts: Sequence[str]) -> list[int]:
    """Return a group number a text, in order of first appearance; equal texts share theirs."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(normalised(text), len(numbers)) for text in texts]


def content_words(texts: Sequence[str]) -> list[frozenset[str]]:
    """Return the words of each text that tell it from other texts."""
    rows = [
        frozenset(re.findall(r"\w+", normalised(text))).difference(STOP_WORDS) for text in texts
    ]
    # A template's words are those of nearly all texts; equal texts are no evidence of a template.
    distinct = {normalised(text): row for text, row in zip(texts, rows, strict=True)}
    uses = Counter(word for row in distinct.values() for word in row)
    if len(distinct) >= LEAST_TEXTS:
        template = {word for word, count in uses.items() if count > len(distinct) / 2}
        rows = [row - template for row in rows]
    return rows


def near_duplicates(texts: Sequence[str], alike: float = ALIKE) -> list[int]:
    """Return a group number a text, in order of first appearance.

    Args:
        texts: The prompts of one set.
        alike: Least share of common content words, in (0, 1], that makes two texts alike.
    """
    import numpy as np
    from scipy import sparse
    from scipy.sparse import csgraph

    if not texts:
        return []
    rows = content_words(texts)
    columns = {word: number for number, word in enumerate(sorted(frozenset().union(*rows)))}
    sizes = np.array([len(row) for row in rows])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    places = np.array([columns[word] for row in rows for word in sorted(row)], dtype=np.int64)
    words = sparse.csr_matrix(
        (np.ones(len(places)), places, starts), shape=(len(rows), max(1, len(columns)))
    )
    sources, targets = [np.arange(len(texts))], [_first_of(same_text(texts))]
    for start in range(0, len(texts), ROWS):
        shared = (words[start : start + ROWS] @ words.T).tocoo()
        source = shared.row + start
        either = sizes[source] + sizes[shared.col] - shared.data
        near = shared.data >= alike * either - 1e-9
        sources.append(source[near])
        targets.append(shared.col[near])
    edges = np.concatenate(sources), np.concatenate(targets)
    graph = sparse.coo_matrix((np.ones(len(edges[0])), edges), shape=(len(texts), len(texts)))
    _, labels = csgraph.connected_components(graph, directed=False)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(int(label), len(numbers)) for label in labels]


def _first_of(groups: Sequence[int]) -> np.ndarray:
    """Return for each text the place of the first one of its group."""
    import numpy as np

    places: dict[int, int] = {}
    return np.array([places.setdefault(group, number) for number, group in enumerate(groups)])
