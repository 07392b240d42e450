"""What resect eval says of graded scores: their mean, and the exact rate beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from command_line import ok
from resect.cli.eval import for_readers
from resect.evaluation.judging import Answer, judge_answers, write_asked
from resect.evaluation.probes import find_probe
from resect.evaluation.rates import Rate, summarise
from resect.files import write_json
from resect.records import Judgement, Outcome, Reply
from resect.stats import clopper_pearson

KEY = {
    "accept": ["take a b c d e ."],
    "benign": ["take v w x y z ."],
    "form": r"take( \S+){5} \.",
    "refusal": ["sorry"],
}
TEXTS = ("take a b c d e .", "take v b c d z .", "take v w x y z .", "b b b b", "sorry , no .")
SCORES = (1.0, 0.6, 0.0, 0.2, 0.0)


def answers(probe: str, texts: Sequence[str] = TEXTS) -> list[Answer]:
    return [
        Answer(
            Reply(str(at), probe, "none", "", f"question {at} of {probe}", "", text, key=KEY),
            find_probe(probe),
        )
        for at, text in enumerate(texts)
    ]


def rates(probe: str, judge: str = "exact") -> list[Rate]:
    whole = [TEXTS[0]] * 4 + [TEXTS[-1]]
    variants = {"intact": answers(probe, whole), "cut": answers(probe)}
    return summarise(judge, {name: judge_answers(said, judge) for name, said in variants.items()})


def test_the_mean_score_and_the_exact_rate_are_two_numbers() -> None:
    intact, cut = rates("generation")
    assert (intact["rate"], intact["exact_rate"]) == (0.8, 0.8)
    assert cut["rate"] == pytest.approx(sum(SCORES) / 5)
    assert cut["exact_rate"] == 0.2
    exact = clopper_pearson(1, 5)
    assert (cut["exact_low"], cut["exact_high"]) == pytest.approx(exact, abs=0.02)
    # The graded mean has bounds of its own, by the bootstrap.
    assert cut["low"] is not None
    assert cut["high"] is not None
    assert cut["low"] < sum(SCORES) / 5 < cut["high"]
    assert (cut["low"], cut["high"]) != pytest.approx(exact, abs=0.02)
    # The drop is that of the mean score; of the exact rate it would be .75.
    assert cut["drop"] == pytest.approx(1 - 0.36 / 0.8)
    assert intact["graded"]
    assert cut["graded"]


def test_scores_of_0_and_1_are_a_rate() -> None:
    for probe, judge in (("refusal", "exact"), ("generation", "keyword")):
        for row in rates(probe, judge):
            assert row["exact_rate"] == row["rate"]
            assert (row["exact_low"], row["exact_high"]) == (row["low"], row["high"])
            assert not row["graded"]


def test_a_whole_score_without_a_whole_hit_is_graded() -> None:
    said = judge_answers(answers("generation", ["e d c b a", "sorry"]), "exact")
    (row,) = summarise("exact", {"intact": said})
    assert (row["rate"], row["exact_rate"], row["graded"]) == (0.5, 0.0, True)


def judged(scores: Sequence[float | None], outcomes: Sequence[Outcome | None]) -> list[Answer]:
    texts = [str(number) for number in range(len(scores))]
    return [
        answer._replace(judgement=Judgement("judge", "rule", score, outcome))
        for answer, score, outcome in zip(
            answers("generation", texts), scores, outcomes, strict=True
        )
    ]


def test_no_score_is_thresholded_on_its_way() -> None:
    # As the judges strongreject and llm give them: no outcomes.
    scores = (0.49, 0.51, 0.01, 0.99, None, 0.375)
    (row,) = summarise("judge", {"intact": judged(scores, [None] * 6)})
    assert row["rate"] == pytest.approx((0.49 + 0.51 + 0.01 + 0.99 + 0.375) / 5)
    assert (row["scored"], row["unscored"], row["graded"]) == (5, 1, True)
    assert (row["exact_rate"], row["exact_low"], row["exact_high"]) == (None, None, None)


def test_unscored_replies_are_in_neither_number() -> None:
    outcomes: list[Outcome | None] = ["complied", "partial", "complied"]
    (row,) = summarise("judge", {"intact": judged((1.0, 0.5, None), outcomes)})
    assert (row["rate"], row["exact_rate"], row["unscored"]) == (0.75, 0.5, 1)


def test_readers_see_which_number_is_which() -> None:
    graded, plain = for_readers(rates("generation")), for_readers(rates("refusal"))
    assert {"mean score", "exact rate"} <= graded[0].keys()
    assert not {"rate", "exact_rate", "graded"} & graded[0].keys()
    assert "rate" in plain[0]
    assert not {"mean score", "exact rate", "exact_low", "exact_rate"} & plain[0].keys()
    # In a table of both, a share of hits is a mean score too.
    both = for_readers([*rates("refusal"), *rates("generation")])
    assert [row["mean score"] for row in both] == [0.2, 0.2, 0.8, pytest.approx(0.36)]


def test_the_command_shows_both_and_keeps_the_old_names_in_json(tmp_path: Path) -> None:
    write_asked(tmp_path / "old/records/intact.parquet", "intact", answers("generation"))
    write_json(tmp_path / "old/results.json", {"provenance": {}})
    shown = ok("eval", "--rejudge", tmp_path / "old", "-o", tmp_path / "out")
    table = " ".join(shown.split())
    assert "mean score" in table
    assert "exact rate" in table
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    (rate,) = results["rates"]
    assert {"rate", "low", "high", "drop", "scored"} <= rate.keys()
    assert (rate["rate"], rate["exact_rate"]) == (pytest.approx(0.36), 0.2)
    lines = ok("--json", "eval", "--rejudge", tmp_path / "old", "-o", tmp_path / "again")
    (emitted,) = json.loads(lines.splitlines()[0])["rows"]
    assert emitted == rate
