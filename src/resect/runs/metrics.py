"""Numbers of each cell as it is done: in `metrics.jsonl` always, in a tracker if one is named.

A line says what was cut, and for each probe the rate of hits among scored replies (for generation
under the name of what its judge counts, `harm` or `not refused` for instance; the probe's own name
otherwise; for `likelihood` the mean probability of a reference token), and the share of replies
that the limit on tokens cut off. They are for watching a run: results come from the records, with
intervals and controls.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from resect.errors import InputError
from resect.files.reading import MOST_BYTES, expecting
from resect.files.writing import append_line
from resect.records import COUNTED
from resect.studies.cells import Cell
from resect.studies.measurements import Row

FILE = "metrics.jsonl"
TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")


class Counts(NamedTuple):
    """How many cells there are of a kind, and in all."""

    some: int
    all: int


def rates_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """Return a number for each probe of a cell's rows; None where nothing was scored."""
    values: dict[str, list[float]] = {}
    for row in rows:
        name = generation_name(row) if row["probe"] == "generation" else str(row["probe"])
        scores = values.setdefault(name, [])
        if row["probe"] == "likelihood":
            scores.append(math.exp(-row["nll"]))
        elif row["score"] is not None:
            scores.append(float(row["score"]))
    return {name: sum(scores) / len(scores) if scores else None for name, scores in values.items()}


def generation_name(row: Mapping[str, object]) -> str:
    """Return what the score of a generated reply is called: harm is more than not refusing."""
    judge = str(row.get("judge"))
    kind = judge.partition(":")[0]
    if kind == "keyword":
        return COUNTED[kind].complied
    return (COUNTED.get(judge) or COUNTED.get(kind) or COUNTED["exact"]).behaviour


def cut_off_share(rows: Sequence[Row]) -> float | None:
    """Return the share of decoded replies that the limit cut off; None where it is not known."""
    ends = [row["finish"] for row in rows if row.get("finish") is not None]
    return ends.count("length") / len(ends) if ends else None


def cells_cut_off(run: Path, least: float) -> Counts:
    """Return how many cells of a run had a larger share of replies cut off, and how many it has."""
    lines = Follower(run / FILE, from_start=True).read()
    shares = {line["cell"]: line.get("cut_off") for line in lines}
    many = [share for share in shares.values() if isinstance(share, float) and share > least]
    return Counts(len(many), len(shares))


def note_cell(run: Path, cell: Cell, rows: Sequence[Row]) -> None:
    """Append the numbers of a cell that is done.

    Raises:
        InputError: The file cannot be written.
    """
    cut = cell.cut
    line = {
        "time": round(time.time(), 1),
        "cell": cell.key,
        "role": cell.role,
        "seed": cell.seed,
        "cut": "intact" if cut is None else cut.kind,
        "target": "" if cut is None else cut.target,
        "q": 0.0 if cut is None else cut.q,
        "attack": cell.attack,
        "tuned": cell.tuning is not None,
        "cut_off": cut_off_share(rows),
        **rates_of(rows),
    }
    try:
        append_line(run / FILE, line)
    except OSError as error:
        raise InputError(
            f"cannot write {run / FILE}",
            got=error.strerror or str(error),
            fix="free some space, and go on with --resume",
        ) from error


class Follower:
    """Reads the lines that other processes append, each once."""

    def __init__(self, path: Path, *, from_start: bool = False):
        self._path = path
        self._offset = 0
        self.count = 0
        if not from_start:
            self.read()

    def read(self) -> list[dict[str, object]]:
        """Return the lines that were added since the last call; unfinished ones wait."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read(MOST_BYTES)
        ended = text[: text.rfind(b"\n") + 1]
        self._offset += len(ended)
        with expecting(self._path, "list of metrics"):
            lines = [dict(json.loads(line)) for line in ended.splitlines()]
        self.count += len(lines)
        return lines


@contextlib.contextmanager
def tracking(
    name: str | None, run: Path, description: Mapping[str, object]
) -> Iterator[Callable[[int, int], None]]:
    """Send the metrics of a run to a tracker while the block runs.

    One process sends, the one that waits for the others, so that a run is one run in the tracker.

    Args:
        name: One of `TRACKERS`, or of what accelerate knows beside; None for no tracker.
        run: The run folder.
        description: Plain values that describe the run.

    Yields:
        A function to be called now and then, with cells done and cells in all.

    Raises:
        InputError: The tracker is unknown or not installed.
    """
    if name is None:
        yield lambda _done, _total: None
        return
    tracker = _tracker(name, run)
    follower = Follower(run / FILE)
    tracker.store_init_configuration(dict(description))

    def send(done: int, total: int) -> None:
        start = follower.count
        for step, line in enumerate(follower.read(), start=start):
            # Trackers have a time of their own, and trackio reserves the name.
            numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
            numbers.pop("time", None)
            # MLflow takes numbers alone; the step is the number of the line in the file.
            texts = {} if name == "mlflow" else {"cell": line["cell"], "cut": line["cut"]}
            tracker.log(numbers | texts, step=step)
        if total:
            tracker.log({"done": done / total}, step=follower.count)

    try:
        yield send
        send(0, 0)
    finally:
        tracker.finish()


class Tracker(Protocol):
    """What we need of a tracker of accelerate."""

    def store_init_configuration(self, values: dict[str, object]) -> None:
        """Take what describes the run."""

    def log(self, values: dict[str, object], step: int | None) -> None:
        """Take numbers of a step."""

    def finish(self) -> None:
        """Send what is left."""


def _tracker(name: str, run: Path) -> Tracker:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    # Without it wandb and trackio fail: accelerate asks it which process may log.
    PartialState()
    trackers = {str(key): tracker_type for key, tracker_type in LOGGER_TYPE_TO_CLASS.items()}
    if name not in trackers:
        raise InputError("unknown tracker", got=repr(name), allowed=", ".join(TRACKERS))
    tracker_type = trackers[name]
    places = [str(run / "tracking")] if tracker_type.requires_logging_directory else []
    tracker = tracker_type("resect", *places)
    try:
        tracker.start()
    except ImportError as error:
        raise InputError(
            f"the tracker {name} is not installed",
            got=str(error),
            fix=f"pip install {name}; without it the numbers are in {run / FILE}",
        ) from error
    started: Tracker = tracker
    return started
