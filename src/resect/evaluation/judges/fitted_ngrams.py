"""What a fitted judge reads of the words: n-grams of the reply, and words of the prompt.

    w:TEXT    one word or two words in a row of the reply
    c:TEXT    three to five characters of the reply, within a word and the blanks around it
    p:TEXT    one word of the prompt

With n the number of times that a text has a term, N texts and df of them with the term,

    x = (1 + ln n)(1 + ln((1 + N) / (1 + df))),     and x / |x| over the terms of the vocabulary

as `TfidfVectorizer` of scikit-learn has it with sublinear counts. It is written out here, so that
a judge is its file and not the version of a package.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from resect.stats import normalised

# Of a long text the beginning is read.
MOST_OF_REPLY = 4000
MOST_OF_PROMPT = 1000
WORD = re.compile(r"\w+|[^\w\s]")
CHARACTERS = (3, 4, 5)


def terms(prompt: str, text: str) -> Iterator[str]:
    """Yield every term of a reply and of its prompt, as often as it stands there."""
    words = WORD.findall(normalised(text[:MOST_OF_REPLY]))
    for word in words:
        yield f"w:{word}"
        padded = f" {word} "
        for size in CHARACTERS:
            for start in range(len(padded) - size + 1):
                yield f"c:{padded[start : start + size]}"
    for before, after in pairwise(words):
        yield f"w:{before} {after}"
    for word in WORD.findall(normalised(prompt[:MOST_OF_PROMPT])):
        yield f"p:{word}"


@dataclass(frozen=True)
class Ngrams:
    """A linear judge of n-grams; a column for each of the three, of one length.

    Attributes:
        terms: The vocabulary.
        idf: Second factor of x of the header.
        weights: Weight of x / |x|.
    """

    terms: tuple[str, ...]
    idf: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        if not len(self.terms) == len(self.idf) == len(self.weights):
            raise ValueError("terms, idf and weights differ in length")

    def places(self) -> dict[str, int]:
        """Return where each term stands."""
        return {term: place for place, term in enumerate(self.terms)}

    def margin(self, places: dict[str, int], prompt: str, text: str) -> float:
        """Return the weighted sum over x / |x| of one reply; 0 where it has no known term.

        Args:
            places: From `places`, which is the same for all replies.
            prompt: What was asked.
            text: What was answered.
        """
        counts = Counter(
            place for term in terms(prompt, text) if (place := places.get(term)) is not None
        )
        values = {place: (1 + math.log(n)) * self.idf[place] for place, n in counts.items()}
        length = math.sqrt(math.fsum(value * value for value in values.values()))
        if not length:
            return 0.0
        return math.fsum(self.weights[place] * value for place, value in values.items()) / length
