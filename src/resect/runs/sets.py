"""The behaviour sets of a run, each read once and named by its content."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from resect.data.load import (
    BehaviourSet,
    check_disjoint,
    file_of,
    load_data,
    refuse_unknown,
)
from resect.data.pairs import Pairs, pair_up
from resect.data.task import is_task
from resect.errors import InputError, MismatchError
from resect.files.origin import hash_value
from resect.files.reading import read_json, read_text
from resect.files.writing import write_json
from resect.records import LEFT_OUT_BY_DEFAULT
from resect.runs.config import RunConfig
from resect.studies.cells import Cell, at_seed
from resect.studies.design import Target
from resect.studies.partial import measurements_of

# Tasks of a run that a report names with their numbers.
MOST_NAMED = 4
logger = logging.getLogger(__name__)


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


def read_set(spec: str, *, data_dir: Path | None = None) -> BehaviourSet:
    """Load a behaviour set, or the questions of lm-eval tasks.

    Raises:
        InputError: As `load_data`; lm-eval is not installed, or cannot ask the task.
    """
    if not is_task(spec):
        return load_data(spec, data_dir=data_dir)
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "this needs lm_eval, which is not installed",
            got=spec,
            fix="pip install 'resect[lm-eval]'",
        )
    from resect.evaluation.lm_eval_tasks import load_tasks

    return load_tasks(spec)


def refuse_other_rows(contents: Mapping[Path, str]) -> None:
    """Refuse rows that are not those with which the run in their place began.

    Args:
        contents: Path of JSON lines in the run's folder to what is to be written there.

    Raises:
        MismatchError: The file is there and holds other rows.
    """
    for path, text in contents.items():
        if path.is_file() and _rows_in(read_text(path)) != _rows_in(text):
            raise _another(path.stem, "other rows", f"those of {path}")


def _rows_in(text: str) -> list[dict[str, object]]:
    """Return the rows of JSON lines; what has no value is not told from what is absent."""
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [{key: value for key, value in row.items() if value} for row in rows]


def _keys_of(data: BehaviourSet) -> str:
    """Return a hash of what the hash of a set leaves out: who asks a row, and how it is judged."""
    return hash_value([[example.split, example.key] for example in data.examples])


def _another(name: str, got: str, allowed: str) -> MismatchError:
    return MismatchError(
        f"the data set {name!r} is not the one that this run began with",
        got=got,
        allowed=allowed,
        fix="bring the old data back, or choose a new folder with -o",
    )


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
        self._asked: dict[str, BehaviourSet] = {}
        self._compared: set[str] = set()

    def named(self, name: str, seed: int) -> BehaviourSet:
        """Return a data set of the configuration.

        Raises:
            MismatchError: It was another one when the run began.
        """
        spec = at_seed(self._config.data[name], seed)
        if spec not in self._read:
            self._read[spec] = read_set(spec)
            self._remember(name, seed, self._read[spec])
        return self._read[spec]

    def _remember(self, name: str, seed: int, data: BehaviourSet) -> None:
        """Write down what a data set holds; refuse another one in the same run."""
        path = _note(self._run, name, seed)
        of_task = is_task(data.source)
        origin = {"asked": data.origin} if of_task else {"keys": _keys_of(data)}
        if not path.exists():
            write_json(path, {"name": name, "seed": seed, "hash": data.hash} | origin)
            return
        before, spec = read_json(path), str(at_seed(self._config.data[name], seed))
        if before["hash"] != data.hash:
            raise _another(name, f"{data.hash} in {spec}", str(before["hash"]))
        # Runs of earlier versions say nothing of keys.
        if not of_task and before.get("keys", origin["keys"]) != origin["keys"]:
            raise _another(name, f"other keys or splits in {spec}", "those of the first time")

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

        The draw is of pairs, of as many as the smaller limit allows.

        Raises:
            InputError: The target has no contrast, or they share too few prompts.
        """
        rival = self.rival(target)
        ours, theirs = self._scorable(target, source), self._scorable(rival, source)
        limits = (target.limit, rival.limit) if source.examples is None else (source.examples,)
        pairs = pair_up(
            ours,
            theirs,
            min((limit for limit in limits if limit is not None), default=None),
            seed=_draw_of(source),
            permutation=source.permutation or 0,
        )
        if pairs.left_out and ours.hash + theirs.hash not in self._compared:
            self._compared.add(ours.hash + theirs.hash)
            logger.warning(
                "not permuted, because the other set lacks their prompts: %d examples of %s and %s",
                pairs.left_out, ours.source, theirs.source,
            )  # fmt: skip
        return pairs

    def asked(self, probe: str, seed: int) -> BehaviourSet:
        """Return the evaluation examples of a probe; they are the same for every arm."""
        evaluation = self._config.evaluation
        name = evaluation.probes[probe]
        spec = at_seed(self._config.data[name], seed)
        if spec not in self._asked:
            data = self.named(name, seed)
            self._asked[spec] = data.split("evaluation").limit(evaluation.limit)
        return self._asked[spec]

    def questions(self, cell: Cell) -> dict[str, BehaviourSet]:
        """Return what the probes of a cell ask: all of their sets, or the half that it names.

        Raises:
            InputError: It names a half, and the intact model was not asked yet.
        """
        sets = {name: self.asked(name, cell.seed) for name in cell.probes}
        if not cell.half:
            return sets
        intact = replace(cell, cut=None, probes=(), half="")
        measured = measurements_of(self._config, self._run)
        halves = {
            name: {row.example: row.half for row in measured.asked(intact, name)} for name in sets
        }
        return {
            name: data.at(
                [
                    position
                    for position, example in enumerate(data.examples)
                    if halves[name][example.id] == cell.half
                ]
            )
            for name, data in sets.items()
        }

    def of_attack(self, role: str, seed: int) -> BehaviourSet:
        """Return what an attack trains on, cuts with or shows, by the role that the data play.

        Raises:
            InputError: The configuration names no set for this role.
        """
        names = self._config.attack_data
        if role not in names:
            raise InputError(
                f"an attack needs data for {role!r}",
                got=", ".join(names) or "no attack_data",
                fix=f"name a set for {role} under attack_data",
            )
        return self.named(names[role], seed).split("calibration")


