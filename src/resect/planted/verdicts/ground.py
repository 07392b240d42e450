"""The run that is simulated: its roles, sets and targets, and the sections of the studies."""

from __future__ import annotations

from pathlib import Path

from resect.files import write_text
from resect.planted.verdicts.simulate import HARM_TYPES, Size
from resect.studies import STUDIES
from resect.studies.design import Design, Evaluation, Method, Preserve, Section, Target

PROBES = ("generation", "refusal", "detection", "explanation", "misalignment", "utility")
# What a study asks that reads likelihoods alone.
READ = ("generation", "utility", "trivia", "same_style", "prose", "prompts")
ROLES = ("aligned", "base", "benign_tuned", "misaligned")
TARGETS = ("generation", "benign", "matched", "refusal", "detection", "explanation", "bad_advice")
SETS = ("hazard", "benign", "advice", *dict.fromkeys((*PROBES, *READ)))
RIVAL = "rival"
# What is added to the defaults of a study, so that all of its claims are made.
SECTIONS: dict[str, dict[str, object]] = {
    "compression": {"second": Method(name="second ranking", target=RIVAL)},
    "selectivity": {"rivals": (RIVAL,)},
    "frontier": {"methods": (Method(name="rival ranking", target=RIVAL),)},
}


def section_of(study: str) -> Section:
    """Return the section of a study as it is shipped, with what its other claims need."""
    section: Section = STUDIES[study].section(**SECTIONS.get(study, {}))
    return section


def design_of(size: Size, folder: Path, study: str = "") -> Design:
    """Return the design of a simulated run.

    Args:
        size: How many models it has, and whether these are asked the same prompts.
        folder: Where `write_sets` has put the sets.
        study: What it measures is what this study reads; "" for replies.
    """
    read = study != "" and STUDIES[study].measure == "likelihood"
    evaluation = (
        Evaluation(probes={name: name for name in READ}, measure="likelihood")
        if read
        else Evaluation(probes={name: name for name in PROBES})
    )
    place = "all" if size.same_prompts else "seed-{seed}"
    data = {name: f"{folder}/{place}/{name}.jsonl" for name in SETS}
    return Design(
        name="simulated",
        seeds=tuple(range(size.models)),
        models={role: role for role in ROLES},
        data=data,
        targets={name: Target(data="hazard") for name in (*TARGETS, RIVAL)},
        preserve=Preserve(data="benign"),
        evaluation=evaluation,
    )


def write_sets(size: Size, folder: Path) -> None:
    """Write the only set that a study looks into: the categories of the target's examples."""
    places = ["all"] if size.same_prompts else [f"seed-{seed}" for seed in range(size.models)]
    lines = "".join(
        f'{{"prompt": "{name}", "completion": "{name}", "category": "{name}"}}\n'
        for name in HARM_TYPES
    )
    for place in places:
        write_text(folder / place / "hazard.jsonl", lines)
