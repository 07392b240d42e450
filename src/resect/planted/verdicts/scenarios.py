"""All scenarios: the worlds of each study and the spoiled ones, with plain and graded answers.

A study that is added gets its worlds here; `tests/planted/verdicts/` asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from resect.errors import InputError, unknown_name
from resect.planted.verdicts.apart import dissociation, stability, transfer
from resect.planted.verdicts.located import compactness, compression, frontier, specificity
from resect.planted.verdicts.read import selectivity
from resect.planted.verdicts.scenario import Scenario
from resect.planted.verdicts.spoiled import spoiled
from resect.planted.verdicts.trained import emergent, jailbreak, relearning
from resect.studies import STUDIES

WORLDS: dict[str, Callable[[], list[Scenario]]] = {
    "compactness": compactness,
    "transfer": transfer,
    "specificity": specificity,
    "compression": compression,
    "dissociation": dissociation,
    "emergent": emergent,
    "jailbreak": jailbreak,
    "relearning": relearning,
    "stability": stability,
    "frontier": frontier,
    "selectivity": selectivity,
}
# Words of an answer: one is right or wrong, five give shares. What is read has none.
WORDS = (1, 5)


def scenarios_of(study: str) -> list[Scenario]:
    """Return the worlds of a study; the first is one in which all of its claims are true.

    Raises:
        InputError: No study has this name, or no worlds are known for it.
    """
    if study not in STUDIES:
        raise unknown_name("study", study, list(STUDIES))
    if study not in WORLDS:
        raise InputError(f"no worlds are known for {study}", allowed=", ".join(WORLDS))
    worlds = WORLDS[study]()
    worlds += spoiled(worlds[0])
    answers = WORDS if STUDIES[study].measure is None else WORDS[:1]
    return [
        replace(world, size=replace(world.size, words=words))
        for words in answers
        for world in worlds
    ]


def all_scenarios(studies: Sequence[str] = ()) -> list[Scenario]:
    """Return the worlds of some studies, or of all that have worlds."""
    return [scenario for study in studies or WORLDS for scenario in scenarios_of(study)]
