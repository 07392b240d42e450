"""A destroyed model is named as such, in one line, beside its rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from command_line import call, write
from resect.evaluation.evaluate import rejudge
from resect.evaluation.uniform import beyond_uniform
from resect.files import read_json
from resect.model import load_model
from resect.records import Reply

REPLY = Reply("1", "likelihood", "none", "", "w1", "", "w2")


@pytest.mark.parametrize(
    ("nlls", "lines"),
    [
        ([15.7, 15.5], 1),
        ([10.9, 10.6], 0),  # the mean decides
        ([0.9], 0),
        ([float("inf")], 1),
        ([None], 0),
        ([], 0),
    ],
)
def test_the_mean_is_held_against_the_vocabulary(nlls: list[float | None], lines: int) -> None:
    replies = [replace(REPLY, nll=nll) for nll in nlls]
    said = beyond_uniform({"cut": replies}, 49_152)  # log: 10.8 nats
    assert len(said) == lines
    assert all(line.startswith("cut, likelihood: the mean NLL is ") for line in said)


def test_a_cut_is_blamed_only_for_what_it_did() -> None:
    sense, noise = replace(REPLY, nll=0.9), replace(REPLY, nll=15.7)
    (line,) = beyond_uniform({"intact": [sense], "cut": [noise]}, 49_152)
    assert line.startswith("cut, ")
    assert "The model is destroyed" in line
    # What was noise before the cut says nothing of the cut, and a smaller q would not help.
    for cut in (sense, noise):
        (line,) = beyond_uniform({"intact": [noise], "cut": [cut]}, 49_152)
        assert line.startswith("intact, ")
        assert "noise to the model" in line
        assert "smaller q" not in line


def test_eval_names_what_the_model_finds_impossible(tmp_path: Path) -> None:
    """One model that is sure of itself, with its own answers and with words that it rules out."""
    loaded = load_model(tiny.save("llama", tmp_path / "usual"))
    with torch.no_grad():
        dict(loaded.model.named_parameters())["model.embed_tokens.weight"].mul_(1000)
    loaded.model.save_pretrained(str(tmp_path / "sure"))
    loaded.tokenizer.save_pretrained(str(tmp_path / "sure"))
    own = tiny.rows(16, "r", split="evaluation")
    tiny.answer_half(own, loaded.model, tiny.cut(loaded.model, 0.0))
    for name, rows in (("own", own[::2]), ("ruled out", own[1::2])):
        data = write(tmp_path / f"{name}.jsonl", rows)
        done = call("eval", tmp_path / "sure", "--probe", "likelihood", "--data", data,
                    "-o", tmp_path / name)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("noise to the model" in " ".join(done.stderr.split())) == (name != "own")
        # What judges the stored replies again says it again.
        again = rejudge(tmp_path / name, ("keyword",), tmp_path / f"{name} again")
        results = read_json(tmp_path / name / "results.json")
        assert again.notes == results["notes"]
        assert [note.startswith("intact, likelihood") for note in again.notes] == [True] * (
            name != "own"
        )
