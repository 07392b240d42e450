"""The behaviour sets of a run, each read once and named by its content."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from resect.data.encode import prompt_text
from resect.data.load import BehaviourSet, check_disjoint, load_data
from resect.errors import InputError, MismatchError
from resect.files.origin import hash_value
from resect.files.reading import read_json
from resect.files.writing import write_json
from resect.records import LEFT_OUT_BY_DEFAULT
from resect.runs.config import RunConfig
from resect.stats import normalised, rng
from resect.studies.cells import at_seed
from resect.studies.design import Target

logger = logging.getLogger(__name__)
# Of which half can be swapped.
LEAST_PAIRS = 2


@dataclass(frozen=True)
class Source:
    """What scores are made from, beside the target: model and calibration draw.

    The names of score files hash these fields by name.
    """

    role: str
    seed: int
    category: str = ""
    examples: int | None = None
    draw: int | None = None
    permutation: int | None = field(default=None, metadata=LEFT_OUT_BY_DEFAULT)


class Pairs(NamedTuple):
    """Examples of a target and of its contrast with the same prompts in the same order.

    Attributes:
        target: Examples of the target.
        contrast: Examples of the contrast.
        swapped: For each pair, whether its two answers change places.
        left_out: Examples of either whose prompt the other lacks.
    """

    target: BehaviourSet
    contrast: BehaviourSet
    swapped: tuple[bool, ...]
    left_out: int

    def described(self, number: int) -> dict[str, int]:
        """Return what a mask says of the permutation of this number."""
        return {
            "number": number,
            "pairs": len(self.swapped),
            "swapped": sum(self.swapped),
            "left_out": self.left_out,
        }


class Sets:
    """Reads the behaviour sets of a run."""

    def __init__(self, config: RunConfig, run: Path):
        """Read nothing yet.

        Args:
            config: The run's configuration.
            run: Its folder; what each set was is kept in it.
        """
        self._config = config
        self._run = run
        self._read: dict[str, BehaviourSet] = {}
        self._compared: set[str] = set()

    def named(self, name: str, seed: int) -> BehaviourSet:
        """Return a data set of the configuration.

        Raises:
            MismatchError: It was another one when the run began.
        """
        spec = at_seed(self._config.data[name], seed)
        if spec not in self._read:
            self._read[spec] = load_data(spec)
            self._remember(name, seed, self._read[spec])
        return self._read[spec]

    def _remember(self, name: str, seed: int, data: BehaviourSet) -> None:
        """Write down what a data set holds; refuse another one in the same run."""
        path = self._run / "data" / f"{hash_value([name, seed])}.json"
        if not path.exists():
            write_json(path, {"name": name, "seed": seed, "hash": data.hash})
        elif read_json(path)["hash"] != data.hash:
            raise MismatchError(
                f"the data set {name!r} is not the one that this run began with",
                got=f"{data.hash} in {at_seed(self._config.data[name], seed)}",
                allowed=str(read_json(path)["hash"]),
                fix="bring the old data back, or choose a new folder with -o",
            )

    def calibration(self, target: Target, source: Source) -> BehaviourSet:
        """Return the examples that are scored; none of them is asked by a probe."""
        data = self._scorable(target, source)
        limit = target.limit if source.examples is None else source.examples
        return data.limit(limit, _draw_of(source))

    def _scorable(self, target: Target, source: Source) -> BehaviourSet:
        data = self.named(target.data, source.seed).split("calibration")
        for probe in self._config.evaluation.probes:
            check_disjoint(data, self.asked(probe, source.seed))
        return data.category(source.category) if source.category else data

    def rival(self, target: Target) -> Target:
        """Return the contrast of a target whose labels are to be permuted.

        Raises:
            InputError: It has none.
        """
        if target.contrast is None:
            raise InputError(
                "the labels of a target without a contrast cannot be permuted",
                got=f"a target of the set {target.data!r} alone",
                allowed="a target with a contrast, which answers the same prompts in another way",
                fix="name one under contrast of the target",
            )
        return self._config.targets[target.contrast]

    def pairs(self, target: Target, source: Source) -> Pairs:
        """Return the scored examples of a target and of its contrast, paired by prompt.

        Prompts are the same where their normalised texts are (`resect.stats.normalised`). A prompt
        that repeats is paired as often as both sets have it, in their order. The draw is of pairs,
        of as many as the smaller limit allows.

        A random half of the pairs is swapped. Rankings have no scale: with a coin for each pair,
        the majority that chance leaves unswapped would find the true direction again, and nearly
        as well. Such balanced permutations make p-values a little too small where pairs are few
        (Southworth, Kim and Owen 2009); of a mean of 24 pairs, .057 where .05 is said.

        Raises:
            InputError: The target has no contrast, or they share too few prompts.
        """
        rival = self.rival(target)
        ours, theirs = self._scorable(target, source), self._scorable(rival, source)
        matched = _same_prompts(ours, theirs)
        limits = (target.limit, rival.limit) if source.examples is None else (source.examples,)
        count = min([len(matched), *(limit for limit in limits if limit is not None)])
        if count < LEAST_PAIRS:
            raise InputError(
                "the labels cannot be permuted, because target and contrast share too few prompts",
                got=f"{count} in {ours.source} and {theirs.source}",
                allowed=f"at least {LEAST_PAIRS}",
                fix="give the target a contrast that answers its prompts in another way",
            )
        left_out = len(ours) + len(theirs) - 2 * len(matched)
        if left_out and ours.hash + theirs.hash not in self._compared:
            self._compared.add(ours.hash + theirs.hash)
            logger.warning(
                "not permuted, because the other set lacks their prompts: %d examples of %s and %s",
                left_out, ours.source, theirs.source,
            )  # fmt: skip
        drawn = rng(f"pairs/{ours.hash}/{theirs.hash}", _draw_of(source))
        chosen = sorted(drawn.choice(len(matched), size=count, replace=False).tolist())
        swapped = (False,) * count
        if source.permutation:
            order = rng(f"permutation/{source.permutation}", _draw_of(source)).permutation(count)
            swapped = tuple((order < count // 2).tolist())
        return Pairs(
            ours.at([matched[place].ours for place in chosen]),
            theirs.at([matched[place].theirs for place in chosen]),
            swapped,
            left_out,
        )

    def asked(self, probe: str, seed: int) -> BehaviourSet:
        """Return the evaluation examples of a probe; they are the same for every arm."""
        evaluation = self._config.evaluation
        data = self.named(evaluation.probes[probe], seed)
        return data.split("evaluation").limit(evaluation.limit)

    def of_attack(self, role: str, seed: int) -> BehaviourSet:
        """Return what a model attack trains on or cuts with, by the role that the data play.

        Raises:
            InputError: The configuration names no set for this role.
        """
        names = self._config.attack_data
        if role not in names:
            raise InputError(
                f"a model attack needs data for {role!r}",
                got=", ".join(names) or "no attack_data",
                fix=f"name a set for {role} under attack_data",
            )
        return self.named(names[role], seed).split("calibration")


def _draw_of(source: Source) -> int:
    """Return the seed of the draw of calibration examples."""
    return source.seed if source.draw is None else source.draw


class _Match(NamedTuple):
    """Positions of the two examples of a prompt."""

    ours: int
    theirs: int


def _same_prompts(ours: BehaviourSet, theirs: BehaviourSet) -> list[_Match]:
    """Pair the examples of two sets by prompt, in the order of the first."""
    waiting: dict[str, list[int]] = {}
    for position, example in enumerate(theirs.examples):
        waiting.setdefault(normalised(prompt_text(example)), []).append(position)
    matches = []
    for position, example in enumerate(ours.examples):
        if answers := waiting.get(normalised(prompt_text(example))):
            matches.append(_Match(position, answers.pop(0)))
    return matches
