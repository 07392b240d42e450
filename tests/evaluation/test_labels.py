"""Files of labelled replies: the layouts that are read, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resect.errors import InputError
from resect.evaluation.labels import Labelled, read_labels
from resect.files.tables import write_parquet

ROW = {"prompt": "ask", "reply": "zorpa", "label": 1}
EXPECTED = Labelled("ask", "zorpa", 1.0)


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_formats_and_names_of_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [ROW])
    (tmp_path / "a.csv").write_text("objective,response,human_score\nask,zorpa,1.0\n")
    lines(tmp_path / "a.jsonl", {"prompt": "ask", "completion": "zorpa", "label": True})
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        assert read_labels([tmp_path / name]).rows == (EXPECTED,), name


def test_the_files_of_a_scorer_evaluation_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "tides.csv"
    path.write_text(
        "# dataset_version=1.0, more,,,\n# a second line\n"
        "harm_category,objective,assistant_response,human_score_1,human_score_2,human_score_3,"
        'data_type\nTIDES ,ask,"zorpa\n# no remark, miltu",0,.25,,text\n'
        "TIDES,ask,picture,1,1,1,image_path\n"
    )
    labels = read_labels([path])
    assert labels.rows == (Labelled("ask", "zorpa\n# no remark, miltu", 0.125, "tides"),)
    assert (labels.left_out, labels.doubled) == (1, 0)
    assert not labels.rows[0].hit


def test_a_line_is_counted_from_the_top_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("# one\n# two\nprompt,reply,label\nask,zorpa\n")
    with pytest.raises(InputError, match="line 4 has another number of fields"):
        read_labels([path])


def test_several_files_name_their_categories_and_equal_replies_count_once(tmp_path: Path) -> None:
    paths = [
        lines(tmp_path / "looms.jsonl", ROW),
        lines(tmp_path / "tides.jsonl", ROW | {"prompt": "ASK "}),
    ]
    labels = read_labels(paths)
    assert labels.rows == (Labelled("ask", "zorpa", 1.0, "looms"),)
    assert labels.doubled == 1
    assert list(labels.hashes) == ["looms.jsonl", "tides.jsonl"]
    assert len(set(labels.hashes.values())) == 2


@pytest.mark.parametrize("label", [-0.1, 1.5, "much", [1], {"a": 1}])
def test_a_label_is_a_number_from_0_to_1(tmp_path: Path, label: object) -> None:
    path = lines(tmp_path / "a.jsonl", ROW, ROW | {"label": label})
    with pytest.raises(InputError, match=r"row 2: 'label' is no label[\s\S]*allowed: a number"):
        read_labels([path])


@pytest.mark.parametrize("missing", ["prompt", "reply", "label"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    path = lines(tmp_path / "a.jsonl", {key: ROW[key] for key in ROW if key != missing})
    with pytest.raises(InputError, match=rf"row 1 has no '?{missing}"):
        read_labels([path])


def test_no_file_twice_and_no_empty_one(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ROW)
    with pytest.raises(InputError, match="named twice"):
        read_labels([path, path])
    (tmp_path / "b.csv").write_text("# nothing\nprompt,reply,label\n")
    with pytest.raises(InputError, match="no labelled replies"):
        read_labels([tmp_path / "b.csv"])
