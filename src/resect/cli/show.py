"""How commands show things: progress on stderr, tables on stdout; for people or for machines.

For machines (`resect --json …`) a line is one JSON object with a `type`: `table` (title, rows)
and `line` (text) on stdout, `progress` (label, done, total, seconds, left), `note` (text) and
`error` on stderr. Numbers are not rounded, and what is not there is null.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from resect.errors import InputError, visible
from resect.records import Interval
from resect.report.words import cell

# Where nobody watches, wide tables must not be folded to 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)
# A log of a long run holds an event a second at most, and the last one.
SECONDS_BETWEEN_EVENTS = 1.0
# Nor does a log for people fill with lines.
SECONDS_BETWEEN_LINES = 30.0
SoFar = Callable[[], Mapping[str, object]]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Mode:
    """How the command that runs shows things.

    Attributes:
        quiet: No progress and no notes; results and errors alone.
        machine: One JSON object a line.
    """

    quiet: bool = False
    machine: bool = False


_mode = [Mode()]


def set_mode(mode: Mode) -> None:
    """Choose how everything is shown from here on."""
    _mode[0] = mode


def mode() -> Mode:
    """Return how things are shown."""
    return _mode[0]


def choose_quiet(value: bool) -> bool:
    """Take the option `--quiet`; as a callback, so that errors of usage know it too."""
    if value:
        set_mode(replace(mode(), quiet=True))
    return value


def choose_machine(value: bool) -> bool:
    """Take the option `--json`."""
    if value:
        set_mode(replace(mode(), machine=True))
    return value


@contextlib.contextmanager
def progress(
    label: str, *, shown: bool = True, so_far: SoFar | None = None
) -> Iterator[OnProgress]:
    """Show a bar, or events, on stderr while the block runs.

    Args:
        label: What is done.
        shown: Whether anything is shown; of several processes one alone may.
        so_far: What is known by now, shown beside the bar; asked at most once a second.

    Yields:
        A function that takes done and total.
    """
    if not shown or mode().quiet:
        yield _nothing
    elif mode().machine:
        yield _events(label, so_far)
    elif not sys.stderr.isatty():
        yield _lines(label, so_far)
    else:
        with _bar(label, so_far) as update:
            yield update


def _nothing(_done: int, _total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class _Moment:
    """How far something is.

    Attributes:
        done: What is done, of `total`.
        total: All.
        seconds: Since the beginning.
        left: Seconds to the end at the speed since the last moment at which nothing was gained yet:
            what comes before the first of many (locating, before cells are asked) is no part of the
            rest. None if nothing was gained.
    """

    done: int
    total: int
    seconds: float
    left: float | None


def _now_and_then(
    pause: float, show: Callable[[_Moment], None], *, first: float = -math.inf
) -> OnProgress:
    """Return an update that shows at most one moment in `pause` seconds, and the last one.

    Args:
        pause: Seconds.
        show: Shows a moment.
        first: When something counts as shown last, by `time.perf_counter`; to begin in silence.
    """
    start = time.perf_counter()
    counts: list[int] = []
    began = [start]
    last = [first]

    def update(done: int, total: int) -> None:
        now = time.perf_counter()
        # What was done before the first call says nothing about the speed.
        if not counts:
            counts.append(done)
        if done == counts[0]:
            began[0] = now
        if now - last[0] < pause and done < total:
            return
        last[0] = now
        gained = done - counts[0]
        remaining = (now - began[0]) / gained * (total - done) if gained else None
        show(_Moment(done, total, now - start, remaining))

    return update


def _events(label: str, so_far: SoFar | None) -> OnProgress:
    def show(moment: _Moment) -> None:
        event = {"label": label, "done": moment.done, "total": moment.total}
        event |= {"seconds": round(moment.seconds, 1)}
        remaining = None if moment.left is None else round(moment.left, 1)
        _emit(err, "progress", **event, left=remaining, **({} if so_far is None else so_far()))

    return _now_and_then(SECONDS_BETWEEN_EVENTS, show)


def _lines(label: str, so_far: SoFar | None) -> OnProgress:
    """Write a plain line every so often, where a bar would not be seen; short work writes none."""

    def show(moment: _Moment) -> None:
        if moment.seconds < SECONDS_BETWEEN_LINES:
            return
        line = f"{label}: {moment.done} of {moment.total} in {_minutes(moment.seconds)}"
        if moment.left:
            line += f", about {_minutes(moment.left)} left"
        note(" ".join(filter(None, (line, _scores(so_far)))))

    return _now_and_then(SECONDS_BETWEEN_LINES, show, first=time.perf_counter())


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _scores(so_far: SoFar | None) -> str:
    """Return what is known by now, in brackets; "" if nothing is."""
    values = {} if so_far is None else so_far()
    shown = ", ".join(f"{name} {cell(value, thousands=True)}" for name, value in values.items())
    return f"({shown})" if shown else ""


@contextlib.contextmanager
def _bar(label: str, so_far: SoFar | None) -> Iterator[OnProgress]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    last = [-math.inf]
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            now = time.perf_counter()
            if so_far is not None and now - last[0] >= SECONDS_BETWEEN_EVENTS:
                last[0] = now
                bar.update(task, description=f"{label} {_scores(so_far)}".rstrip())

        yield update


def say(text: str) -> None:
    """Print one plain line on stdout; nothing in it is read as markup."""
    if mode().machine:
        _emit(out, "line", text=text)
    else:
        out.print(Text(visible(text)), soft_wrap=True)


def note(text: str) -> None:
    """Print one plain line on stderr, unless only results are wanted."""
    if mode().quiet:
        return
    if mode().machine:
        _emit(err, "note", text=text)
    else:
        err.print(Text(visible(text)), soft_wrap=True)


class _Notes(logging.Handler):
    """Shows what a module logs as notes, each once."""

    def __init__(self) -> None:
        """Begin with nothing shown."""
        super().__init__()
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        text = record.getMessage()
        if text not in self._shown:
            self._shown.add(text)
            note(text)


def note_readings() -> None:
    """Show from here on what was found in the files of data that a command reads."""
    logger = logging.getLogger("resect.data.load")
    for handler in [old for old in logger.handlers if isinstance(old, _Notes)]:
        logger.removeHandler(handler)
    logger.addHandler(_Notes())
    logger.setLevel(logging.INFO)


def pin_organism() -> None:
    """Have a command on the organism give the same bits everywhere, or note why it cannot.

    To be called before anything that loads torch.
    """
    from resect.machine.portable import pin

    portable = pin()
    if not portable.holds:
        note(f"results may differ in their bits from those of other machines: {portable.reason}")


def say_mask(output: object, count: int, fraction: float, fix: str) -> None:
    """Print how much a mask removes; if it is nothing, say so and what to try (`fix`)."""
    say(f"{output}: {count:,} weights, {100 * fraction:.4g} % of the prunable ones")
    if not count:
        note(f"the mask is empty: a cut with it changes nothing; {fix}")


def table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table; numbers are rounded for reading, columns without values left out."""
    if mode().machine:
        _emit(out, "table", title=title, rows=[dict(row) for row in rows])
        return
    if not rows:
        return
    from rich.table import Table

    columns = [name for name in rows[0] if any(row.get(name) is not None for row in rows)]
    shown = Table(title=Text(visible(title)), title_justify="left", header_style="bold")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float) for row in rows)
        shown.add_column(
            Text(visible(column)), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        shown.add_row(*(Text(cell(row.get(column), thousands=True)) for column in columns))
    out.print(shown)


def failed(what: str, *, got: str = "", allowed: str = "", fix: str = "", code: int = 2) -> None:
    """Write the error that ends a command as an event; for machines alone."""
    _emit(err, "error", what=what, got=got, allowed=allowed, fix=fix, exit=code)


def _emit(console: Console, event: str, **fields: object) -> None:
    """Write one JSON object as one line; escapes keep whatever a file holds inside of it."""
    line = json.dumps(_finite({"type": event, **fields}), allow_nan=False, default=str)
    console.file.write(line + "\n")
    console.file.flush()


def _finite(value: object) -> object:
    """Return a value in which what is not a finite number is None, as JSON wants it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


# Probes whose newest rates are shown while a run goes on.
SHOWN = ("generation", "utility")


def so_far(run: Path) -> SoFar:
    """Return a function that reads the newest record of a run; cheap, one small file a call."""
    return lambda: last_variant(run)


def last_variant(run: Path) -> dict[str, object]:
    """Return the cut of the variant that was judged last, and its mean scores by name.

    Unscored replies are left out; a probe without any score is not named. A record that is
    replaced while it is read counts as not there.
    """
    from resect.files.tables import read_parquet
    from resect.runs.metrics import generation_name
    from resect.studies.cells import judged_records

    with contextlib.suppress(InputError, OSError):
        records = judged_records(run)
        newest = max(records, key=lambda path: path.stat().st_mtime_ns, default=None)
        rows = [] if newest is None else read_parquet(newest)
        means: dict[str, object] = {}
        for probe in SHOWN:
            scored = [
                row
                for row in rows
                if row["probe"] == probe and row["judge"] is not None and row["score"] is not None
            ]
            if scored:
                name = generation_name(scored[0]) if probe == "generation" else probe
                means[name] = sum(row["score"] for row in scored) / len(scored)
        if means:
            return {"cut": rows[0]["cut_kind"], "q": rows[0]["q"]} | means
    return {}


def measuring(run: Path) -> Callable[[], contextlib.AbstractContextManager[OnProgress]]:
    """Return what shows the progress of a run while its cells are measured.

    At the end it warns of variants whose replies the limit on tokens cut off.
    """

    @contextlib.contextmanager
    def shown() -> Iterator[OnProgress]:
        with progress("measuring model variants", so_far=so_far(run)) as update:
            yield update
        _warn_of_cut_off(run)

    return shown


def _warn_of_cut_off(run: Path) -> None:
    from resect.evaluation.spoken import MANY_CUT_OFF
    from resect.runs.metrics import cells_cut_off

    counts = cells_cut_off(run, MANY_CUT_OFF)
    if counts.some:
        note(
            f"in {counts.some} of {counts.all} variants the limit on tokens cut more than "
            f"{100 * MANY_CUT_OFF:.0f} % of the replies off: what they would have said later, a "
            "refusal for instance, is not judged; raise evaluation.max_new_tokens"
        )


def show_verdicts(run: Path, start: float) -> None:
    """Show the verdicts of a finished run and the path of its report."""
    from resect.files.reading import read_json
    from resect.report.measured import measured_by

    results = read_json(run / "results.json")
    measured = measured_by(run, results["provenance"])
    table(
        "verdicts",
        [
            {"study": claim["study"], "claim": claim["claim"], "verdict": claim["verdict"]}
            | {"effect": _interval(Interval(**claim["effect"]))}
            | {"judge": measured.of_study(claim["study"]).name}
            for claim in results["claims"]
        ],
    )
    if measured.line:
        note(measured.line)
    note(f"done in {time.perf_counter() - start:.0f} s")
    say(str(run / "report.html"))


def _interval(effect: Interval) -> str:
    value, low, high = effect.value, effect.low, effect.high
    if value is None:
        return "–"
    word = "range " if effect.bounds == "range" else ""
    for unit in ("×", "nats"):
        if effect.name.endswith(f"({unit})"):
            bounds = "" if low is None or high is None else f" [{word}{low:.2f}, {high:.2f}]"
            return f"{value:.2f} {unit}{bounds}"
    bounds = "" if low is None or high is None else f" [{word}{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} %{bounds}"
