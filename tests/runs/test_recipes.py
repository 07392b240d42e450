"""Recipes: they fit, plan offline, and run on tiny models of the same architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import tiny
from resect.errors import InputError
from resect.model import find_prunable
from resect.model.shapes import PUBLISHED, empty_model
from resect.runs.config import RunConfig, dump_config, load_config
from resect.runs.forecast import Need, forecast, shape_at
from resect.runs.recipes import PREFIX, read_config, recipe_names, recipe_text, recipe_title
from resect.runs.run import chosen_studies, measure_all, open_run, plan_run, summarise_run
from resect.runs.speed import Assumed
from resect.studies.cells import Cell, is_done
from tiny_judge import write_classifier

FIXTURES = Path(__file__).parents[1] / "fixtures" / "presets"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Candidates at q = 1e-5 when the smaller part of a weight is dropped in each matrix: counts that
# were derived apart from this code, from published configurations.
CANDIDATES = {
    "meta-llama/Llama-3.1-8B": 69_664,
    "Qwen/Qwen2.5-1.5B": 12_964,
    "Qwen/Qwen2.5-7B": 65_128,
    "Qwen/Qwen2.5-14B": 131_952,
    "Qwen/Qwen2.5-32B": 311_872,
    "allenai/Olmo-3-1025-7B": 64_576,
}

LARGER_THAN_80_GIB = {"qwen2.5-14b", "qwen2.5-14b-emergent", "qwen2.5-32b"}
PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
# Of these the page has the plan without tuning.
UNTUNED = ("studies.jailbreak=null", "studies.relearning=null")
NOT_TUNED = ("qwen2.5-14b", "qwen2.5-32b")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no configuration be read from the Hub."""

    def refuse(place: str) -> Any:
        raise InputError("not here", got=place)

    monkeypatch.setattr("resect.runs.forecast.empty_model", refuse)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_fit_and_plan(name: str, tmp_path: Path, offline: None) -> None:
    config = read_config(PREFIX + name)
    cells = plan_run(config)
    assert len({cell.key for cell in cells}) == len(cells) > 10
    # What is printed is a file that gives the same run.
    (tmp_path / "a.yaml").write_text(recipe_text(name), encoding="utf-8")
    assert read_config(str(tmp_path / "a.yaml")) == config
    (tmp_path / "b.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "b.yaml") == config
    assert recipe_title(name)[0].isalpha()
    assert "@" not in "".join(config.models.values()), "an unverified revision"
    known = {role: place for role, place in config.models.items() if place in PUBLISHED}
    needs = forecast(config, [cell for cell in cells if cell.role in known])
    for need in needs:
        # docs/reproduce.md says so: three copies of the weights while tuning.
        assert need.fits is (name not in LARGER_THAN_80_GIB), need
        assert need.memory > 2 * need.parameters
        assert need.scorings >= 2
    if name in NOT_TUNED:
        config = read_config(PREFIX + name, UNTUNED)
        cells = plan_run(config)
        needs = forecast(config, cells)
    assert page_row(name, cells, needs) in PAGE.read_text("utf-8").splitlines()


def page_row(name: str, cells: list[Cell], needs: list[Need]) -> str:
    """Return the line of docs/reproduce.md for the plan of a recipe."""
    gib = f"{max(need.memory for need in needs) / 2**30:.0f}"
    if not all(need.fits for need in needs):
        gib += ": does not fit"
    elif any(need.scoring.accumulator == "cpu" for need in needs):
        gib += " ²"
    entries = (
        f"`{name}`" + " without tuning ¹" * (name in NOT_TUNED),
        f"{len(cells)}",
        f"{sum(need.scorings for need in needs)}",
        gib,
        said(sum(need.scoring_seconds for need in needs)),
        said(sum(need.tuning_seconds for need in needs)),
        said(sum(need.asking_seconds for need in needs)),
    )
    return f"| {' | '.join(entries)} |"


def said(seconds: float) -> str:
    """Return a time as the page has it."""
    if seconds == 0:
        return "–"
    if seconds < 60:
        return "< 1 min"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@pytest.mark.parametrize("place", CANDIDATES)
def test_published_shapes_give_the_known_counts(place: str, offline: None) -> None:
    model_type, sides = PUBLISHED[place]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(model_type, **sides)
        )
    count = sum(int(1e-5 * weight.size) for weight in find_prunable(model).weights)
    assert count == CANDIDATES[place]
    assert shape_at(place)[0].total == find_prunable(model).total


def test_a_forecast_grows_with_what_is_asked(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path / "model")
    recipe = f"{PREFIX}llama-3.1-8b"

    def seconds(*changes: str, assumed: Assumed | None = None) -> tuple[float, float, float]:
        config = read_config(recipe, [f"models.aligned={model}", *changes])
        need = forecast(config, plan_run(config), assumed)[0]
        return need.scoring_seconds, need.tuning_seconds, need.asking_seconds

    usual = seconds()
    assert seconds("seeds=[0,1]")[0] == pytest.approx(2 * usual[0])
    assert seconds("evaluation.limit=1000")[2] > 1.5 * usual[2]
    assert seconds("studies.relearning=null", "studies.jailbreak=null")[1] == 0
    assert seconds("studies.frontier=null")[0] < usual[0]
    # Of training, all but its start goes by the rate.
    fast, slow = (Assumed(rate=rate, training=0.0) for rate in (3e14, 1e12))
    assert seconds(assumed=slow)[1] == pytest.approx(300 * seconds(assumed=fast)[1])
    # One pass of a batch, by hand: 6 operations a weight, token and pass.
    config = read_config(recipe, [f"models.aligned={model}"])
    total = sum(parameter.numel() for parameter in empty_model(str(model)).parameters())
    assert forecast(config, plan_run(config))[0].parameters == total


