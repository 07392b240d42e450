"""What the wheels hold becomes prompts; a file of another form is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from invented_wheels import PROMPTS, TYPES, files_of, prompts
from resect.errors import InputError
from resect.runs.real.prompts import facts, first_sentences, harmful, prose, writing


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Return a folder with the files of all wheels."""
    for content in files_of(b"").values():
        for name, data in content.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
    return tmp_path


def test_prompts_are_those_of_the_files(wheel: Path) -> None:
    assert [prompt.text for prompt in harmful(wheel)] == prompts("spoil")
    assert {prompt.category for prompt in harmful(wheel)} == set(TYPES)
    # The request that is not English is left out,
    assert [prompt.text for prompt in writing(wheel)] == prompts("Write a long tale of")
    # and so is the question whose premise is false.
    assert len(facts(wheel)) == PROMPTS - 1
    assert prompts("where is")[3] not in [prompt.text for prompt in facts(wheel)]
    assert len(prose(wheel)) == PROMPTS
    assert all(prompt.text.startswith("Stone ") for prompt in prose(wheel))


@pytest.mark.parametrize(
    ("most", "taken"), [(9, "Dim vorp."), (20, "Dim vorp. Odd zim!"), (8, ""), (99, None)]
)
def test_a_request_ends_with_a_sentence(most: int, taken: str | None) -> None:
    text = "Dim  vorp. Odd zim!\nMore dax: here"
    assert first_sentences(text, most) == (" ".join(text.split()) if taken is None else taken)


def test_files_of_another_form_are_refused(wheel: Path) -> None:
    seeds = next(wheel.glob("**/adv_bench.prompt"))
    for text in ("seeds: []", "seeds:\n- value: 3", "vorp"):
        seeds.write_text(text, "utf-8")
        with pytest.raises(InputError, match="resect real --remove"):
            harmful(wheel)
    table = next(wheel.glob("**/FreshQA_*.csv"))
    table.write_text(",".join("x" * 20) + "\n", "utf-8")
    with pytest.raises(InputError, match="false_premise"):
        facts(wheel)
    for path in wheel.glob("*/*/README.md"):
        path.unlink()
    with pytest.raises(InputError, match="rows that can be used"):
        prose(wheel)
