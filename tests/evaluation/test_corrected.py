"""Corrected rates of an evaluation: by the judge's known error, and by labels of its replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import call, ok, write
from labelled import BAD, GOOD, rows
from resect.errors import InputError
from resect.evaluation.corrected import ASSUMED, BY_ERROR, BY_LABELS, corrected_rows
from resect.evaluation.evaluate import rejudge
from resect.evaluation.judges.fitted_fit import FitRequest, fit_judge
from resect.evaluation.judging import Answer, answers_of, judge_answers, write_judged
from resect.evaluation.labels import Labelled, Labels, read_labels
from resect.evaluation.probes import find_probe
from resect.files.writing import write_json
from resect.records import Judgement, Reply
from resect.stats import rng

CATEGORIES = ("tides", "looms", "elsewhere")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a judge that errs in about a fifth of the replies, and has half of a word to go by."""
    folder = tmp_path_factory.mktemp("judge")
    path = folder / "harm.json"
    fit_judge(FitRequest((write(folder / "labels.jsonl", rows(150, noise=0.2)),)), path)
    return f"fitted:{path}"


def replies(hits: int, count: int, broken: int = 0) -> list[Reply]:
    """Return so many replies with words of hits, the rest with those of others, some incoherent."""
    draw = rng(f"test/corrected/{hits}/{count}")
    made = []
    for number in range(count):
        words = draw.choice(GOOD if number < hits else BAD, 3)
        made.append(
            Reply(
                str(number), "generation", "none", CATEGORIES[number % 3], f"q{number} t{number}",
                "", " ".join([*map(str, words), f"u{number}", "v"]),
                nll=9.0 if number >= count - broken else 1.0, repetition=0.0,
            )
        )  # fmt: skip
    return made


def judged(judge: str, hits: int, count: int, broken: int = 0) -> list[Answer]:
    return judge_answers(answers_of(replies(hits, count, broken)), judge)


def test_a_rate_is_corrected_for_the_error(judge: str) -> None:
    (row, *_) = corrected_rows(judge, {"intact": judged(judge, 30, 90)})
    assert (row["category"], row["method"], row["replies"]) == ("all", BY_ERROR, 90)
    # The judge's words are those of the simulation, so what it calls is 1/3; of such labels a fifth
    # is turned round, so that people would call t of them hits with 1/3 = .8 t + .2 (1 - t).
    assert row["called"] == pytest.approx(1 / 3, abs=0.02)
    assert row["rate"] == pytest.approx((1 / 3 - 0.2) / 0.6, abs=0.06)
    assert row["low"] is not None
    assert row["high"] is not None
    assert row["low"] < row["rate"] < row["high"]  # type: ignore[operator]
    # The judge's doubt is in the interval.
    assert row["high"] - row["low"] > row["called_high"] - row["called_low"]  # type: ignore[operator]
    assert row["counts"] == "complied"


def test_categories_stand_apart_with_their_own_error(judge: str) -> None:
    found = {
        row["category"]: row for row in corrected_rows(judge, {"intact": judged(judge, 30, 90)})
    }
    assert list(found) == ["all", "elsewhere", "looms", "tides"]
    assert found["tides"]["rate"] is not None
    assert found["elsewhere"]["rate"] is None
    assert "measured on 0 hits and 0 others of this category" in found["elsewhere"]["reason"]
    assert len(corrected_rows(judge, {"intact": judged(judge, 30, 90)}, by_category=False)) == 1


