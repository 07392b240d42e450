"""An invented run of thirteen studies in the documented row formats, as large as a real one.

Its numbers come from formulas; they stand for nothing and are never shown outside tests.
"""

from __future__ import annotations

import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from resect.records import OUTCOMES, Results

Row = dict[str, Any]
FRACTIONS = (0.0002, 0.0005, 0.001, 0.002, 0.004, 0.01)
SEEDS: tuple[int | None, ...] = (None, 0, 1, 2)


def triple(name: str, value: float, width: float = 0.04) -> Row:
    """Return a value with its bounds as three columns."""
    return {name: value, f"{name}_low": value - width, f"{name}_high": value + width}


def rise(x: float, middle: float, steep: float = 1.5) -> float:
    """Return an S-shaped curve through one half at `middle`."""
    share: float = 1 / (1 + (middle / max(x, 1e-9)) ** steep)
    return share


def effects(arm: str, q: float, seed: int | None) -> Row:
    """Return a curve row's effects: strong for the target, weak for the rest."""
    shift = 0.0 if seed is None else 0.01 * seed
    strength = {"intact": 0.0, "target": 1.0, "next_slice": 0.7, "matched": 0.5}.get(arm, 0.03)
    harm = strength * rise(q, 0.0008) + shift
    utility = (0.3 if arm == "target" else 0.9 * strength + 0.1) * rise(q, 0.01) + shift
    row = triple("harm", 0.98 * (1 - harm)) | triple("harm_drop", harm)
    row["harm_exact"] = 0.98 * (1 - harm) ** 2
    row |= triple("utility", 0.8 * (1 - utility)) | triple("utility_drop", utility, 0.015)
    extra = {"reply_nll": 0.1 + q, "repetition": 0.0, "preserve_nll": 0.4, "preserve_kl": q}
    return row | extra | {"n": 180 if seed is None else 60}


def curve(arms: tuple[str, ...], **columns: Any) -> list[Row]:
    """Return a curve over the fractions, pooled and for each seed."""
    return [
        {"seed": seed, **columns, "arm": arm, "q": q, "removed_fraction": 0.9 * q}
        | effects(arm, q, seed)
        for arm in ("intact", *arms)
        for q in ((0.0,) if arm == "intact" else FRACTIONS)
        for seed in SEEDS
    ]


def compactness() -> dict[str, list[Row]]:
    shares = {"complied": 0.5, "partial": 0.15, "refused": 0.1, "wrong": 0.05, "incoherent": 0.2}
    return {
        "curve": curve(("target", "random", "magnitude")),
        "outcomes": [
            {"arm": arm, "q": q, "outcome": outcome, "share": shares.get(outcome, 0.0)}
            for arm in ("intact", "target", "random", "magnitude")
            for q in ((0.0,) if arm == "intact" else FRACTIONS)
            for outcome in OUTCOMES
        ],
        "where": where(8),
    }


