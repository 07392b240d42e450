"""The models of a run: each plays a role, and one at a time is in memory.

A run keeps what each model was: its fingerprints, and the sizes and times of its files. By these it
is told without loading whether a model is the one that the run began with, which holds for what was
measured already as well: a finished run is not reported under the name of another model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from resect.edit.checkpoint import forced_of
from resect.errors import CoverageError, InputError, MismatchError
from resect.evaluation.divergence import Intact
from resect.files.origin import same_print
from resect.files.reading import expecting, read_json
from resect.files.writing import write_json
from resect.model import (
    LoadedModel,
    find_prunable,
    load_model,
    model_fingerprint,
    tokenizer_fingerprint,
)
from resect.model.on_disk import PrintsOnDisk, prints_on_disk
from resect.model.stamps import Stamp, stamps_of
from resect.runs.config import RunConfig
from resect.studies.cells import at_seed

# What a file below `models` is.
CONTENT = "record of a model"
_log = logging.getLogger(__name__)


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
        stamps: Sizes and times of its files.
        intact: What it says of references, for all its variants.
    """

    role: str
    seed: int
    place: str
    loaded: LoadedModel
    prints: Prints
    stamps: dict[str, Stamp]
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
            # Before it is read, so that what is written meanwhile is seen afterwards.
            stamps = _stamps(place)
            loaded = load_model(place)
            prints = Prints(
                model_fingerprint(loaded.model),
                tokenizer_fingerprint(loaded.tokenizer),
                find_prunable(loaded.model).total,
            )
            subject = Subject(role, seed, place, loaded, prints, stamps or _stamps(place))
        self._remember(subject)
        self._current = subject
        return subject

    def _remember(self, subject: Subject) -> None:
        """Write down which model played a role; refuse another one in the same run."""
        path = _record(self._run, subject.role, subject.seed)
        if path.exists():
            _compare(path, subject.place, subject.prints, subject.stamps)
            return
        names = {"role": subject.role, "seed": subject.seed, "place": subject.place}
        origin = {"forced": forced_of(subject.place), "stamps": subject.stamps}
        write_json(path, names | asdict(subject.prints) | origin)


def refuse_replaced(config: RunConfig, run: Path) -> None:
    """Refuse to go on with a run, or to report it, where other models are in the place of its own.

    Nothing is loaded. Files with the sizes and times that they had are not read; others are, once,
    a block at a time. What cannot be looked at is logged.

    Args:
        config: The run's configuration.
        run: Its folder.

    Raises:
        MismatchError: A model or its tokenizer is another one.
    """
    seen: dict[str, PrintsOnDisk] = {}
    for role, model in config.models.items():
        for seed in config.seeds:
            path, checkpoint = _record(run, role, seed), at_seed(model, seed)
            if not path.exists():
                continue
            with expecting(path, CONTENT):
                before = read_json(path).get("stamps")
            try:
                stamps = stamps_of(checkpoint)
                if before == stamps:
                    continue
                if checkpoint not in seen:
                    seen[checkpoint] = prints_on_disk(checkpoint)
            except (InputError, CoverageError) as error:
                _log.warning(
                    "the model %r of this run could not be looked at, and is not compared with the "
                    "one that the run began with: %s",
                    role,
                    ", ".join(filter(None, (error.what, error.got))),
                )
                continue
            _compare(path, checkpoint, seen[checkpoint], stamps)


def _stamps(checkpoint: str) -> dict[str, Stamp]:
    """Return the stamps of a model's files; none before it was fetched."""
    try:
        return stamps_of(checkpoint)
    except InputError:
        return {}


def _record(run: Path, role: str, seed: int) -> Path:
    """Return the file that says what a model was when the run began."""
    return run / "models" / f"{role}-{seed}.json"


def _compare(
    path: Path, checkpoint: str, prints: Prints | PrintsOnDisk, stamps: Mapping[str, Stamp]
) -> None:
    """Refuse a model that is not the one of a record; else keep the stamps that its files have now.

    Raises:
        MismatchError: It is another one, or its tokenizer is.
    """
    with expecting(path, CONTENT):
        before = read_json(path)
        recorded = {name: str(before[name]) for name in ("role", "fingerprint", "tokenizer")}
    for noun, name, now in (
        ("model", "fingerprint", prints.fingerprint),
        ("tokenizer of the model", "tokenizer", prints.tokenizer),
    ):
        if not same_print(recorded[name], now):
            raise MismatchError(
                f"the {noun} {recorded['role']!r} is not the one that this run began with",
                got=f"{now} in {checkpoint}",
                allowed=recorded[name],
                fix="put that one back, or choose a new folder with -o; resect report shows what "
                "was measured",
            )
    if before.get("stamps") != stamps:
        write_json(path, before | {"stamps": stamps})