def test_a_judge_no_better_than_chance_measures_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chance.json"
    fit_judge(FitRequest((write(tmp_path / "labels.jsonl", rows(40)),)), path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["held_out"]["called"] = [not called for called in content["held_out"]["hits"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    (row, *_) = corrected_rows(f"fitted:{path}", {"intact": judged(f"fitted:{path}", 5, 20)})
    assert (row["rate"], row["low"], row["high"]) == (None, None, None)
    assert "no better than chance" in row["reason"]
    assert row["called"] is not None


def test_incoherent_replies_are_an_outcome_and_no_harmless_ones(judge: str) -> None:
    whole = corrected_rows(judge, {"intact": judged(judge, 30, 90)})[0]
    half = corrected_rows(judge, {"intact": judged(judge, 30, 90, broken=40)})[0]
    assert whole["incoherent"] == 0
    assert half["incoherent"] == pytest.approx(40 / 90)
    assert half["called"] == whole["called"]
    # Fewer harmless replies could have been called hits by mistake.
    assert half["rate"] > whole["rate"]  # type: ignore[operator]


def test_labels_of_the_replies_themselves_correct_any_judge(judge: str) -> None:
    answers = judged(judge, 30, 90)
    # People call every second one of the judge's hits none.
    truth = {answer.reply.example_id: int(answer.reply.example_id) % 2 == 0 and
             int(answer.reply.example_id) < 30 for answer in answers}  # fmt: skip
    labelled = Labels(
        tuple(
            Labelled(
                answer.reply.prompt.upper(),
                answer.reply.text,
                float(truth[answer.reply.example_id]),
            )
            for answer in answers[::2] + answers[1:20:2]
        ),
        {},
    )
    by_method = {
        row["method"]: row
        for row in corrected_rows(judge, {"intact": answers}, labelled, by_category=False)
    }
    assert list(by_method) == [BY_ERROR, BY_LABELS]
    row = by_method[BY_LABELS]
    assert row["labelled"] == 55
    assert row["low"] < 1 / 6 < row["high"]  # type: ignore[operator]
    keyword = judge_answers(answers_of(replies(30, 90)), "keyword")
    (other,) = corrected_rows("keyword", {"intact": keyword}, labelled, by_category=False)
    assert (other["method"], other["called"]) == (BY_LABELS, 1.0)
    assert other["low"] < 1 / 6 < other["high"]  # type: ignore[operator]
    few = Labels(labelled.rows[:9], {})
    (said,) = corrected_rows("keyword", {"intact": keyword}, few, by_category=False)
    assert said["rate"] is None
    assert "9 of these replies have a label" in said["reason"]


def test_labels_are_turned_where_the_probe_looks_for_the_opposite() -> None:
    answers = [
        Answer(
            Reply(str(at), "refusal", "none", "", f"p{at}", "", f"t{at}"),
            find_probe("refusal"),
            Judgement(
                "keyword", "keyword/none", float(at % 2), "refused" if at % 2 else "complied"
            ),
        )
        for at in range(40)
    ]
    labels = Labels(tuple(Labelled(f"p{at}", f"t{at}", float(at < 10)) for at in range(40)), {})
    (row,) = corrected_rows("keyword", {"intact": answers}, labels)
    assert row["rate"] == pytest.approx(0.75)


def test_nothing_is_corrected_of_what_nothing_is_known() -> None:
    assert corrected_rows("keyword", {"intact": answers_of(replies(3, 9))}) == []


def evaluation(folder: Path, count: int = 60) -> Path:
    """Write the folder of an evaluation with two variants, without a model."""
    for name, hits in (("intact", 40), ("cut", 10)):
        answers = judge_answers(answers_of(replies(hits, count)), "keyword")
        write_judged(folder / "records" / f"{name}.parquet", name, [answers])
    write_json(folder / "results.json", {"provenance": {"request": {}}})
    return folder


def test_rejudging_corrects_and_says_on_what_it_rests(judge: str, tmp_path: Path) -> None:
    source = evaluation(tmp_path / "eval")
    done = rejudge(source, (judge, "keyword"), tmp_path / "out")
    assert ASSUMED in done.notes
    content = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {row["variant"] for row in content["corrected"]} == {"intact", "cut"}
    assert {row["judge"] for row in content["judge_errors"]} == {judge}
    assert {row["category"] for row in content["judge_errors"]} == {"all", *CATEGORIES[:2]}
    rates = {row["variant"]: row for row in content["corrected"] if row["category"] == "all"}
    assert rates["intact"]["low"] > rates["cut"]["high"]
    plain = rejudge(source, ("keyword",), tmp_path / "plain")
    assert plain.corrected == []
    assert not {"corrected", "judge_errors"} & set(
        json.loads((tmp_path / "plain" / "results.json").read_text(encoding="utf-8"))
    )


def test_the_command_shows_error_and_correction(judge: str, tmp_path: Path) -> None:
    source = evaluation(tmp_path / "eval")
    labels = write(
        tmp_path / "some.jsonl",
        [{"prompt": r.prompt, "reply": r.text, "label": int(r.example_id) < 40}
         for r in replies(40, 60)[::2]],
    )  # fmt: skip
    words: list[Any] = ["eval", "--rejudge", source, "--judge", judge, "--labels", labels]
    shown = ok(*words, "-o", tmp_path / "out")
    assert "how the judge errs" in shown
    assert "rates corrected for it" in shown
    assert "labels of these replies" in shown
    tables = [
        json.loads(line) for line in ok("--json", *words, "-o", tmp_path / "again").splitlines()
    ]
    corrected = next(t for t in tables if str(t.get("title")).startswith("rates corrected"))
    assert {"rate", "low", "high", "method", "reason"} <= set(corrected["rows"][0])
    floored = ok(
        "eval", "--rejudge", source, "--judge", "keyword", "--coherence", "nll=0.5",
        "-o", tmp_path / "floored",
    )  # fmt: skip
    assert "rates" in floored
    refused = call("eval", "--rejudge", source, "--coherence", "much", "-o", tmp_path / "bad")
    assert refused.returncode == 2
    assert not (tmp_path / "bad").exists()
    compared = ok("report", "--compare", tmp_path / "out", "-o", tmp_path / "side")
    assert "side" in compared
    page = (tmp_path / "side" / "report.html").read_text(encoding="utf-8")
    assert "How the judge errs" in page


def test_labels_that_cannot_be_read_end_it_before_anything_is_written(
    judge: str, tmp_path: Path
) -> None:
    source = evaluation(tmp_path / "eval")
    with pytest.raises(InputError, match="cannot read"):
        rejudge(source, (judge,), tmp_path / "out", labels=[tmp_path / "none.csv"])
    assert not (tmp_path / "out").exists()
    assert read_labels([write(tmp_path / "a.jsonl", rows(2))]).rows
