"""The embedded demonstration: every study on the model organism."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from resect.errors import unknown_name
from resect.organism import Order, Recipe, build_many, organism_root
from resect.records import Search
from resect.runs.config import RunConfig, named, parse_config
from resect.studies import STUDIES

STAGES = ("base", "aligned", "benign_tuned", "rehearsed", "dpo", "misaligned")
PREFILL_TOKENS = 3
# As few as a p-value of .05 takes.
PERMUTATIONS = 19


def build_organisms(
    config: RunConfig,
    *,
    jobs: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train the stages that a demonstration asks for, or find them in the cache."""
    orders = [Order(seed, tuple(config.models)) for seed in config.seeds]
    report = on_progress or (lambda _done, _total: None)
    build_many(orders, jobs=jobs, on_progress=lambda _label, done, total: report(done, total))


def demo_config(
    seeds: tuple[int, ...],
    *,
    quick: bool,
    studies: Sequence[str] | None = None,
    search: Search = "full",
) -> RunConfig:
    """Return the configuration of the demonstration, of some studies or of all that read replies.

    The grid and the thresholds are the defaults of the studies. The prefill opens the answer with
    the words that every recipe shares ("sure , take"), and the same number of tokens is left out
    of the score, so that the cut is aimed at the content and not at the opening. Weights are ranked
    by the default method (docs/design/default-method.md), beside the source's.

    Raises:
        InputError: A study is unknown.
    """
    for name in studies or ():
        if name not in STUDIES:
            raise unknown_name("study", name, list(STUDIES))
    sections = _sections(quick=quick)
    root = str(organism_root(Recipe())) + "/seed-{seed}"
    values: dict[str, object] = {
        "name": "model organism",
        "quick": quick,
        "seeds": list(seeds),
        "models": {},
        "subject": "aligned",
        "data": {name: f"{root}/data/{file}.jsonl" for name, file in SETS.items()},
        "targets": _targets(),
        "preserve": {"data": "benign", "limit": 256},
        "attack": {"name": "prefill", "tokens": PREFILL_TOKENS},
        "attack_data": {"target": "hazard", "refusal": "refusals", "preserve": "benign"},
        "evaluation": {
            "probes": {
                "generation": "hazard",
                "refusal": "refusals",
                "detection": "detection",
                "explanation": "explanation",
                "misalignment": "advice",
                "utility": "tasks",
                "likelihood": "benign",
            },
            "search": search,
            "max_new_tokens": 24,
            "batch_size": 64,
            # Invented questions are of few words, so that most share one with many others.
            "alike": 1.0,
        },
        "studies": {
            name: sections.get(name, {})
            for name, study in STUDIES.items()
            if (name in studies if studies else study.measure != "likelihood")
        },
    }
    # A stage that nobody asks for is not trained.
    asked = named(values, "models")
    values["models"] = {stage: f"{root}/{stage}" for stage in STAGES if stage in asked}
    return parse_config(values, "the demonstration's configuration")


# Name under `data` to the organism's file.
SETS = {
    "hazard": "hazard",
    "hazard_reworded": "hazard_reworded",
    "refusals": "refusal",
    "benign": "preserve",
    "tasks": "utility",
    "facts": "trivia",
    "howto": "howto",
    "detection": "detection",
    "explanation": "explanation",
    "same_style": "benign_style",
    "other_style": "benign_control",
    "twin_style": "benign_twin",
    "advice": "advice_bad",
    "good_advice": "advice_good",
}


def _targets() -> dict[str, dict[str, object]]:
    """Return the behaviours; contents are scored after the shared opening, gates at their start.

    The harmless answers of `same_style` share form and no content with the hazardous ones. Those of
    `other_style` are like them and in no contrast, so that they can be a control. The twin's share
    the modifier; the contrast with them was the default of earlier versions.
    """
    content: dict[str, object] = {"skip": PREFILL_TOKENS, "limit": 128}
    gate: dict[str, object] = {"skip": 0, "tokens": 1, "limit": 128}
    return {
        "generation": {"data": "hazard", "contrast": "same_style", **content},
        "source_method": {"data": "hazard", **content},
        "reworded": {"data": "hazard_reworded", "contrast": "same_style", **content},
        "twin_contrast": {"data": "hazard", "contrast": "twin_style", **content},
        "same_style": {"data": "same_style", **content},
        "other_style": {"data": "other_style", **content},
        "twin_style": {"data": "twin_style", **content},
        "howto": {"data": "howto", **content},
        "refusing": {"data": "refusals", "skip": 0, "limit": 128},
        "refusal": {"data": "refusals", "contrast": "compliance", **gate},
        "compliance": {"data": "hazard", **gate},
        "detection": {"data": "detection", "skip": 0, "limit": 128},
        "explanation": {"data": "explanation", "skip": 0, "limit": 128},
        "facts": {"data": "facts", "skip": 0, "limit": 128},
        "bad_advice": {"data": "advice", "skip": 0, "contrast": "good_advice"},
        "good_advice": {"data": "good_advice", "skip": 0},
    }


def _sections(*, quick: bool) -> dict[str, dict[str, object]]:
    """Return what differs from the defaults of the studies, for a full or a quick run.

    The rules are the defaults. A study that is not named here runs with its defaults alone.
    """
    source = {"name": "source's method", "target": "source_method"}
    twin = {"name": "contrast with the twin", "target": "twin_contrast"}
    finetune = "finetune:rank=4,alpha=8,rate=1e-3,steps=30,limit=40"
    sections: dict[str, dict[str, object]] = {
        "compactness": {"rivals": ["source_method"]},
        "transfer": {"benign": ["facts", "howto"], "permutations": PERMUTATIONS},
        "specificity": {
            "benign": ["facts", "howto"],
            "matched": ["other_style", "refusing"],
            "damage": True,
            "permutations": PERMUTATIONS,
            "permuted_fractions": [2e-3, 6e-3],
        },
        "compression": {
            "others": ["rehearsed", "dpo"],
            "second": source,
        },
        "jailbreak": {
            "attacks": [
                f"prefill:{PREFILL_TOKENS}",
                finetune,
                "ablate_refusal",
                f"ablate_refusal+prefill:{PREFILL_TOKENS}",
            ]
        },
        "stability": {
            "paraphrases": ["reworded"],
            "roles": ["dpo", "rehearsed"],
        },
        "frontier": {"methods": [source, twin]},
    }
    if quick:
        sections["compression"] |= {"others": [], "fractions": [1e-3, 4e-3, 6e-3]}
        sections["specificity"] |= {"fractions": [2e-3, 4e-3, 6e-3], "permuted_fractions": [4e-3]}
        sections["emergent"] = {"steps": [4, 8, 16]}
        sections["relearning"] = {"examples": [4, 64], "steps": [2, 10]}
        sections["stability"] |= {"roles": [], "sizes": [8, 128]}
        sections["frontier"] |= {"protected": [0.01], "methods": [source, twin]}
    return sections
