"""The behaviour sets of a run, each read once and named by its content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resect.data.load import BehaviourSet, check_disjoint, load_data
from resect.errors import InputError, MismatchError
from resect.files.origin import hash_value
from resect.files.reading import read_json
from resect.files.writing import write_json
from resect.runs.config import RunConfig
from resect.studies.cells import at_seed
from resect.studies.design import Target


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
        data = self.named(target.data, source.seed).split("calibration")
        for probe in self._config.evaluation.probes:
            check_disjoint(data, self.asked(probe, source.seed))
        if source.category:
            data = data.category(source.category)
        limit = target.limit if source.examples is None else source.examples
        return data.limit(limit, source.seed if source.draw is None else source.draw)

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
