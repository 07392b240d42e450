"""Numbers of cells: each line whole and once, in the file and in the tracker."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking as known

from resect.cli.show import measuring
from resect.errors import InputError
from resect.files.writing import append_line
from resect.runs.metrics import FILE, Follower, cells_cut_off, note_cell, rates_of, tracking
from resect.studies.cells import Cell, Cut


def _row(probe: str, score: float | None = None, nll: float | None = None) -> dict[str, Any]:
    return {"probe": probe, "score": score, "nll": nll}


ROWS = [_row("generation", 1), _row("generation", 0), _row("generation"), _row("likelihood", nll=0)]


def test_rates_leave_out_what_was_not_scored() -> None:
    assert rates_of(ROWS) == {"harm": 0.5, "likelihood": 1.0}
    assert rates_of([_row("generation")]) == {"harm": None}


def test_refusal_phrases_say_nothing_of_harm() -> None:
    for judge in ("keyword", "keyword:own+mine.txt@12345678"):
        rows = [_row("generation", 1.0) | {"judge": judge}]
        assert rates_of(rows) == {"not refused": 1.0}


def test_variants_whose_replies_were_cut_off_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finishes: list[list[str | None]] = [["length", "stop"], ["stop", "stop"], [None, None]]
    for number, ends in enumerate(finishes):
        rows = [_row("generation", 1.0) | {"finish": end} for end in ends]
        note_cell(tmp_path, Cell("aligned", number, None, ("generation",)), rows)
    # A cell that was measured again counts once.
    note_cell(tmp_path, Cell("aligned", 1, None, ("generation",)), [])
    assert cells_cut_off(tmp_path, 0.2) == (1, 3)
    with measuring(tmp_path)():
        pass
    assert "in 1 of 3 variants the limit on tokens cut more than 20 %" in capsys.readouterr().err


def test_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / FILE

    def write(writer: int) -> None:
        for at in range(50):
            append_line(path, {"writer": writer, "at": at, "text": "ä" * 500})

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted((line["writer"], line["at"]) for line in lines) == [
        (writer, at) for writer in range(4) for at in range(50)
    ]


def test_an_unfinished_line_waits(tmp_path: Path) -> None:
    path = tmp_path / FILE
    follower = Follower(path)
    assert follower.read() == []
    path.write_bytes(b'{"at": 0}\n{"at"')
    assert follower.read() == [{"at": 0}]
    with path.open("ab") as file:
        file.write(b": 1}\n")
    assert (follower.read(), follower.read(), follower.count) == ([{"at": 1}], [], 2)


class _Recorder(known.GeneralTracker):  # type: ignore[misc]
    name = "recorder"
    requires_logging_directory = False
    said: ClassVar[list[tuple[str, Any, int | None]]] = []

    def __init__(self, run_name: str):
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.said.append(("facts", values, None))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.said.append(("log", values, step))

    def finish(self) -> None:
        self.said.append(("finish", None, None))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[_Recorder]:
    monkeypatch.setitem(known.LOGGER_TYPE_TO_CLASS, "recorder", _Recorder)
    _Recorder.said = []
    return _Recorder


def test_a_tracker_gets_each_cell_once(recorder: type[_Recorder], tmp_path: Path) -> None:
    old = Cell("aligned", 0, None, ("generation",))
    new = Cell("aligned", 0, Cut("generation", "target", 0.01), ("generation",))
    note_cell(tmp_path, old, ROWS)
    with tracking("recorder", tmp_path, {"name": "tiny"}) as send:
        note_cell(tmp_path, new, ROWS)
        send(2, 2)
        send(2, 2)
    cells = [values for kind, values, _ in recorder.said if kind == "log" and "cell" in values]
    assert [values["cell"] for values in cells] == [new.key]
    assert (cells[0]["harm"], cells[0]["q"], cells[0]["cut"]) == (0.5, 0.01, "target")
    assert recorder.said[0] == ("facts", {"name": "tiny"}, None)
    assert recorder.said[-1] == ("finish", None, None)


def test_a_tracker_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown tracker"), tracking("nosuch", tmp_path, {}):
        pass
    pytest.importorskip("accelerate")
    try:
        import mlflow  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="not installed"), tracking("mlflow", tmp_path, {}):
            pass


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import (  # type: ignore[import-not-found,unused-ignore]
        event_accumulator,
    )

    cells = [Cell("aligned", 0, Cut("generation", "target", q), ("generation",)) for q in (0.1, 1)]
    with tracking("tensorboard", tmp_path, {"name": "tiny", "target": "generation"}) as send:
        for at, cell in enumerate(cells, start=1):
            note_cell(tmp_path, cell, ROWS)
            send(at, 2)
    files = list((tmp_path / "tracking").rglob("events.*"))
    found: dict[str, list[float]] = {}
    for file in files:
        events = event_accumulator.EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend(one.value for one in events.Scalars(tag))
    assert found["harm"] == [0.5, 0.5]
    assert found["q"] == pytest.approx([0.1, 1])
    assert found["done"] == [0.5, 1]
