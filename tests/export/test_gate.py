"""What leaves the house says first what it had to show, and does not leave without that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import huggingface_hub
import pytest
import yaml
from safetensors import safe_open

import tiny
from command_line import call, ok
from invented_run import invented_config
from resect.errors import InputError, MismatchError
from resect.export import export_checkpoint, pass_gate
from resect.export.gate import VERDICTS, Stated, parse_wanted
from resect.files.writing import write_json
from resect.model import load_model
from resect.records import Claim, Interval, Results, VerdictWord
from resect.report.traced import TracedClaim, TracedMask, Traces
from resect.runs.config import RunConfig, load_config, parse_config
from resect.weights.mask import Mask

CLAIMS: list[tuple[str, str, VerdictWord]] = [
    ("compactness", "the smallest cut is small", "supported"),
    ("compactness", "a random cut is not enough", "supported"),
    ("relearning", "it does not come back", "inconclusive"),
]
OURS = "m.mask.safetensors"
HELD = "compactness=supported"
FAILED = "relearning=supported"


def claim(study: str, words: str, verdict: VerdictWord) -> Claim:
    effect = Interval("drop", 0.5, 0.4, 0.6)
    return Claim(study, words, verdict, effect, (effect,), "drop at least .3", (0,), 9, "so")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("models") / "m")


@pytest.fixture
def mask(folder: Path, tmp_path: Path) -> Path:
    tiny.cut(load_model(folder).model).save(tmp_path / "a.mask.safetensors")
    return tmp_path / "a.mask.safetensors"


@pytest.fixture
def run(mask: Path, tmp_path: Path) -> Path:
    claims = tuple(claim(*said) for said in CLAIMS)
    results = Results("invented", False, claims, (), {"seeds": [0], "judge": "exact"})
    write_json(tmp_path / "run" / "results.json", results)
    Mask.load(mask).save(tmp_path / "run" / "masks" / "m.mask.safetensors")
    about = tuple(TracedClaim(study, words, (OURS,)) for study, words, _ in CLAIMS)
    write_json(
        tmp_path / "run" / "cuts.json", Traces(about, (TracedMask(OURS, "aligned", 0, "h"),))
    )
    return tmp_path / "run"


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8").split("\n# ", 1)[1]


def facts_of(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text("utf-8").split("---")[1]
    facts: dict[str, Any] = yaml.safe_load(text)["resect"]
    return facts


def test_what_holds_is_written_and_the_card_says_it_first(
    folder: Path, mask: Path, run: Path, tmp_path: Path
) -> None:
    ok("prune", folder, mask, "--run", run, "--require", HELD, "-o", tmp_path / "cut")
    first, second = card_of(tmp_path / "cut").splitlines()[2:4]
    assert first == "**Required before this was written, and met:** `compactness=supported`."
    assert second == "Not required: the other claims of its run: 1 inconclusive."
    assert facts_of(tmp_path / "cut")["required"] == [HELD]


def test_without_a_requirement_the_card_says_so_first(
    folder: Path, mask: Path, run: Path, tmp_path: Path
) -> None:
    ok("prune", folder, mask, "-o", tmp_path / "cut")
    assert card_of(tmp_path / "cut").splitlines()[2].startswith("**No verdict was required")
    assert "required" not in facts_of(tmp_path / "cut")
    ok("prune", folder, mask, "--run", run, "-o", tmp_path / "of-run")
    line = card_of(tmp_path / "of-run").splitlines()[3]
    assert line == "Not required: the claims of its run: 2 supported, 1 inconclusive."


@pytest.mark.parametrize(
    ("require", "said"),
    [
        (FAILED, "relearning: it does not come back: inconclusive"),
        ("transfer=supported", "makes no such claim"),
        ("compactness: largest=supported", "makes no such claim"),
        ("compactness", "cannot read what is required"),
        ("compactness=certain", "cannot read what is required"),
    ],
)
def test_what_does_not_hold_is_refused_and_nothing_is_written(
    require: str, said: str, folder: Path, mask: Path, run: Path, tmp_path: Path
) -> None:
    outputs = {
        "prune": ("prune", folder, mask, "-o", tmp_path / "cut"),
        "gguf": ("prune", tmp_path / "m.gguf", mask, "-o", tmp_path / "cut.gguf"),
        "push": ("mask", "push", mask, "me/mask"),
        "patch": ("mask", "patch", mask, "-o", tmp_path / "cut.patch.safetensors"),
    }
    before = sorted(tmp_path.iterdir())
    for words in outputs.values():
        done = call(*words, "--run", run, "--require", require)
        assert done.returncode == 2
        assert said in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_claims_are_named_by_study_or_by_words(mask: Path, run: Path) -> None:
    loaded = Mask.load(mask)
    for require, count in (
        ("compactness=supported", 2),
        ("compactness: Random=supported", 1),
        ("come back=inconclusive", 1),
    ):
        gate = pass_gate(loaded, run, [require])
        assert len(gate.met) == count
        assert len(gate.others) == len(CLAIMS) - count
    assert parse_wanted("a: q = 1=supported").claim == "a: q = 1"
    assert set(VERDICTS) == set(get_args(VerdictWord))


def test_a_gate_needs_the_run_of_the_very_mask(mask: Path, run: Path) -> None:
    loaded = Mask.load(mask)
    with pytest.raises(InputError, match="nothing says what was measured"):
        pass_gate(loaded, None, [HELD])
    with pytest.raises(InputError, match="no such claim"):
        pass_gate(replace(loaded, meta={"measured": {"verdict": "supported"}}), None, [HELD])
    name = next(iter(loaded.tensors))
    with pytest.raises(MismatchError, match="did not measure this mask"):
        pass_gate(Mask({name: loaded.tensors[name]}, {}), run, [HELD])


@pytest.mark.parametrize("meta", [{"control": "random"}, {"permutation": {"number": 2}}])
def test_no_claim_is_about_a_control(meta: dict[str, Any], mask: Path, run: Path) -> None:
    control = replace(Mask.load(mask), meta=meta)
    with pytest.raises(InputError, match="the mask is a control"):
        pass_gate(control, run, [HELD])
    assert pass_gate(control, run).others
    assert pass_gate(replace(control, meta={"permutation": {"number": 0}}), run, [HELD]).met


def test_a_chosen_mask_says_its_verdict_itself(mask: Path) -> None:
    chosen = replace(Mask.load(mask), meta={"measured": {"verdict": "inconclusive"}})
    said = Stated("chosen", "the cut that its run chose", "inconclusive")
    assert pass_gate(chosen, None, ["chosen=inconclusive"]).met == (said,)
    with pytest.raises(InputError, match="chosen=supported is required"):
        pass_gate(chosen, None, ["chosen=supported"])


def test_the_configuration_of_a_run_is_a_default(
    folder: Path, mask: Path, run: Path, tmp_path: Path
) -> None:
    (run / "config.yaml").write_text("require: {relearning: supported}\n", encoding="utf-8")
    for require in ((), ("--require", HELD)):
        done = call("prune", folder, mask, "--run", run, *require, "-o", tmp_path / "cut")
        assert done.returncode == 2
        assert "relearning=supported is required" in done.stderr
    with pytest.raises(InputError, match="relearning=supported is required"):
        export_checkpoint(folder, Mask.load(mask), tmp_path / "cut", run=run)
    ok("prune", folder, mask, "--run", run, "--require", "none", "-o", tmp_path / "cut")
    lines = card_of(tmp_path / "cut").splitlines()
    assert lines[2].startswith("**No verdict was required")
    assert lines[3].startswith("**Waived:** the configuration of the run requires `relearning=sup")
    assert facts_of(tmp_path / "cut")["waived"] == [FAILED]
    with pytest.raises(InputError, match="stands with other requirements"):
        pass_gate(Mask.load(mask), run, ["none", HELD])


def test_a_configuration_names_studies_that_run_and_is_else_as_it_was() -> None:
    plain = invented_config({"compactness": {}})
    assert "require" not in plain.model_dump(mode="json")
    values = plain.model_dump(mode="json")
    held = parse_config({**values, "require": {"compactness": "supported"}}, "test")
    assert isinstance(held, RunConfig)
    assert held.model_dump(mode="json")["require"] == {"compactness": "supported"}
    for require, said in (
        ({"transfer": "supported"}, "names no study that runs"),
        ({"compactness": "certain"}, "require.compactness"),
    ):
        with pytest.raises(InputError, match=said):
            parse_config({**values, "require": require}, "test")


def test_the_default_is_read_from_a_file_that_a_run_writes(tmp_path: Path, mask: Path) -> None:
    values = invented_config({"compactness": {}}).model_dump(mode="json")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**values, "require": {"compactness": "supported"}}), "utf-8")
    assert load_config(path).require == {"compactness": "supported"}


class Hub:
    """Takes what would be sent."""

    sent: ClassVar[list[str]] = []

    def __init__(self, **_: Any) -> None:
        """Take the token."""

    def create_repo(self, *_: Any, **__: Any) -> None:
        """Make none."""

    def upload_folder(self, *, folder_path: str, **_: Any) -> str:
        """Keep the card."""
        Hub.sent.append((Path(folder_path) / "README.md").read_text("utf-8"))
        return "https://hub/commit"


def test_masks_and_patches_say_what_was_required(
    mask: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    ok("mask", "push", mask, "me/mask", "--run", run, "--require", HELD)
    lines = Hub.sent.pop().split("\n# ", 1)[1].splitlines()
    assert lines[2].startswith("**Required before this was written, and met:** `compactness=")
    assert any("| it does not come back | inconclusive |" in line for line in lines)
    ok("mask", "patch", mask, "--run", run, "--require", HELD, "-o", tmp_path / "p.safetensors")
    with safe_open(tmp_path / "p.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["resect"])["required"] == [HELD]
    done = call("mask", "patch", mask, "--revert", "--require", FAILED, "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr
