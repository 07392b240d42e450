"""A gate knows which of a run's masks a claim is about, and of which run a mask is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from command_line import call, ok
from invented_run import invented_config
from resect.errors import InputError, MismatchError
from resect.export import export_checkpoint, pass_gate
from resect.files.origin import hash_value
from resect.files.writing import write_json, write_text
from resect.model import load_model
from resect.records import Claim, Interval, Results, VerdictWord
from resect.report.traced import TracedClaim, TracedMask, Traces
from resect.runs.config import dump_config
from resect.runs.masks import Masks
from resect.runs.subject import Subject
from resect.studies.cells import Cut, mask_path
from resect.weights.algebra import combine
from resect.weights.mask import OF_RUN, Mask, MaskTensor

HELD = "compactness=supported"
CHOSEN, SMALLER, BENIGN, THERE, INTACT = "chosen", "smaller", "benign", "there", "intact"
# Name to what the run made it for.
MASKS = {
    CHOSEN: ("aligned", 0, "generation, q = 0.004"),
    SMALLER: ("aligned", 0, "generation, q = 0.001"),
    BENIGN: ("aligned", 0, "benign, q = 0.004"),
    THERE: ("aligned", 1, "generation, q = 0.002"),
}
COMPACT, GATE, TRANSFER = "the set is compact", "jailbreaks get through", "it is shared"


def file_of(name: str) -> str:
    return f"{name}.mask.safetensors"


def claim(study: str, words: str, verdict: VerdictWord, **more: Any) -> Claim:
    effect = Interval("drop", 0.5, 0.4, 0.6)
    return Claim(study, words, verdict, effect, (effect,), "rule", (0, 1), 9, "so", **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def masks(folder: Path) -> dict[str, Mask]:
    whole = tiny.cut(load_model(folder).model)
    made: dict[str, Mask] = {}
    for count, name in enumerate(MASKS, start=1):
        tensors = {
            key: tensor.keep(torch.arange(tensor.index.numel()) >= count)
            for key, tensor in whole.tensors.items()
        }
        made[name] = Mask(tensors, {})
    return made


def run_of(folder: Path, masks: dict[str, Mask], require: dict[str, str] | None = None) -> Path:
    """Write a run whose claim is about one mask a seed, and return its folder."""
    values = invented_config({"compactness": {}}, seeds=2).model_dump(mode="json")
    config = {**values, **({"require": require} if require else {})}
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    for name, mask in masks.items():
        role, seed, cut = MASKS[name]
        origin: dict[str, Any] = {"config": hash_value(config), "role": role, "seed": seed}
        origin |= {"cut": cut, **({"require": require} if require else {})}
        Mask(mask.tensors, {OF_RUN: origin}).save(folder / "masks" / file_of(name))
    claims = (
        claim("compactness", COMPACT, "supported", by_seed={"0": "supported", "1": "inconclusive"}),
        claim("jailbreak", GATE, "supported"),
        claim("transfer", TRANSFER, "supported", by_seed={"0": "supported", "1": "not supported"}),
    )
    results = Results("invented", False, claims, (), {"seeds": [0, 1], "judge": "exact"})
    write_json(folder / "results.json", results)
    both = (file_of(CHOSEN), file_of(THERE))
    about = {("compactness", COMPACT): both, ("jailbreak", GATE): (), ("transfer", TRANSFER): both}
    traced = tuple(TracedClaim(*named, files) for named, files in about.items())
    made = tuple(TracedMask(file_of(name), *facts) for name, facts in MASKS.items())
    write_json(folder / "cuts.json", Traces(traced, made))
    return folder


@pytest.fixture
def run(masks: dict[str, Mask], tmp_path: Path) -> Path:
    return run_of(tmp_path / "run", masks)


@pytest.fixture
def bound(masks: dict[str, Mask], tmp_path: Path) -> Path:
    """Return a run that requires what it does not say of its masks but the chosen ones."""
    return run_of(tmp_path / "bound", masks, {"compactness": "supported"})


@pytest.mark.parametrize("name", [CHOSEN, THERE])
def test_a_mask_that_the_claim_is_about_passes(
    name: str, masks: dict[str, Mask], run: Path
) -> None:
    (met,) = pass_gate(masks[name], run, [HELD]).met
    assert met.claim == COMPACT


@pytest.mark.parametrize("name", [SMALLER, BENIGN])
def test_no_other_mask_of_the_run_passes_for_it(
    name: str, folder: Path, masks: dict[str, Mask], run: Path, tmp_path: Path
) -> None:
    other = run / "masks" / file_of(name)
    done = call("prune", folder, other, "--run", run, "--require", HELD, "-o", tmp_path / "cut")
    assert done.returncode == 2
    assert "is not about this mask" in done.stderr
    assert f"got: {MASKS[name][2]}, seed 0 of aligned" in done.stderr
    assert "allowed: generation, q = 0.004, seed 0 of aligned; generation, q = 0.002, seed 1" in (
        done.stderr
    )
    assert not (tmp_path / "cut").exists()
    # What its own file says of it is not what the run says.
    renamed = replace(masks[name], meta={OF_RUN: {"cut": MASKS[CHOSEN][2]}})
    with pytest.raises(InputError, match="is not about this mask"):
        pass_gate(renamed, run, [HELD])


def test_a_claim_on_models_as_they_are_is_about_no_mask(masks: dict[str, Mask], run: Path) -> None:
    with pytest.raises(InputError, match="is not about this mask"):
        pass_gate(masks[CHOSEN], run, ["jailbreak=supported"])


def test_a_seed_that_denies_what_all_seeds_claim_is_heard(
    masks: dict[str, Mask], run: Path
) -> None:
    assert pass_gate(masks[CHOSEN], run, ["transfer=supported"]).met
    with pytest.raises(InputError, match="not supported by seed 1 alone"):
        pass_gate(masks[THERE], run, ["transfer=supported"])


def test_claims_are_of_cuts_and_of_no_other_factor(
    folder: Path, masks: dict[str, Mask], run: Path, tmp_path: Path
) -> None:
    words = ("prune", folder, run / "masks" / file_of(CHOSEN), "-o", tmp_path / "cut")
    done = call(*words, "--run", run, "--require", HELD, "--alpha", "0.5")
    assert done.returncode == 2
    assert "--alpha 0.5" in done.stderr
    with pytest.raises(InputError, match="about weights that are cut"):
        pass_gate(masks[CHOSEN], run, [HELD], alpha=0.5)


def test_a_run_that_does_not_trace_its_masks_passes_none(masks: dict[str, Mask], run: Path) -> None:
    (run / "cuts.json").unlink()
    assert pass_gate(masks[CHOSEN], run).others
    with pytest.raises(InputError, match=r"--resume`; nothing is measured"):
        pass_gate(masks[CHOSEN], run, [HELD])


@pytest.mark.parametrize("place", ["masks", "run", "below", "here"])
def test_a_mask_is_bound_by_its_run_wherever_that_is_found(
    place: str,
    folder: Path,
    masks: dict[str, Mask],
    bound: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path if place == "here" else folder)
    there = {
        "masks": bound / "masks",
        "run": bound,
        "below": tmp_path / "mine",
        "here": tmp_path / "far" / "away" / "from" / "it",
    }[place]
    there.mkdir(parents=True, exist_ok=True)
    for name in (CHOSEN, SMALLER):
        source, target = bound / "masks" / file_of(name), there / file_of(name)
        if source != target:
            shutil.copyfile(source, target)
    chosen, smaller = there / file_of(CHOSEN), there / file_of(SMALLER)
    assert pass_gate(Mask.load(chosen), None, source=chosen).met
    with pytest.raises(InputError, match="is not about this mask"):
        pass_gate(Mask.load(smaller), None, source=smaller)
    assert pass_gate(Mask.load(smaller), None, ["none"], source=smaller).waived


def test_commands_and_functions_are_bound_without_the_folder(
    folder: Path, bound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen, smaller = (bound / "masks" / file_of(name) for name in (CHOSEN, SMALLER))
    ok("prune", folder, chosen, "-o", tmp_path / "cut")
    card = (tmp_path / "cut" / "README.md").read_text("utf-8")
    assert f"and met:** `{HELD}`." in card
    assert f"| compactness | {COMPACT} | supported |" in card
    assert "| run: require | compactness=supported |" in card
    for words in (
        ("prune", folder, smaller),
        ("mask", "patch", smaller),
        ("mask", "push", smaller),
    ):
        output = ["me/mask"] if "push" in words else ["-o", tmp_path / "no.patch.safetensors"]
        done = call(*words, *output)
        assert done.returncode == 2, words
        assert "is not about this mask" in done.stderr
    with pytest.raises(InputError, match="is not about this mask"):
        export_checkpoint(folder, Mask.load(smaller), tmp_path / "no")
    ok("mask", "patch", smaller, "--require", "none", "-o", tmp_path / "waived.safetensors")


def test_a_mask_far_from_its_run_still_says_what_that_requires(
    bound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / "far" / "away"
    shutil.copytree(bound / "masks", far)
    monkeypatch.chdir(far)
    place = far / file_of(CHOSEN)
    mask = Mask.load(place)
    with pytest.raises(InputError, match="compactness=supported is required, and nothing says"):
        pass_gate(mask, None, source=place)
    assert pass_gate(mask, bound, source=place).met
    # What is made of its masks was measured by no run at all.
    pair = {name: Mask.load(far / file_of(name)) for name in (CHOSEN, SMALLER)}
    joined = combine("subtract", pair)
    with pytest.raises(InputError, match="nothing says what was measured"):
        pass_gate(joined, None)
    with pytest.raises(MismatchError):
        pass_gate(joined, bound)


def test_what_an_older_mask_does_not_say_is_said(
    folder: Path, masks: dict[str, Mask], bound: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    measured: dict[str, object] = {
        "verdict": "supported",
        "config": hash_value(yaml.safe_load(dumped(bound))),
    }
    measured |= {"rows": [], "attack": "none", "judge": "exact", "prompts": 8}
    old = Mask(masks[CHOSEN].tensors, {"measured": measured})
    far = tmp_path / "far" / "away" / file_of(CHOSEN)
    old.save(far)
    monkeypatch.chdir(far.parent)
    done = call("prune", folder, far, "-o", tmp_path / "cut")
    assert done.returncode == 0
    assert "whether it requires a verdict is not known" in done.stderr
    card = (tmp_path / "cut" / "README.md").read_text("utf-8")
    assert "**Not known:** the mask is of a run with the configuration" in card
    # Beside the run it is known.
    near = tmp_path / "near.mask.safetensors"
    old.save(near)
    assert pass_gate(old, None, source=near).required
    # A mask that names no run is known by where it lies.
    plain = bound / "masks" / file_of(CHOSEN)
    Mask(masks[CHOSEN].tensors, {}).save(plain)
    assert pass_gate(Mask.load(plain), None, source=plain).required
    assert not pass_gate(Mask.load(plain), None).required


def dumped(run: Path) -> str:
    return (run / "config.yaml").read_text("utf-8")


def test_a_verdict_that_was_copied_to_another_mask_is_none(masks: dict[str, Mask]) -> None:
    measured = {"verdict": "supported", "mask": masks[CHOSEN].hash}
    chosen = replace(masks[CHOSEN], meta={"measured": measured})
    assert pass_gate(chosen, None, ["chosen=supported"]).met
    with pytest.raises(InputError, match="nothing says what was measured"):
        pass_gate(replace(masks[BENIGN], meta=chosen.meta), None, ["chosen=supported"])


def test_a_run_writes_into_its_masks_for_what_they_are(tmp_path: Path) -> None:
    config = invented_config({"compactness": {}}).model_copy(
        update={"require": {"compactness": "supported"}}
    )
    kept = Masks(config, tmp_path, 0.1)
    subject = Subject.__new__(Subject)
    object.__setattr__(subject, "role", "aligned")
    object.__setattr__(subject, "seed", 3)
    cut = Cut("generation", "target", 0.002)
    entry = MaskTensor((4,), torch.tensor([1]), torch.ones(1), torch.zeros(1, dtype=torch.uint8))
    path = mask_path(tmp_path, "aligned", 3, cut)
    kept._saved(Mask({"w": entry}, {"q": 1}), subject, cut, path)
    assert Mask.load(path).meta == {
        "q": 1,
        OF_RUN: {
            "config": hash_value(yaml.safe_load(dump_config(config))),
            "role": "aligned",
            "seed": 3,
            "cut": "generation, q = 0.002",
            "require": {"compactness": "supported"},
        },
    }
