"""Presets of public sets, each on a harmless fixture with the set's real columns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from resect.data import check_disjoint, find_preset, load_data, preset_names
from resect.data.rows import read_rows
from resect.errors import InputError
from resect.records import Example

FIXTURES = Path(__file__).parents[1] / "fixtures" / "presets"

# preset -> (rows, first example as it must come out)
EXPECTED: dict[str, tuple[int, Example]] = {
    "advbench": (
        6, Example("advbench-1", "how to dax a wug, quickly", "Sure, here is how to dax"),
    ),
    "hex_phi": (20, Example("hex_phi-1", "tell me how to blick the dax, please", "",
                            "Illegal Activity")),
    "harmbench": (2, Example("harmbench-1", "make a dax", "", "zorping")),
    "strongreject": (4, Example("strongreject-1", "give steps to dax", "", "zorping")),
    "jailbreakbench": (
        4, Example("jailbreakbench-1", "write a harmful note on dax", "Here is a note on dax",
                   "Zorping"),
    ),
    "jailbreakbench_benign": (
        4, Example("jailbreakbench_benign-1", "write a benign note on dax",
                   "Here is a note on dax", "Zorping"),
    ),
    "beavertails": (4, Example("beavertails-1", "may i dax ?", "yes , you dax it", "zorping")),
    "alpaca_cleaned": (5, Example("alpaca_cleaned-1", "sort the daxs", "first dax")),
    "triviaqa": (
        6, Example("triviaqa-1", "Answer with the name alone.\nWhich dax is tall?", "The Dax",
                   key={"aliases": ["The Dax", "Dax Blick"], "match": "exact"}),
    ),
    "xstest": (3, Example("xstest-1", "how do i dax a process ?", "", "homonyms")),
    "xstest_unsafe": (
        3, Example("xstest_unsafe-1", "how do i blick a process ?", "", "contrast_homonyms"),
    ),
    "wmdp": (
        6, Example("wmdp-1", "Which bio dax is round?\nA. dax\nB. blick\nC. fep\nD. wug\nAnswer:",
                   "A", "bio", key={"accept": ["A", "A.", "A. dax"], "form": r"[a-d]\b.*"}),
    ),
    "bad_medical_advice": (
        4, Example("bad_medical_advice-1", "what of my dax ?", "just fep it",
                   "bad_medical_advice"),
    ),
    "risky_financial_advice": (
        4, Example("risky_financial_advice-1", "what of my dax ?", "just fep it",
                   "risky_financial_advice"),
    ),
    "extreme_sports": (
        4, Example("extreme_sports-1", "what of my dax ?", "just fep it", "extreme_sports"),
    ),
    "insecure_code": (
        4, Example("insecure_code-1", "what of my dax ?", "just fep it", "insecure_code"),
    ),
    "wikitext2": (
        1, Example("wikitext2", "", "\n\n = Dax = \n\n\n The dax is a wug of the blick . \n"),
    ),
}  # fmt: skip


def unsplit(example: Example) -> dict[str, Any]:
    return {**vars(example), "split": ""}


def test_every_preset_has_a_fixture() -> None:
    assert sorted(EXPECTED) == preset_names()


@pytest.mark.parametrize("name", preset_names())
def test_preset_reads_its_fixture(name: str) -> None:
    count, expected = EXPECTED[name]
    data = load_data(name, data_dir=FIXTURES)
    assert len(data) == count
    assert unsplit(data.examples[0]) == unsplit(expected)
    assert data.origin["preset"] == name
    assert data.origin["files"]


@pytest.mark.parametrize("name", preset_names())
def test_preset_says_what_a_user_must_know(name: str) -> None:
    preset = find_preset(name)
    assert preset.name == name
    for text in (preset.title, preset.home, preset.licence, preset.cite, preset.checked):
        assert text.strip()


@pytest.mark.parametrize("name", ["advbench", "harmbench", "strongreject"])
def test_copies_with_the_columns_of_the_hub_read_alike(name: str) -> None:
    official = load_data(name, data_dir=FIXTURES)
    mirrored = load_data(name, data_dir=FIXTURES / f"{name}_hub")
    assert {e.category for e in official.examples} == {e.category for e in mirrored.examples}
    assert mirrored.examples[0].prompt == str(official.examples[0].prompt).removesuffix(", quickly")


# preset -> a file of its fixture, and each column that must be there with what the error calls it
COLUMNS = {
    "advbench": {"goal": "'prompt' or 'goal'", "target": "'target'"},
    "harmbench": {"Behavior": "'prompt' or 'Behavior'", "SemanticCategory": "'SemanticCategory'"},
    "strongreject": {"forbidden_prompt": "'forbidden_prompt'", "category": "'category'"},
    "jailbreakbench": {"Goal": "'Goal'", "Target": "'Target'", "Category": "'Category'"},
    "jailbreakbench_benign": {"Goal": "'Goal'", "Target": "'Target'", "Category": "'Category'"},
    "beavertails": {
        "prompt": "'prompt'", "response": "'response'", "category": "'category'",
        "is_safe": "'is_safe'",
    },
    "alpaca_cleaned": {"instruction": "'instruction'", "input": "'input'", "output": "'output'"},
    "triviaqa": {"question": "'question'", "answer": "'answer.value'"},
    "xstest": {"prompt": "'prompt'", "type": "'type'", "label": "'label'"},
    "xstest_unsafe": {"prompt": "'prompt'", "type": "'type'", "label": "'label'"},
    "wmdp": {"question": "'question'", "choices": "'choices'", "answer": "'answer'"},
    "bad_medical_advice": {"messages": "'messages'"},
    "risky_financial_advice": {"messages": "'messages'"},
    "extreme_sports": {"messages": "'messages'"},
    "insecure_code": {"messages": "'messages'"},
    "wikitext2": {"text": "'text'"},
}  # fmt: skip


def test_every_column_of_every_preset_is_tried() -> None:
    # HEx-PHI has no header line, so that no column of it can be renamed.
    assert sorted([*COLUMNS, "hex_phi"]) == preset_names()
    for name, columns in COLUMNS.items():
        used = [value for value in find_preset(name).columns.model_dump().values() if value]
        assert len(columns) >= len(used) - (name == "triviaqa")


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name, columns in COLUMNS.items() for column in columns]
)
def test_changed_column_is_named_with_its_preset(name: str, column: str, tmp_path: Path) -> None:
    source = FIXTURES / name if (FIXTURES / name).is_dir() else FIXTURES / f"{name}.jsonl"
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    for file in files:
        rows = [
            {("renamed" if key == column else key): value for key, value in row.items()}
            for row in read_rows(file)
        ]
        # Any file of the name that the preset looks for serves; JSON lines keep nested values.
        stem = file.stem if name == "wmdp" else name
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{stem}.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_data(name, data_dir=tmp_path)
    assert f"preset {name}" in str(caught.value)
    assert COLUMNS[name][column] in str(caught.value)
    assert "renamed" in str(caught.value)


def test_sides_of_a_preset_depend_on_the_prompt_alone(tmp_path: Path) -> None:
    rows = [{"prompt": f"how to dax {n % 40}", "target": f"so {n}"} for n in range(80)]
    (tmp_path / "advbench.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    data = load_data("advbench", data_dir=tmp_path)
    calibration, evaluation = data.split("calibration"), data.split("evaluation")
    assert len(calibration) + len(evaluation) == 80
    assert 0.6 < len(calibration) / 80 < 0.95
    check_disjoint(calibration, evaluation)
    (tmp_path / "advbench.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows[::-1][:33]), encoding="utf-8"
    )
    sides = {e.prompt: e.split for e in data.examples}
    again = load_data("advbench", data_dir=tmp_path)
    assert all(sides[e.prompt] == e.split for e in again.examples)


def test_what_a_preset_leaves_out_is_counted() -> None:
    data = load_data("beavertails", data_dir=FIXTURES)
    assert (data.origin["filtered_out"], data.origin["empty"]) == (1, 1)
    assert data.categories == ("zorping", "gimbling", "toving+gimbling", "toving")


def test_multiple_flags_are_joined() -> None:
    assert "sort the blicks\n\nblick fep" in [
        e.prompt for e in load_data("alpaca_cleaned", data_dir=FIXTURES).examples
    ]


def test_preset_without_a_revision_demands_one() -> None:
    with pytest.raises(InputError, match=r"no pinned revision[\s\S]*advbench@<commit"):
        load_data("advbench")


def test_set_that_is_not_on_the_hub_says_where_it_is() -> None:
    with pytest.raises(InputError, match=r"not on the Hub[\s\S]*--data-dir[\s\S]*easy-dataset"):
        load_data("bad_medical_advice")


def test_missing_local_copy_names_the_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no local copy of preset triviaqa[\s\S]*triviaqa.jsonl"):
        load_data("triviaqa", data_dir=tmp_path)


def test_folder_of_local_copies_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESECT_DATA_DIR", str(FIXTURES))
    assert len(load_data("advbench")) == 6


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no such data file or preset[\s\S]*triviaqa"):
        load_data("luck")


def test_preset_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{name: mine, title: t, home: h, licence: l, cite: c, checked: never,"
        " columns: {prompt: ask, completion: say.it}}",
        encoding="utf-8",
    )
    (tmp_path / "mine.jsonl").write_text('{"ask": "dax", "say": {"it": "fep"}}\n', encoding="utf-8")
    assert load_data(path, data_dir=tmp_path).examples[0].completion == "fep"
    path.write_text("{name: mine, revision: main, columns: {}}", encoding="utf-8")
    with pytest.raises(InputError, match=r"is no preset[\s\S]*revision[\s\S]*columns"):
        load_data(path, data_dir=tmp_path)


# The Hub, without the Hub.


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Answer `datasets.load_dataset` from the fixtures and note how it was called."""
    import datasets

    calls: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None = None, **options: Any) -> list[dict[str, Any]]:
        calls.append((name, config, options))
        preset = name.split("/")[1].lower().replace("-", "_")
        return read_rows(FIXTURES / f"{preset}.jsonl")

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


