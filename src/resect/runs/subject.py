"""The models of a run: each plays a role, and one at a time is in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from resect.edit.checkpoint import forced_of
from resect.errors import MismatchError
from resect.evaluation.divergence import Intact
from resect.files.origin import same_print
from resect.files.reading import read_json
from resect.files.writing import write_json
from resect.model import (
    LoadedModel,
    find_prunable,
    load_model,
    model_fingerprint,
    tokenizer_fingerprint,
)
from resect.runs.config import RunConfig
from resect.studies.cells import at_seed


@dataclass(frozen=True)
class Prints:
    """What tells a model from others, and its number of prunable weights."""

    fingerprint: str
    tokenizer: str
    prunable: int


@dataclass(frozen=True)
class Subject:
    """A model in memory and the role that it plays in a run.

    Attributes:
        role: Its role.
        seed: Seed of the run that it belongs to.
        place: Folder or Hub id.
        loaded: The model and its tokenizer.
        prints: What tells it from others.
        intact: What it says of references, for all its variants.
    """

    role: str
    seed: int
    place: str
    loaded: LoadedModel
    prints: Prints
    intact: Intact = field(default_factory=Intact)


class Subjects:
    """Loads the models of a run and lets each go before the next one."""

    def __init__(self, config: RunConfig, run: Path):
        """Load nothing yet.

        Args:
            config: The run's configuration.
            run: Its folder; what each model was is kept in it.
        """
        self._config = config
        self._run = run
        self._current: Subject | None = None

    def load(self, role: str, seed: int) -> Subject:
        """Return the model of a role.

        Raises:
            MismatchError: Another model played this role when the run began.
        """
        place = at_seed(self._config.models[role], seed)
        current = self._current
        if current is not None and current.place == place:
            if (current.role, current.seed) == (role, seed):
                return current
            # One checkpoint in another role.
            subject = replace(current, role=role, seed=seed)
        else:
            # The old model goes first, otherwise two would be in memory at once.
            self._current = current = None
            loaded = load_model(place)
            prints = Prints(
                model_fingerprint(loaded.model),
                tokenizer_fingerprint(loaded.tokenizer),
                find_prunable(loaded.model).total,
            )
            subject = Subject(role, seed, place, loaded, prints)
        self._remember(subject)
        self._current = subject
        return subject

    def _remember(self, subject: Subject) -> None:
        """Write down which model played a role; refuse another one in the same run."""
        path = self._run / "models" / f"{subject.role}-{subject.seed}.json"
        names = {"role": subject.role, "seed": subject.seed, "place": subject.place}
        prints = asdict(subject.prints)
        if not path.exists():
            write_json(path, names | prints | {"forced": forced_of(subject.place)})
            return
        before = read_json(path)
        for noun, name in (("model", "fingerprint"), ("tokenizer of the model", "tokenizer")):
            if not same_print(before[name], prints[name]):
                raise MismatchError(
                    f"the {noun} {subject.role!r} is not the one that this run began with",
                    got=f"{prints[name]} in {subject.place}",
                    allowed=before[name],
                    fix="choose a new folder with -o",
                )