def _draw_of(source: Source) -> int:
    """Return the seed of the draw of calibration examples."""
    return source.seed if source.draw is None else source.draw


def refuse_other_data(config: RunConfig, run: Path) -> None:
    """Refuse to go on with a run, or to report it, where its data files hold other rows.

    Args:
        config: The run's configuration.
        run: Its folder.

    Raises:
        MismatchError: One does.
    """
    sets = Sets(config, run)
    for name, spec in config.data.items():
        for seed in config.seeds:
            # What is fetched is read where it is needed.
            if _note(run, name, seed).exists() and file_of(at_seed(spec, seed)) is not None:
                sets.named(name, seed)


def refuse_no_data(config: RunConfig) -> None:
    """Refuse to begin a run whose data sets are not there: its folder would be taken for nothing.

    Raises:
        InputError: One names no file here, no preset, no set of the Hub and no task.
    """
    for spec in config.data.values():
        for seed in config.seeds:
            refuse_unknown(at_seed(spec, seed))


def _note(run: Path, name: str, seed: int) -> Path:
    """Return the file that says what a data set was when the run began."""
    return run / "data" / f"{hash_value([name, seed])}.json"


def tasks_of(run: Path) -> dict[str, str]:
    """Return what `results.json` says of the lm-eval tasks of a run; nothing if it asked none."""
    notes = [read_json(path) for path in sorted((run / "data").glob("*.json"))]
    origin = next((note["asked"] for note in notes if "asked" in note), None)
    if origin is None:
        return {}
    lines = [
        f"{name} ({task['metric']}; {task['questions']:,} of {task['of']:,} questions, each after "
        f"{task['few_shot']} solved ones)"
        for name, task in origin["tasks"].items()
    ]
    if len(lines) > MOST_NAMED:
        lines[MOST_NAMED:] = [f"and {len(lines) - MOST_NAMED} more tasks"]
    # Names of groups say more than those of their tasks.
    groups = [name for name in origin["named"] if name not in origin["tasks"]]
    group = f", {', '.join(groups)}" if groups else ""
    return {"utility_tasks": f"lm-eval {origin['lm_eval']}{group}: {', '.join(lines)}"}
