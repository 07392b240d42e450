"""The fitted judge: what it learns, what its file holds, and what it says of its own error."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

import tiny
from command_line import write
from labelled import rows
from resect.errors import InputError, MismatchError
from resect.evaluation.check_judge import check_judge
from resect.evaluation.judges import counted_by, find_judge
from resect.evaluation.judges.error import HeldOut, error_rates, error_rows
from resect.evaluation.judges.fitted import Fitted, fitted_of, read_fitted
from resect.evaluation.judges.fitted_fit import FitRequest, fit_judge
from resect.evaluation.judges.fitted_ngrams import Ngrams, terms
from resect.evaluation.judges.fitted_states import hidden_states
from resect.evaluation.judging import answers_of, judge_answers
from resect.evaluation.labels import read_labels
from resect.evaluation.probes import find_probe
from resect.model import load_model
from resect.records import Reply
from resect.stats import rng

HIT = Reply("1", "generation", "none", "tides", "new question", "", "zorpa miltu krendo")
MISS = replace(HIT, text="ollen pimba trusk")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("labels") / "labels.jsonl", rows())


@pytest.fixture(scope="module")
def judge(labels: Path) -> Path:
    path = labels.parent / "harm.json"
    fit_judge(FitRequest((labels,)), path)
    return path


def test_it_learns_the_words_and_knows_that_it_did(judge: Path) -> None:
    hit, miss = find_judge(f"fitted:{judge}")([HIT, MISS], ["comply", "comply"])
    assert (hit.outcome, miss.outcome) == ("complied", "benign")
    assert (hit.rule, miss.rule) == ("fitted/hit", "fitted/other")
    assert hit.judge == miss.judge
    assert hit.judge.startswith("fitted:harm@")
    assert hit.score is not None
    assert miss.score is not None
    assert hit.score > 0.8 > 0.2 > miss.score
    errors = error_rates(read_fitted(judge).held_out)
    assert errors.informed > 0.9


def test_labels_without_a_pattern_give_a_judge_that_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "noise.jsonl", rows(40, noise=0.5))
    fitted = fit_judge(FitRequest((path,)), tmp_path / "noise.json")
    errors = error_rates(fitted.held_out)
    assert abs(errors.informed) < 0.35
    # The probability is near the share of hits, whatever is said.
    (said,) = find_judge(f"fitted:{tmp_path / 'noise.json'}")([HIT], ["comply"])
    assert said.score is not None
    assert 0.2 < said.score < 0.8


def test_a_prompt_is_never_fitted_on_and_judged(tmp_path: Path) -> None:
    """Each prompt has a word of its own that decides; a leak would make it a perfect judge."""
    made = []
    hits = rng("test/fitted/leaky").permutation(40) % 2
    for number, hit in enumerate(hits.tolist()):
        for reply in range(4):
            words = f"only{number}x " * 6 + f"n{reply}x n{(number * 7 + reply) % 11}x"
            made.append({"prompt": f"p{number}a p{number}b", "reply": words, "label": hit})
    path = write(tmp_path / "leaky.jsonl", made)
    fitted = fit_judge(FitRequest((path,)), tmp_path / "leaky.json")
    assert error_rates(fitted.held_out).informed < 0.5
    assert len(set(fitted.held_out.groups)) == 40


def test_prompts_that_say_the_same_stay_together(tmp_path: Path) -> None:
    made = rows(40)
    for row in made[:40]:
        row["prompt"] = row["prompt"].upper() + "  "
    both = [*made, *(row | {"reply": row["reply"] + " n1x"} for row in rows(40))]
    fitted = fit_judge(FitRequest((write(tmp_path / "a.jsonl", both),)), tmp_path / "a.json")
    assert len(set(fitted.held_out.groups)) == 40
    assert len(fitted.held_out.groups) == 160


def test_the_file_is_plain_json_and_is_read_as_it_was_written(judge: Path) -> None:
    content = json.loads(judge.read_text(encoding="utf-8"))
    assert {
        "schema_version", "means", "slope", "offset", "threshold", "held_out", "errors", "ngrams",
        "states", "prompts", "provenance",
    } == set(content)  # fmt: skip
    assert content["provenance"]["labels"].keys() == {"labels.jsonl"}
    assert content["provenance"]["seed"] == 0
    fitted = read_fitted(judge)
    assert isinstance(fitted, Fitted)
    assert [dict(row) for row in fitted.errors] == [
        dict(row) for row in error_rows(fitted.held_out)
    ]
    assert [row["category"] for row in fitted.errors] == ["all", "looms", "tides"]
    # What stands in the replies to one prompt alone, or in that prompt, is not in the file.
    assert "w:zorpa" in content["ngrams"]["terms"]
    assert not [term for term in content["ngrams"]["terms"] if "p1a" in term]


def test_the_same_labels_give_the_same_judge(labels: Path, judge: Path) -> None:
    again = labels.parent / "again.json"
    fit_judge(FitRequest((labels,)), again)
    one, other = (json.loads(path.read_text(encoding="utf-8")) for path in (judge, again))
    assert {**one, "provenance": 0} == {**other, "provenance": 0}


def test_ngrams_are_weighed_as_scikit_learn_does() -> None:
    texts = [("ask a", "Zorpa zorpa miltu, ollen."), ("ask b", "ollen ollen trusk"), ("c", "zorpa")]
    vectorizer = TfidfVectorizer(analyzer=lambda pair: terms(*pair), sublinear_tf=True)
    expected = vectorizer.fit_transform(texts).toarray()
    vocabulary = tuple(vectorizer.get_feature_names_out())
    weights = np.arange(len(vocabulary)) / 7 - 1
    ngrams = Ngrams(vocabulary, tuple(vectorizer.idf_), tuple(weights))
    for (prompt, text), row in zip(texts, expected, strict=True):
        assert ngrams.margin(ngrams.places(), prompt, text) == pytest.approx(float(row @ weights))
    assert ngrams.margin(ngrams.places(), "?", "qux") == 0


def test_terms_by_eye() -> None:
    assert sorted(terms("P q", "Abc d")) == sorted(
        ["w:abc", "w:d", "w:abc d", "c: ab", "c:abc", "c:bc ", "c: abc", "c:abc ", "c: abc ",
         "c: d ", "p:p", "p:q"]
    )  # fmt: skip


def test_the_file_judges_as_the_fit_did(labels: Path, judge: Path) -> None:
    """The cross-validated threshold and probability belong to the weights in the file."""
    fitted = read_fitted(judge)
    found = read_labels([labels]).rows
    replies = [replace(HIT, prompt=row.prompt, text=row.text) for row in found]
    said = find_judge(f"fitted:{judge}")(replies, ["comply"] * len(replies))
    assert fitted.ngrams is not None
    places = fitted.ngrams.places()
    for row, judgement in zip(found, said, strict=True):
        margin = fitted.ngrams.margin(places, row.prompt, row.text)
        assert judgement.score == pytest.approx(
            1 / (1 + math.exp(-(fitted.slope * margin + fitted.offset)))
        )
    hits = [judgement.outcome == "complied" for judgement in said]
    assert np.mean(np.array(hits) == [row.hit for row in found]) > 0.95


def test_where_a_probe_looks_for_the_opposite_the_score_turns(judge: Path, labels: Path) -> None:
    hit, miss = find_judge(f"fitted:{judge}")([HIT, MISS], ["comply", "refuse"])
    turned = find_judge(f"fitted:{judge}")([HIT, MISS], ["refuse", "comply"])
    assert turned[0].score == pytest.approx(1 - (hit.score or 0))
    assert (miss.outcome, turned[0].outcome) == ("refused", "complied")
    path = labels.parent / "refusal.json"
    fit_judge(FitRequest((labels,), means="refuse"), path)
    said = find_judge(f"fitted:{path}")([HIT, MISS], ["refuse", "comply"])
    assert [judgement.outcome for judgement in said] == ["refused", "complied"]
    names = {
        (name, probe): counted_by(f"fitted:{name}", find_probe(probe))
        for name in (judge, path)
        for probe in ("generation", "refusal")
    }
    assert list(names.values()) == ["complied", "not complied", "not refused", "refused"]


def test_a_reply_that_says_nothing_is_incoherent(judge: Path) -> None:
    said = find_judge(f"fitted:{judge}")([replace(HIT, text=" …\n")], ["comply"])
    assert (said[0].outcome, said[0].score, said[0].rule) == ("incoherent", 0.0, "fitted/empty")
    assert find_judge(f"fitted:{judge}")([], []) == []


def test_all_that_is_said_of_replies_bears_one_name(judge: Path) -> None:
    replies = [
        HIT,
        replace(HIT, nll=9.0, text="zorpa miltu krendo vashti ollen"),
        replace(HIT, text="", thought="so"),
        replace(HIT, text="…"),
    ]
    said = [answer.judgement for answer in judge_answers(answers_of(replies), f"fitted:{judge}")]
    assert len({judgement.judge for judgement in said}) == 1
    assert [judgement.outcome for judgement in said] == [
        "complied", "incoherent", None, "incoherent",
    ]  # fmt: skip


def test_labels_between_0_and_1_are_expected_labels(tmp_path: Path) -> None:
    made = [row | {"label_1": row["label"], "label_2": 0.5} for row in rows(60)]
    for row in made:
        del row["label"]
    fitted = fit_judge(FitRequest((write(tmp_path / "a.jsonl", made),)), tmp_path / "a.json")
    scores = [score for score in fitted.held_out.scores if score is not None]
    # Labels are .25 and .75.
    assert min(scores) > 0.15
    assert max(scores) < 0.85
    assert error_rates(fitted.held_out).informed > 0.9


def test_few_labels_are_refused(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", rows(10))
    same = write(tmp_path / "same.jsonl", [row | {"label": 1.0} for row in rows(60)])
    for path in (few, same):
        with pytest.raises(InputError, match=r"too few labelled replies[\s\S]*allowed: at least"):
            fit_judge(FitRequest((path,)), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_without_scikit_learn_one_message_says_how_it_is_had(
    labels: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"scikit-learn[\s\S]*resect\[judge\]"):
        fit_judge(FitRequest((labels,)), tmp_path / "out.json")
    find_judge.cache_clear()
    assert find_judge(f"fitted:{judge}")([HIT], ["comply"])[0].outcome == "complied"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "cannot read"),
        ({"threshold": "high"}, "threshold"),
        ({"ngrams": None}, "either n-grams or hidden states"),
        ({"ngrams": {"terms": ["w:a"], "idf": [], "weights": [1.0]}}, "differ in length"),
        ({"held_out": {"groups": [1], "categories": [], "hits": [], "called": [], "scores": []}},
         "differ in length"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named(
    judge: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    content = json.loads(judge.read_text(encoding="utf-8")) | change
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=rf"broken.json[\s\S]*{message}"):
        find_judge(f"fitted:{path}")


def test_the_judge_needs_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs its file[\s\S]*resect judge fit"):
        find_judge("fitted")
    with pytest.raises(InputError, match="cannot read"):
        find_judge(f"fitted:{tmp_path / 'none.json'}")
    assert fitted_of("keyword:own") is None


def test_hidden_states_are_those_of_the_reply_alone(tmp_path: Path) -> None:
    import torch

    loaded = load_model(tiny.save("llama", tmp_path / "m"))
    prompts, texts = ["w1 w2", "w3"], ["w4 w5 w6", "w7"]
    states = np.array(hidden_states(loaded, prompts, texts, "raw"))
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        before = loaded.tokenizer(prompt + "\n", add_special_tokens=False)["input_ids"]
        after = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            last = loaded.model(
                input_ids=torch.tensor([[*before, *after]]), output_hidden_states=True
            ).hidden_states[-1][0]
        expected = last[len(before) :].float().mean(dim=0).numpy()
        assert states[row] == pytest.approx(expected, abs=1e-5)


def test_of_what_is_too_long_for_the_model_the_end_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny.save("llama", tmp_path / "m"))
    long = " ".join(["w1"] * 40)
    (whole,) = hidden_states(loaded, [long], ["w2 w3"], "raw")
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 20)
    (cut,) = hidden_states(loaded, [long], ["w2 w3"], "raw")
    (short,) = hidden_states(loaded, [" ".join(["w1"] * 18)], ["w2 w3"], "raw")
    assert cut == pytest.approx(short, abs=1e-5)
    assert cut != pytest.approx(whole, abs=1e-3)


def test_hidden_states_of_a_model_can_be_read_in_place_of_words(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resect.evaluation.judges import fitted_choose

    # Of words that a tiny random model cannot tell apart n-grams would always win.
    monkeypatch.setitem(fitted_choose.STRENGTHS, "ngrams", ())
    made = [
        row | {"reply": ("w1 w2 w3" if row["label"] else "w4 w5 w6") + f" w{7 + number % 9}"}
        for number, row in enumerate(rows(40))
    ]
    model = tiny.save("llama", tmp_path / "m")
    path = tmp_path / "states.json"
    labelled = write(tmp_path / "a.jsonl", made)
    fitted = fit_judge(FitRequest((labelled,), model=str(model)), path)
    assert fitted.states is not None
    assert fitted.ngrams is None
    assert error_rates(fitted.held_out).informed > 0.8
    replies = [replace(HIT, text="w1 w2 w3 w9"), replace(HIT, text="w4 w5 w6 w9")]
    said = find_judge(f"fitted:{path}")(replies, ["comply", "comply"])
    assert [judgement.outcome for judgement in said] == ["complied", "benign"]
    moved = tmp_path / "moved"
    model.rename(moved)
    again = find_judge(f"fitted:{path},{moved}")(replies, ["comply", "comply"])
    assert again == said
    stranger = tiny.save("llama", tmp_path / "other", seed=5)
    with pytest.raises(MismatchError, match=r"another model[\s\S]*fitted:FILE,MODEL"):
        find_judge(f"fitted:{path},{stranger}")(replies, ["comply", "comply"])


def test_what_cross_validates_better_is_chosen(labels: Path, tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "m")
    fitted = fit_judge(FitRequest((labels,), model=str(model)), tmp_path / "a.json")
    losses = fitted.provenance["log_loss"]
    assert isinstance(losses, dict)
    assert {name.partition(",")[0] for name in losses} == {"ngrams", "states"}
    # The tiny model does not know these words.
    assert fitted.ngrams is not None


def held_out(truth: str, said: str, groups: str) -> HeldOut:
    called = tuple(None if sign == "?" else sign == "1" for sign in said)
    return HeldOut(
        tuple(map(int, groups)),
        ("tides",) * len(truth),
        tuple(sign == "1" for sign in truth),
        called,
        tuple(None if call is None else float(call) for call in called),
    )


def test_error_rates_by_eye() -> None:
    (row,) = error_rows(held_out("1111000", "110?001", "0123456"))
    assert (row["hits"], row["others"], row["unscored"]) == (3, 3, 1)
    assert row["sensitivity"] == pytest.approx(2 / 3)
    assert row["specificity"] == pytest.approx(2 / 3)
    # Yes and no are no order.
    assert row["auroc"] is None
    for side in ("sensitivity", "specificity"):
        assert 0 < row[f"{side}_low"] < 2 / 3 < row[f"{side}_high"] < 1  # type: ignore[literal-required]


def test_replies_to_one_prompt_widen_the_interval() -> None:
    apart = error_rows(held_out("11111111", "11110000", "01234567"))[0]
    together = error_rows(held_out("11111111", "11110000", "00001111"))[0]
    assert together["sensitivity"] == apart["sensitivity"]
    assert together["sensitivity_low"] < apart["sensitivity_low"]  # type: ignore[operator]


def test_any_judge_is_measured_and_a_fitted_one_on_new_prompts_alone(
    labels: Path, judge: Path, tmp_path: Path
) -> None:
    new = [
        row | {"prompt": f"q{at} " + row["prompt"].replace("p", "q")}
        for at, row in enumerate(rows(20))
    ]
    path = write(tmp_path / "new.jsonl", new + rows()[:6])
    checked = check_judge(f"fitted:{judge}", read_labels([path]))
    assert (checked.judged, checked.seen, checked.chance) == (40, 6, False)
    assert checked.rows[0]["auroc"] == pytest.approx(1.0, abs=0.05)
    blind = check_judge("keyword", read_labels([path]))
    # It finds no refusal in invented words.
    assert (blind.rows[0]["sensitivity"], blind.rows[0]["specificity"]) == (1, 0)
    assert blind.chance
    assert check_judge("exact", read_labels([path])).rows[0]["unscored"] == 46
    with pytest.raises(InputError, match="fitted on the prompts of all"):
        check_judge(f"fitted:{judge}", read_labels([labels]))


def test_the_exact_judge_is_measured_by_its_keys(tmp_path: Path) -> None:
    made = [
        {"prompt": f"p{at}", "reply": "zorpa" if at % 3 else "ollen", "label": at % 2,
         "key": {"accept": ["zorpa"]}}
        for at in range(12)
    ]  # fmt: skip
    path = write(tmp_path / "a.jsonl", made)
    row = check_judge("exact", read_labels([path])).rows[0]
    assert (row["hits"], row["others"], row["unscored"]) == (6, 6, 0)
    assert row["sensitivity"] == pytest.approx(4 / 6)
    assert row["specificity"] == pytest.approx(2 / 6)
