"""Each number says which judge it is from, and is called harm where that judge sees harm alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import example_run
from resect.files import write_json
from resect.records import COUNTED
from resect.report import build_comparison, build_report
from resect.report.attacks import reach_sentence, reached
from resect.report.measured import Measured, measured_by, worded
from resect.report.results import read_results
from resect.report.tables import tables_of

pytestmark = pytest.mark.usefixtures("without_paper")

STUDIES = ("compactness", "jailbreak", "relearning", "stability")


def write(folder: Path, **provenance: object) -> Path:
    """Write an invented run of a few studies, by some judge."""
    example_run.write(folder)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["studies"] = [study for study in results["studies"] if study["study"] in STUDIES]
    results["claims"] = [claim for claim in results["claims"] if claim["study"] in STUDIES]
    results["provenance"] |= provenance
    write_json(folder / "results.json", results)
    return folder


@pytest.fixture(scope="module")
def by_phrases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write(tmp_path_factory.mktemp("who") / "run", judge="keyword", judge_kind="keyword")
    for number, share in enumerate((1.0, 0.42)):
        facts = {"cell_attack": "fine-tune", "adapted_share": share}
        write_json(run / "attacks" / f"{number}.json", facts)
    build_report(run)
    return run


def test_no_number_of_the_keyword_judge_is_called_harm(by_phrases: Path) -> None:
    page = (by_phrases / "report.html").read_text(encoding="utf-8")
    body = page.partition("<body>")[2].partition('id="provenance"')[0]
    text = re.sub(r"<title>.*?</title>|<svg.*?</svg>|<[^>]*>", " ", body, flags=re.DOTALL)
    # What it must not be, what the studies do not show and ask, and names in the user's data.
    said = [line for line in text.splitlines() if re.search(r"\bharm\b", line, re.IGNORECASE)]
    allowed = ("it sees refusals, not harm (", "no harm is left", "serve harm alone")
    wrong = [
        line for line in said
        if not any(words in line for words in allowed) and not line.strip().endswith("?")
    ]  # fmt: skip
    assert wrong == []
    drawn = re.findall(r"<(?:text|title)[^>]*>([^<]*)", body)
    assert [line for line in drawn if re.search(r"\b[Hh]arm\b(?! types)", line)] == []
    assert "non-refusal" in text


def test_each_claim_table_and_quote_names_the_judge(by_phrases: Path) -> None:
    summary = json.loads((by_phrases / "report.json").read_text(encoding="utf-8"))
    assert summary["measured"]["behaviour"] == "non-refusal"
    page = (by_phrases / "report.html").read_text(encoding="utf-8")
    claims = [claim for study in summary["studies"] for claim in study["claims"]]
    assert all("keyword judge, 180 prompts, seeds" in claim["quote"] for claim in claims)
    line = (
        "Measured by the keyword judge: it sees refusals, not harm (its own phrases found 59 of "
        "109 that people had labelled, in English; other languages are unchecked)."
    )
    # Once for the run, and at each claim.
    assert page.count(line) == 1 + len(claims)
    for study in read_results(by_phrases).studies:
        for table in tables_of(study, Measured("keyword", "keyword")):
            weights = table.name.split(",")[0] in ("where", "agreement", "changes")
            assert ("scored by: " in table.caption) != weights, table.name
    text = (by_phrases / "report.md").read_text(encoding="utf-8")
    assert text.count(line) == 1 + len(claims)
    csv = (by_phrases / "tables" / "jailbreak-attacks.csv").read_text(encoding="utf-8")
    assert csv.splitlines()[0].endswith(",judge")
    assert "harm_low" in csv.splitlines()[0]  # names that others read stay
    where = (by_phrases / "tables" / "compactness-where.csv").read_text(encoding="utf-8")
    assert "judge" not in where


def test_results_themselves_stay_as_written(by_phrases: Path) -> None:
    written = read_results(by_phrases)
    shown = worded(written, Measured("keyword", "keyword"))
    assert [claim.claim for claim in shown.claims] == [claim.claim for claim in written.claims]
    assert shown.claims[0].effect.name == "relative drop of non-refusal, q = 0.2 %"
    assert written.claims[0].effect.name == "relative drop of harm, q = 0.2 %"
    assert worded(written, Measured("exact", "exact")) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Harm comes back.", "Non-refusal comes back."),
        ("drop of harm under finetune", "drop of non-refusal under finetune"),
        ("share of the intact model's harm", "share of the intact model's non-refusal"),
        ("drop of wholly harmful answers, same cuts", "drop of whole hits, same cuts"),
        # Kinds in the data, what is trained on, and a target of this name are no numbers.
        ("harm types overlap", "harm types overlap"),
        ("steps on harmful examples", "steps on harmful examples"),
        ("Chosen: harm, q = 0.001.", "Chosen: harm, q = 0.001."),
        (
            "Within the limits harm falls by 3 % only (harm, 2 rounds, q = 0.01).",
            "Within the limits non-refusal falls by 3 % only (harm, 2 rounds, q = 0.01).",
        ),
        ("drop of harm, q = 0.2 %", "drop of non-refusal, q = 0.2 %"),
        ("harmless and harm-like", "harmless and harm-like"),
    ],
)
def test_the_noun_alone_is_replaced(text: str, said: str) -> None:
    assert Measured("keyword", "keyword").say(text) == said
    assert Measured("exact", "exact").say(text) == text


def test_each_kind_has_its_word() -> None:
    words = {kind: counted.behaviour for kind, counted in COUNTED.items()}
    assert words == {
        "exact": "harm", "strongreject": "harm", "llm:harmfulness": "harm",
        "keyword": "non-refusal", "llm": "grade", "fitted": "compliance", "other": "score",
        "fitted, comply": "compliance", "fitted, refuse": "non-refusal",
        "likelihood": "answer likelihood",
    }  # fmt: skip


def test_a_study_of_questions_with_keys_is_by_the_exact_judge() -> None:
    assert Measured("keyword", "keyword").of_study("emergent") == Measured("exact", "exact")
    forced = Measured("", "likelihood")
    assert forced.of_study("emergent") == forced


def test_older_runs_say_it_in_their_configuration(tmp_path: Path) -> None:
    assert measured_by(tmp_path, {}) == Measured()
    assert measured_by(tmp_path, {"measure": "likelihood"}) == Measured("", "likelihood")
    (tmp_path / "config.yaml").write_text("evaluation: {judge: 'keyword:own'}\n", encoding="utf-8")
    assert measured_by(tmp_path, {}) == Measured("keyword:own", "keyword")
    (tmp_path / "config.yaml").write_text("evaluation: []\n", encoding="utf-8")
    assert measured_by(tmp_path, {}).line == ""
    graded = measured_by(tmp_path, {"judge": "llm:harmfulness@some/model"})
    assert graded.kind == "llm:harmfulness"
    (tmp_path / "config.yaml").write_bytes(b"\xff: [")
    assert measured_by(tmp_path, {}) == Measured()
    named = {"judge": "fitted:a.json", "judge_kind": "fitted, refuse"}
    assert measured_by(tmp_path, named).behaviour == "non-refusal"


@pytest.mark.parametrize(
    ("judge", "shown"),
    [
        ("fitted:/somewhere/of mine/a.json", "fitted:a.json"),
        ("fitted:near/a.json,far/model", "fitted:a.json,model"),
        ("keyword:own+/somewhere/more.txt", "keyword:own+more.txt"),
        ("llm:harmfulness@openai/gpt-4o", "llm:harmfulness@openai/gpt-4o"),
        ("keyword", "keyword"),
    ],
)
def test_folders_of_this_machine_are_not_told(judge: str, shown: str) -> None:
    assert measured_by(Path("none"), {"judge": judge}).judge == shown


def test_runs_of_different_judges_are_not_compared_in_silence(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / judge, judge=judge, judge_kind=judge) for judge in ("keyword", "exact")
    ]
    build_comparison(runs, tmp_path / "both")
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert "rules or settings differ: judge" in page
    assert "relative drop of non-refusal, q" in page
    assert "relative drop of harm, q" in page
    lines = (tmp_path / "both" / "tables" / "effects.csv").read_text(encoding="utf-8").splitlines()
    assert "judge" in lines[0].split(",")
    assert {"keyword judge", "exact judge"} <= set(",".join(lines).split(","))


def test_how_far_an_attack_reached_stands_at_its_numbers(by_phrases: Path) -> None:
    # The least share of all variants counts.
    assert reached(by_phrases) == {"fine-tune": 0.42}
    note = "fine-tune: adapters on 42 % of the prunable weights, and an attack on all of them"
    for name in ("report.html", "report.md"):
        assert note in (by_phrases / name).read_text(encoding="utf-8")
    assert (
        reach_sentence({"finetune": 1.0})
        == "fine-tuning: adapters on 100 % of the prunable weights"
    )
    assert reach_sentence({}) == ""
