"""The page of findings says what its run said."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("findings", ROOT / "benchmarks" / "findings.py")
assert SPEC is not None
assert SPEC.loader is not None
findings = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(findings)


def test_the_table_is_that_of_the_recorded_run() -> None:
    values = json.loads((ROOT / "docs" / "findings.json").read_text("utf-8"))
    page = (ROOT / "docs" / "findings.md").read_text("utf-8")
    whole = findings.filled(page, findings.tables(values), "", findings.BEGIN, findings.END)
    assert whole == page
    assert values["provenance"]["command"] in page


def test_a_run_is_kept_and_tabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = {
        "study": "compactness",
        "claim": "It is.",
        "verdict": "supported",
        "by_seed": {"0": "supported", "1": "not measurable"},
        "recipe": {"verdict": "inconclusive"},
        "effect": {"name": "drop", "value": 0.5, "low": 0.25, "high": None},
        "reason": "It holds.",
        "rule": "left out",
    }
    without = claim | {"recipe": None, "effect": {"name": "drop", "value": None}}
    results = {
        "claims": [claim, without],
        "provenance": dict.fromkeys(findings.PROVENANCE, "x") | {"models": "left out"},
        "studies": [],
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps(results), "utf-8")
    page = tmp_path / "findings.md"
    page.write_text(f"before\n{findings.BEGIN}\n{findings.END}\nafter\n", "utf-8")
    monkeypatch.setattr(findings, "DOCS", tmp_path)
    findings.main([str(tmp_path / "run")])
    text = page.read_text("utf-8")
    assert "| supported | ✓ – | inconclusive | drop: 50.0 % | It holds. |" in text
    assert "| drop: – | It holds. |" in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "left out" not in (tmp_path / "findings.json").read_text("utf-8")


@pytest.mark.parametrize(
    "section",
    [
        "",
        "gemma",
        "large",
        "gemma-large",
        "transfer",
        "dissociation",
        "compression",
        "emergent",
        "frontier",
        "relearning",
    ],
)
def test_the_page_of_real_models_is_that_of_its_runs_or_says_that_there_is_none(
    section: str,
) -> None:
    place = findings.Place("findings-real", section)
    page = (ROOT / "docs" / "findings-real.md").read_text("utf-8")
    text = "No run is recorded yet.\n"
    if place.numbers.exists():
        text = findings.tables(json.loads(place.numbers.read_text("utf-8")))
    assert place.filled(page, text) == page
    # A place of its own, and no text of another one.
    assert place.filled(page, "vorp\n").count("vorp") == 1
    # Sizes are those of the run that is shown, which the next one need not have.
    assert not place.numbers.exists() or text.startswith("This run: ")


def test_another_page_is_written_beside_its_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"q": 1e-5, "removed_fraction": 2.04e-6, "arm": "target"}
    bounded = {"rise": 0.5, "rise_low": 0.25, "rise_high": None}
    share = {"share": 0.1, "share_low": 0.05, "share_high": 0.2}
    above = {"above_target": 0.3, "above_target_low": -0.1, "above_target_high": 0.4}
    rises = [
        {**numbers, **bounded, "set": name, "seed": seed}
        for name in ("generation", "prose")
        for seed in (None, 0)
    ]
    shares = [{**numbers, **share, **above, "arm": arm, "side": "prose"} for arm in ("target", "x")]
    results = {
        "claims": [],
        "provenance": dict.fromkeys(findings.PROVENANCE, "x"),
        "studies": [
            {"study": "selectivity", "tables": {"rises": rises, "shares": shares, "chosen": []}},
            {"study": "compactness", "tables": {"rises": []}},
        ],
    }
    (tmp_path / "results.json").write_text(json.dumps(results), "utf-8")
    places = [f"{findings.BEGIN}\nold\n{findings.END}\n"]
    places.append(places[0].replace("findings", "findings dim"))
    (tmp_path / "vorp.md").write_text("a\n" + "b\n".join(places) + "c\n", "utf-8")
    monkeypatch.setattr(findings, "DOCS", tmp_path)
    findings.main([str(tmp_path), "--page", "vorp"])
    text = (tmp_path / "vorp.md").read_text("utf-8")
    assert text.count("old") == 1
    assert "This run" not in text
    assert "| cut | of all weights | generation | prose |" in text
    assert text.count("| target | 2e-06 | 0.50 [0.25, –] | 0.50 [0.25, –] |") == 1
    assert "| target | 2e-06 | prose | 0.10 [0.05, 0.20] |  |" in text
    assert "| x | 2e-06 | prose | 0.10 [0.05, 0.20] | 0.30 [-0.10, 0.40] |" in text
    assert (tmp_path / "vorp.json").is_file()
    # The other section has a place and a file of its own, and says how much its run measured.
    sizes = {"asked": 7, "pool": 9, "scored": 8, "tokens": 5, "seeds": 3, "fractions": 2}
    (tmp_path / findings.SIZES).write_text(json.dumps(sizes), "utf-8")
    findings.main([str(tmp_path), "--page", "vorp", "--section", "dim"])
    whole = (tmp_path / "vorp.md").read_text("utf-8")
    assert whole.startswith(text.partition("findings dim")[0])
    assert "old" not in whole
    assert "This run: 7 prompts asked of each set; draws of the calibration set: 3, of 8" in whole
    values = json.loads((tmp_path / "vorp-dim.json").read_text("utf-8"))
    assert values["sizes"] == sizes