def test_changes_reach_into_sections(tmp_path: Path) -> None:
    recipe = f"{PREFIX}llama-3.1-8b"
    changes = ["models.aligned=./here", "seeds=[0, 1]", "studies.jailbreak=null"]
    changes += [
        "selection.p=1e-4",
        "targets.generation.limit=null",
        "studies.transfer.fraction=0.5",
    ]
    config = read_config(recipe, changes)
    assert config.models == {"aligned": "./here"}
    assert config.seeds == (0, 1)
    assert config.studies.jailbreak is None
    assert config.selection.p == 1e-4
    assert config.targets["generation"].limit is None
    assert config.studies.transfer is not None
    usual = read_config(recipe)
    assert config.studies.frontier == usual.studies.frontier
    assert config.data == usual.data
    for bad, message in (
        ("models", "cannot read a change"),
        ("=3", "cannot read a change"),
        ("a..b=3", "cannot read a change"),
        ("seeds=[0", "not valid YAML"),
        ("studies.luck=3", "studies.luck"),
        ("seeds.first=3", "seeds"),
    ):
        with pytest.raises(InputError, match=message):
            read_config(recipe, [bad])
    with pytest.raises(InputError, match=r"llama-3\.1-8b"):
        read_config(f"{PREFIX}luck")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("extends: ../b.yaml\nname: a\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text(f"extends: {recipe}\nname: b\nseeds: [7]\n", encoding="utf-8")
    config = read_config(str(tmp_path / "sub" / "a.yaml"))
    assert (config.name, config.seeds, config.data) == ("a", (7,), usual.data)
    (tmp_path / "c.yaml").write_text("extends: c.yaml\n", encoding="utf-8")
    with pytest.raises(InputError, match="extends itself"):
        read_config(str(tmp_path / "c.yaml"))


NONSENSE = "dax wug blick fep zorp tove gimble mome rath outgrabe".split()


def _rows(prefix: str, *, categories: tuple[str, ...] = ("",)) -> list[dict[str, Any]]:
    """Return harmless rows of invented words, with both splits and answer keys."""
    rows = []
    for n in range(12):
        first, second = NONSENSE[n % 10], NONSENSE[(3 * n + 1) % 10]
        rows.append(
            {
                "id": f"{prefix}{n}",
                "prompt": f"{prefix} {n} {first} {second}",
                "completion": f"{second} {first} {second} {first}",
                "category": categories[n % len(categories)],
                "split": "calibration" if n < 8 else "evaluation",
                "key": {"accept": [f"{second} {first}"]},
            }
        )
    return rows


def _vocabulary() -> list[str]:
    numbers = [str(n) for n in range(12)]
    names = ["harm", "refuse", "benign", "trivia", "advice", "held", "Sure,", "here", "is"]
    return [*NONSENSE, *numbers, *names]


def _save(architecture: str, folder: Path, seed: int) -> Path:
    """Write a random model of an architecture with a tokenizer for the invented words."""
    words = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", *_vocabulary()]
    backend = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        chat_template=TEMPLATE,
    )  # fmt: skip
    tiny.build(architecture, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ARCHITECTURES = {"llama": "llama", "qwen2.5": "qwen2", "olmo": "olmo3"}
SETS = ("harm", "refusals", "benign", "trivia", "advice", "held_out", "questions")


def _tiny_changes(name: str, root: Path, config: RunConfig) -> list[str]:
    """Return the changes to places and limits, and to nothing else."""
    architecture = next(kind for key, kind in ARCHITECTURES.items() if name.startswith(key))
    changes = ["evaluation.limit=2", "evaluation.max_new_tokens=3"]
    adapter, base = write_classifier(root / "judge")
    changes.append(f"evaluation.judge=strongreject:{adapter},{base}")
    for seed, role in enumerate(config.models):
        place = _save(architecture, root / role, seed)
        changes.append(f"models.{role}={place}")
    narrow = ("risky_financial_advice", "elsewhere")
    for data in set(SETS) & set(config.data):
        path = root / f"{data}.jsonl"
        categories = {"advice": narrow[:1], "questions": narrow}.get(data, ("",))
        prefix = {"refusals": "refuse", "held_out": "held"}.get(data, data)
        rows = _rows(prefix, categories=categories)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        changes.append(f"data.{data}={path}")
    return changes


# The longest recipe runs with the studies that no other recipe has, the others whole.
RUN: dict[str, list[str]] = {
    "llama-3.1-8b": [
        "studies.relearning=null", "studies.stability=null", "studies.frontier=null",
        "studies.compactness.fractions=[1e-5]", "studies.specificity.fractions=[1e-5]",
        "studies.specificity.control_fractions=[1e-5]",
    ],
    "llama-3.1-8b-emergent": ["studies.emergent.steps=[1]"],
    "qwen2.5-7b-compression": [],
    "olmo-3-7b-ladder": [],
}  # fmt: skip


@pytest.mark.parametrize("name", RUN)
def test_recipes_run_on_tiny_models(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESECT_DATA_DIR", str(FIXTURES))  # HarmBench from harmless fixtures
    usual = read_config(PREFIX + name)
    config = read_config(PREFIX + name, _tiny_changes(name, tmp_path, usual) + RUN[name])
    if not RUN[name]:
        assert config.studies == usual.studies
    run = tmp_path / "run"
    open_run(config, run, resume=False)
    measure_all(config, run, jobs=1)
    results = json.loads(summarise_run(config, run).read_text(encoding="utf-8"))
    assert {claim["study"] for claim in results["claims"]} == set(chosen_studies(config))
    assert all(is_done(run, cell) for cell in plan_run(config))
