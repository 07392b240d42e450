"""Commands that take runs say what another folder is and what can be done with it."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from command_line import call, ok, write
from resect.files.folders import kind_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind that is no run."""
    folder = tmp_path_factory.mktemp("kinds")
    model = tiny.save("llama", folder / "checkpoint")
    data = write(folder / "rows.jsonl", tiny.rows(4, "r"))
    mask = folder / "m.mask.safetensors"
    tiny.cut(tiny.build("llama")).save(mask)
    ok("eval", model, "--probe", "refusal", "--data", data, "--max-new-tokens", "2",
       "-o", folder / "evaluation")  # fmt: skip
    ok("audit", model, model, "--mask", mask, "--matched", "1", "-o", folder / "audit")
    ok("prune", model, mask, "-o", folder / "cut")
    (folder / "unfinished run").mkdir()
    (folder / "unfinished run" / "config.yaml").write_text("name: x\n", encoding="utf-8")
    (folder / "empty").mkdir()
    return folder


KINDS = ("evaluation", "audit", "cut", "checkpoint", "unfinished run", "empty")
NEXT = {
    ("reproduce", "evaluation"): "provenance.request",
    ("reproduce", "audit"): "facts.request",
    ("reproduce", "cut"): "resect.json",
    ("reproduce", "unfinished run"): "--resume",
    ("report", "evaluation"): "--compare",
    ("report", "unfinished run"): "--resume",
}
IS = {
    "evaluation": "an evaluation",
    "audit": "an audit",
    "cut": "resect prune",
    "checkpoint": "a checkpoint",
    "unfinished run": "not finished",
    "empty": "nothing that resect wrote",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["reproduce", "report"])
def test_a_folder_that_is_no_run_is_named(command: str, kind: str, bench: Path) -> None:
    assert kind_of(bench / kind) == kind.removesuffix("empty")
    before = set(bench.rglob("*"))
    done = call(command, bench / kind)
    if (command, kind) == ("report", "audit"):
        assert done.returncode == 0  # its page is built again
        assert "audit.html" in done.stdout
        return
    assert done.returncode == 2, done.stderr
    assert IS[kind] in done.stderr
    assert NEXT.get((command, kind), "") in done.stderr
    # No file that is named is one that never was.
    if kind != "unfinished run":
        assert "config.yaml" not in done.stderr
    assert set(bench.rglob("*")) == before


@pytest.mark.parametrize("kind", ["audit", "cut", "empty"])
def test_what_cannot_be_compared_is_named(kind: str, bench: Path, tmp_path: Path) -> None:
    done = call("report", "--compare", bench / kind, bench / kind, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert IS[kind] in done.stderr
    assert not (tmp_path / "out").exists()
