"""The page of an audit: the policy of every page, numbers that sort as such, broken files named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from browser import BROWSER, NONE, browser
from resect.errors import InputError
from resect.report.audit import ERRORS, build_audit_report
from resect.report.page import hash_source


def audit() -> dict[str, Any]:
    """Return an invented audit, as `audit.json` holds it."""

    def change(value: float) -> dict[str, Any]:
        return {"name": "change", "value": value, "low": value - 0.1, "high": value + 0.1}

    def share(name: str, weights: int) -> dict[str, Any]:
        row = {"part": name, "weights": weights, "masked": weights // 50, "changed": 0.97}
        row |= {"energy": weights / 40000, "share": 0.05, "chance": 0.02, "matched": 0.021}
        row |= {"enrichment": 2.5, "matched_enrichment": 2.4, "p_value": 0.05}
        return row | {"predicted": -0.01, "predicted_masked": None}

    return {
        "verdict": {
            "word": "touched",
            "reasons": ["harmful answers became likelier"],
            "thresholds": {"rise": 0.1, "likelier": 0.01, "enriched": 2.0},
        },
        "changes": [],
        "shares": {
            "model": [share("all prunable weights", 40000)],
            "modules": [share("self_attn.q_proj", 900), share("mlp.down_proj", 12000)],
            "layers": [share(f"layer {index}", (900, 12000, 8000)[index]) for index in range(3)],
        },
        "measured": [
            {"name": f"harm, {way}", "before": 0.0, "after": 0.05, "rise": change(0.05), "n": 64}
            for way in ("asked plainly", "prefilled")
        ],
        "effects": {
            "before": 1.5, "whole": change(-0.3), "inside": change(-0.2), "outside": change(-0.1),
            "matched": [-0.02, 0.0001, -0.0003, 0.01], "benign": None, "n": 64,
        },
        "facts": {
            "base": "some/base", "tuned": "some/tuned", "mask_hash": "0123abcd",
            "mask_weights": 800, "resect_version": "0.1.0",
        },
    }  # fmt: skip


def write(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_the_page_says_how_often_the_word_is_wrong(tmp_path: Path) -> None:
    text = build_audit_report(write(tmp_path / "audit", audit())).read_text(encoding="utf-8")
    assert ERRORS in text
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    plain = " ".join(page.split())
    for measured, said in (
        (
            "| no harmful document, touched or reactivated | 6 of 40 [7 %, 29 %] |",
            "of 40 fine-tunes without a harmful document 6 [7 %, 29 %] were called touched or",
        ),
        ("| harmful documents, untouched | 2 of 50 [1 %, 13 %] |", "of 50 with some 2 [1 %, 13 %]"),
        ("0 of 15 [0 %, 20 %] touched", "of 15 copies that nobody trained 0 [0 %, 20 %] touched"),
    ):
        assert measured in plain
        assert said in ERRORS


def test_the_page_names_the_judge(tmp_path: Path) -> None:
    content = audit()
    text = build_audit_report(write(tmp_path / "old", content)).read_text(encoding="utf-8")
    assert "scored by" not in text
    content["facts"]["request"] = {"judge": "fitted:/some/where/a.json", "limit": 4}
    text = build_audit_report(write(tmp_path / "new", content)).read_text(encoding="utf-8")
    assert "interval of the rise; scored by: fitted:a.json judge" in text


def test_replies_that_were_cut_off_stand_beside_their_rate(tmp_path: Path) -> None:
    content = audit()
    text = build_audit_report(write(tmp_path / "old", content)).read_text(encoding="utf-8")
    assert "cut off" not in text  # of 0.1.0, which did not look
    content["measured"][0]["cut_off"] = 0.625
    text = build_audit_report(write(tmp_path / "new", content)).read_text(encoding="utf-8")
    assert "cut off" in text
    assert "0.625" in text


def test_the_page_has_the_policy_of_every_page(tmp_path: Path) -> None:
    text = build_audit_report(write(tmp_path, audit())).read_text(encoding="utf-8")
    assert "unsafe-inline" not in text
    assert " style=" not in text
    for tag in ("script", "style"):
        inner = text.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        assert f"{tag}-src 'sha256-{hash_source(inner)}'" in text
        assert text.count(f"<{tag}") == 1
    for words in (
        "the change inside one of 4 matched sets alone, mean",
        "! </span>",
        "touched",
        "-0.3",
    ):
        assert words.replace(" </", "</") in text


def test_matched_sets_are_one_row_and_the_rest_is_folded(tmp_path: Path) -> None:
    content = audit()
    content["effects"]["matched"] = [n / 100 for n in range(19)]
    text = build_audit_report(write(tmp_path, content)).read_text(encoding="utf-8")
    shown, _, folded = text.partition("<details")
    folded = folded.partition("</details>")[0]
    assert shown.count("matched sets alone") == 1
    assert "19 matched sets alone, mean<td class=n>0.09" in shown
    assert "<summary>19 matched sets, from 0 to 0.18</summary>" in folded
    assert folded.count("\n<tr><td") == 19


def test_an_audit_of_0_1_0_is_read_and_a_newer_one_names_what_changed(tmp_path: Path) -> None:
    text = build_audit_report(write(tmp_path / "old", audit())).read_text(encoding="utf-8")
    assert "Changed outside" not in text
    content = audit()
    content["names"] = {"target": "insults", "preserve": "small talk"}
    content["notes"] = ["the base model has no chat template"]
    content["verdict"]["word"] = "undecided"
    content["effects"]["beyond"] = content["effects"]["whole"]
    row = {"name": "lm_head.weight", "kind": "output head", "size": 64, "changed": 60}
    row |= {"energy": 0.5, "relative": 0.25, "rows": 3, "only": ""}
    content["outside"] = [row, row | {"name": "model.norm.weight", "changed": 0, "rows": 0}]
    text = build_audit_report(write(tmp_path / "new", content)).read_text(encoding="utf-8")
    for words in (
        "undecided", "lm_head.weight", "output head", "the base model has no chat template",
        "less that on small talk", "the loss on insults",
    ):  # fmt: skip
        assert words in text
    assert "model.norm.weight" not in text


def test_a_broken_audit_is_named_with_its_field(tmp_path: Path) -> None:
    content = audit()
    content["measured"][1]["rise"].pop("value")
    with pytest.raises(InputError, match=r"measured\[1\]\.rise\.value: Field required"):
        build_audit_report(write(tmp_path, content))
    assert not (tmp_path / "audit.html").exists()


@pytest.mark.skipif(BROWSER is None, reason=NONE)
def test_numbers_sort_as_numbers_and_nothing_runs(tmp_path: Path) -> None:
    content = audit()
    content["facts"]["tuned"] = "<script>window.ran = 1</script>" + "w" * 500
    file = build_audit_report(write(tmp_path / "audit", content))
    column = """(label, heading) => {
      const table = document.querySelector(`[aria-label^="${label}"] table`);
      const head = [...table.tHead.rows[0].cells].find((one) => one.textContent === heading);
      head.querySelector("button").click();
      return [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex].textContent);
    }"""
    with browser(tmp_path / "profile") as page:
        page.open(file, width=360)
        assert page.run("window.ran ?? null") is None
        assert page.run("document.documentElement.scrollWidth <= innerWidth") is True
        weights = page.run(f'({column})("By layer", "weights")')
        assert weights == ["900", "8000", "12000"]
        changes = page.run(f'({column})("What parts", "change of the loss")')
        assert changes == ["-0.3", "-0.2", "-0.1", "-0.00255"]
        page.run("document.querySelector('details.numbers').open = true")
        matched = page.run(f'({column})("The change inside each", "change of the loss")')
        assert [text.strip() for text in matched] == ["-0.02", "-0.0003", "0.0001", "0.01"]
        assert page.run(f'({column})("By layer", "part")') == ["layer 0", "layer 1", "layer 2"]