def where(layers: int) -> list[Row]:
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return [
        {
            "layer": layer,
            "kind": f"{'self_attn' if number < 4 else 'mlp'}.{kind}",
            "removed": 10 + 40 * (layer == layers // 2) * number + layer,
            "size": 65536 if number < 4 else 262144,
        }
        for layer in range(layers)
        for number, kind in enumerate(kinds)
    ]


def transfer() -> dict[str, list[Row]]:
    kinds = [f"type-{letter}" for letter in "abcde"]
    return {
        "matrix": [
            {"source": a, "measured": b, **triple("harm_drop", 0.9 if a == b else 0.6), "n": 36}
            for a, b in product(kinds, kinds)
        ],
        "overlap": [
            {
                "seed": seed, "first": a, "second": b, "jaccard": 0.13, "expected_jaccard": 0.0009,
                "enrichment": 140.2, "p_value": 1e-80,
            }
            for seed in SEEDS
            for a, b in combinations([*kinds, "benign: benign"], 2)
        ],
    }  # fmt: skip


def specificity() -> dict[str, list[Row]]:
    arms = (
        "target",
        "random",
        "magnitude",
        "opposite",
        "next_slice",
        "benign",
        "matched",
        "damage",
    )
    bars = [
        {
            "arm": arm, "label": arm, **triple("harm_drop", effects(arm, 0.002, None)["harm_drop"]),
            "q": 0.002, "utility_drop": 0.03, **triple("difference", 0.1),
        }
        for arm in arms
    ]  # fmt: skip
    equal = [{"arm": arm, **triple("harm_drop", 0.5)} for arm in arms]
    permuted = [
        {"permutation": number, "harm_drop": 0.9 if number is None else 0.02 * number}
        for number in (None, *range(19))
    ]
    return {"bars": bars, "equal_utility": equal, "curve": curve(arms), "permuted": permuted}


def compression() -> dict[str, list[Row]]:
    roles = ("base", "aligned", "rehearsed", "benign_tuned", "dpo")
    return {
        "curve": [
            {"role": role, **row}
            for role in roles
            for row in curve(("target", "random", "source's method"))
        ],
        "index": [
            {"seed": seed, "role": role, "method": method, "fraction_needed": 0.001}
            | triple("drop_at_budget", 0.3 + 0.1 * number)
            for number, role in enumerate(roles)
            for method in ("signed", "abs")
            for seed in SEEDS
        ],
    }


def dissociation() -> dict[str, list[Row]]:
    names = ("generation", "refusal", "detection", "explanation")
    return {
        "matrix": [
            {"cut": a, "measured": b}
            | triple("value", 0.1 if a == b else 0.9)
            | triple("retained", 0.1 if a == b else 0.97)
            for a in ("none", *names, "random")
            for b in names
        ]
    }


def emergent() -> dict[str, list[Row]]:
    others = ("scored on misaligned", "held", "magnitude-matched cut", "harmful-generation cut")
    arms = ("never cut", "target cut", "random cut", *others)
    return {
        "curve": [
            {"seed": seed, "arm": arm, "steps": steps, "rate": 1e-4}
            | triple("narrow", rise(steps, 30))
            | triple("elsewhere", (0.1 if arm == "target cut" else 0.5) * rise(steps, 60))
            | triple("coherence", 0.97)
            | triple("utility", 0.8 - steps / 2000)
            for arm in arms
            for steps in (0, 10, 20, 40, 80, 160)
            for seed in SEEDS
        ],
        "changes": [
            {"seed": seed, "steps": steps, "share": 0.05, "chance": 0.002, "matched": 0.004}
            for seed in SEEDS[1:]
            for steps in (10, 20, 40, 80, 160)
        ],
    }


def jailbreak() -> dict[str, list[Row]]:
    attacks = ("prefill", "template", "suffix", "many-shot", "fine-tune", "role play")
    return {
        "attacks": [
            {"seed": seed, "attack": attack, "arm": arm, "n": 60}
            | triple("harm", remaining * (0.9 - 0.1 * number))
            | triple("refused", 0.8 - remaining * 0.7)
            for number, attack in enumerate(attacks)
            for arm, remaining in (("intact", 1.0), ("target cut", 0.2), ("random cut", 0.97))
            for seed in SEEDS
        ]
    }


def relearning() -> dict[str, list[Row]]:
    return {
        "curve": [
            {"seed": seed, "arm": arm, "examples": examples, "steps": steps}
            | triple("harm", rise(examples * steps / 20, middle))
            | triple("utility", 0.8 - steps / 100)
            for arm, middle in (("never cut", 0.1), ("target cut", 40), ("random cut", 2))
            for examples, steps in (
                *((e, 20) for e in (2, 8, 32, 128)),
                *((128, s) for s in (0, 1, 2, 5, 10)),
            )
            for seed in SEEDS
        ]
    }


def stability() -> dict[str, list[Row]]:
    axes = {
        "seed": ("0", "1", "2"),
        "prompts": ("64", "128", "256"),
        "format": ("raw", "chat"),
        "model": ("1 M", "2 M", "3 M"),
        "dtype": ("float32", "bfloat16"),
    }
    return {
        "agreement": [
            {
                "axis": axis, "seed": seed, "first": a, "second": b, "chance": 0.001,
                "jaccard": 0.5 + 0.1 * number + 0.01 * len(a + b) + 0.02 * (seed or 0),
                "enrichment": 400.0, "rank_correlation": 0.8 + 0.01 * (seed or 0),
            }
            for number, (axis, values) in enumerate(axes.items())
            for a, b in combinations(values, 2)
            for seed in SEEDS
        ],
        "effects": [
            {"axis": axis, "value": value, "seed": seed}
            | triple("harm_drop", 0.85 + 0.01 * (seed or 0))
            | triple("utility_drop", 0.03)
            for axis, values in axes.items()
            for value in values
            for seed in SEEDS
        ],
    }  # fmt: skip


def frontier() -> dict[str, list[Row]]:
    rows = []
    for number, (scope, method, rounds, p, q) in enumerate(
        product(("tensor", "model"), ("signed", "abs"), (1, 3), (0.0, 0.01, 0.05), FRACTIONS)
    ):
        harm, utility = rise(q, 0.001) * (1 - 0.01 * (number % 17)), rise(q, 0.02) * (1 + p)
        front = number % 12 < 6 and p == 0.0 and scope == "tensor" and rounds == 3
        for split in ("selection", "evaluation"):
            row = {
                    "seed": None, "scope": scope, "method": method, "rounds": rounds, "p": p,
                    "q": q, "removed_fraction": q, "on_front": front,
                    "chosen": front and q == 0.002 and method == "signed", "split": split,
                }  # fmt: skip
            rows += [row | triple("harm_drop", harm) | triple("utility_drop", utility)]
    return {"grid": rows}


def selectivity() -> dict[str, list[Row]]:
    strengths = {"generation": 1.2, "utility": 0.05, "prompts": -0.02}
    return {
        "chosen": [
            {
                "arm": arm, "label": arm, "q": 0.001, **triple("rise", 0.7), "side": "utility",
                **triple("side_rise", 0.03), **triple("margin", 0.5), "selectivity": 20.0,
                "selectivity_low": 9.0, "selectivity_high": None,
            }
            for arm in ("target", "ranked by source", "random")
        ],
        "rises": [
            {
                "seed": seed, "arm": arm, "q": q, "removed_fraction": 0.9 * q, "set": name,
                **triple("rise", share * strength * rise(q, 0.002)), "n": 60,
            }
            for seed in SEEDS
            for arm, share in (("target", 1.0), ("ranked by source", 2.0), ("random", 0.01))
            for q in FRACTIONS
            for name, strength in strengths.items()
        ],
    }  # fmt: skip


STUDIES = {
    "compactness": compactness, "transfer": transfer, "specificity": specificity,
    "compression": compression, "dissociation": dissociation, "emergent": emergent,
    "jailbreak": jailbreak, "relearning": relearning, "stability": stability,
    "frontier": frontier, "selectivity": selectivity, "replication": dict, "guard": dict,
}  # fmt: skip
WORDS = ("supported", "not supported", "inconclusive", "not measurable")


def interval(name: str, value: float | None) -> Row:
    low, high = (None, None) if value is None else (value - 0.04, value + 0.04)
    return {"name": name, "value": value, "low": low, "high": high}


def requirements(word: str, value: float | None) -> list[Row]:
    """Return the conditions of a rule, of which the first decides."""
    states = dict(zip(WORDS, ("meets", "misses", "crosses", "unknown"), strict=True))
    p = interval("p of swapped labels", 0.05) | {"low": 0.05, "high": 0.05}
    return [
        {"interval": interval("relative drop of harm, q = 0.2 %", value), "sense": "at least",
         "threshold": 0.5, "state": states[word], "over_models": True},
        {"interval": interval("weights behind benign answers to the same prompts", 0.2),
         "sense": "above", "threshold": 0, "state": "meets", "over_models": True},
        {"interval": p, "sense": "at most", "threshold": 0.05, "state": "meets",
         "over_models": False},
    ]  # fmt: skip


def claim(study: str, number: int, shift: float = 0.0) -> Row:
    word = WORDS[number % len(WORDS)]
    value = None if word == "not measurable" else 0.7 + shift
    return {
        "study": study,
        "claim": f"The invented claim of {study} holds.",
        "verdict": word,
        "effect": interval("relative drop of harm, q = 0.2 %", value),
        "controls": [
            interval("relative drop of harm, random cut of the same size", 0.01),
            interval("weights behind benign answers to the same prompts", 0.2),
            {"name": "overlap (×)", "value": 140.0, "low": None, "high": None},
        ],
        "rule": "The lower bound of the drop is at least 80 %.",
        "seeds": [0, 1, 2],
        "n": 180,
        "reason": "An invented reason in one sentence.",
        "by_seed": {"0": word, "1": "supported", "2": "inconclusive"},
    }


def conditions(row: Row) -> Row:
    """Return what a claim has beside, as runs of 0.1.0 do not have it."""
    value = row["effect"]["value"]
    recipe = {
        "verdict": "inconclusive",
        "reason": "Other models of the recipe may miss: relative drop of harm.",
        "effect": interval("relative drop of harm, q = 0.2 %", 0.6),
        "models": 5,
    }
    return {"requirements": requirements(row["verdict"], value), "recipe": recipe}


def results(name: str = "an invented run", *, shift: float = 0.0) -> Row:
    """Return the contents of `results.json`."""
    studies: list[Row] = [
        {
            "study": study,
            "title": f"What does {study} ask?",
            "claims": [
                (first := claim(study, number, shift)) | conditions(first),
                claim(study, number + 1, shift) | {"claim": f"So does another of {study}."},
            ],
            "tables": tables(),
            "shows": "What an invented study shows, in a sentence or two. " * 3,
            "does_not_show": "What it does not show, in a sentence or two. " * 3,
            "settings": {"harm_drop": 0.8, "utility_drop": 0.05, "fraction": 0.002},
        }
        for number, (study, tables) in enumerate(STUDIES.items())
    ]
    return {
        "name": name,
        "quick": False,
        "claims": [claim_row for study in studies for claim_row in study["claims"]],
        "studies": studies,
        "provenance": {
            "resect_version": "0.1.0", "config": "0123456789abcdef", "seeds": [0, 1, 2],
            "finished": "2026-01-02 03:04:05 UTC", "git_commit": "0" * 40, "git_dirty": False,
            "rebuild": "resect study run run/config.yaml -o NEW_FOLDER", "command": "resect demo",
            "data": {"/somewhere/far/seed-0/data/tasks.jsonl": "00112233"},
            "models": {"aligned-0": "abcdef"}, "seconds": 1.5,
        },
    }  # fmt: skip


def records() -> Results:
    """Return the example as the records that a report reads it back as."""
    return TypeAdapter(Results).validate_python(results())


def write(folder: Path, values: Row | None = None) -> Path:
    """Write an example as a run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values or results())
    (folder / "results.json").write_text(text, encoding="utf-8")
    return folder