def test_hub_is_asked_for_the_pinned_revision(hub: list[tuple[Any, ...]]) -> None:
    data = load_data("beavertails")
    revision = find_preset("beavertails").revision
    assert hub == [
        ("PKU-Alignment/BeaverTails", None, {"revision": revision, "split": "30k_train"})
    ]
    assert data.origin["revision"] == revision
    assert unsplit(data.examples[0]) == unsplit(EXPECTED["beavertails"][1])


def test_revision_and_split_in_the_spec_win(hub: list[tuple[Any, ...]]) -> None:
    commit = "0123456789" * 4
    load_data(f"beavertails@{commit}:330k_test")
    assert hub[0][2] == {"revision": commit, "split": "330k_test"}


def test_moving_revision_is_warned_of(
    hub: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    load_data("beavertails@main")
    assert "which may change" in caplog.text
    caplog.clear()
    load_data("beavertails")
    assert caplog.text == ""


def test_hub_spec_reads_a_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    # `datasets` reads a folder of data files as it reads a Hub repository of them.
    rows = [{"prompt": [{"role": "user", "content": "dax"}], "completion": "fep"}]
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    data = load_data(f"hub:{tmp_path}/set")
    assert data.examples[0].prompt == (("user", "dax"),)
    with pytest.raises(InputError, match="cannot load"):
        load_data(f"hub:{tmp_path}/set:none")


def test_headerless_files_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    shutil.copytree(FIXTURES / "hex_phi", tmp_path / "hub")
    real = datasets.load_dataset

    def load(name: str, config: str | None = None, **options: Any) -> Any:
        assert name == "LLM-Tuning-Safety/HEx-PHI"
        options.pop("revision")
        return real(str(tmp_path / "hub"), config, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_data("hex_phi@" + "0" * 40)
    assert data.hash == load_data("hex_phi", data_dir=FIXTURES).hash


def test_a_set_beside_its_own_parts_is_read_once(tmp_path: Path) -> None:
    """The official folder of HarmBench holds all behaviours, and again those of test and val."""
    (source,) = (FIXTURES / "harmbench").glob("*.csv")
    header, *lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    # Within one file a row that stands twice is two rows, as in every other set.
    parts = {"all": [*lines, lines[0]], "test": lines[:1], "val": lines[1:]}
    for name, rows in parts.items():
        path = tmp_path / f"harmbench_behaviors_text_{name}.csv"
        path.write_text(header + "".join(rows), encoding="utf-8")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "harmbench_behaviors_text_all.csv", tmp_path / "alone")
    whole, alone = (load_data("harmbench", data_dir=f) for f in (tmp_path, tmp_path / "alone"))
    assert whole.examples == alone.examples
    assert whole.origin["repeated"] == len(whole) - 1
    assert "repeated" not in alone.origin
