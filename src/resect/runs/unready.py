"""What cannot be measured is refused before anything is located, which may take hours."""

from __future__ import annotations

from collections.abc import Sequence

from resect.evaluation.attacks import parse_attack, shots_for, sought_on
from resect.evaluation.likelihood import refuse_without_answers
from resect.evaluation.probes import find_probe
from resect.evaluation.tasks import TaskSet
from resect.runs.config import RunConfig
from resect.runs.sets import Sets
from resect.studies.cells import Cell


def refuse_unready(config: RunConfig, cells: Sequence[Cell], sets: Sets) -> None:
    """Refuse cells whose questions or attacks lack something.

    Args:
        config: The run's configuration.
        cells: What is to be measured.
        sets: Its behaviour sets.

    Raises:
        InputError: A set has no likelihood that could be measured, an attack cannot be read, it has
            no set for a role, or it wants more examples than there are.
    """
    if config.evaluation.measure == "likelihood":
        _refuse_without_answers(cells, sets)
    _refuse_attacks(config, cells, sets)


def _refuse_without_answers(cells: Sequence[Cell], sets: Sets) -> None:
    asked = {(probe, cell.seed): None for cell in cells for probe in cell.probes}
    for probe, seed in asked:
        data = sets.asked(probe, seed)
        if not isinstance(data, TaskSet):
            refuse_without_answers(probe, data)


def _refuse_attacks(config: RunConfig, cells: Sequence[Cell], sets: Sets) -> None:
    questions = {(cell.attack, cell.seed, probe): None for cell in cells for probe in cell.probes}
    for attack, seed, probe in questions:
        if not attack:
            continue
        settings = parse_attack(attack)
        for role in settings.roles:
            if role not in config.attack_data:
                sets.of_attack(role, seed)  # says so
        if settings.shots is None and settings.suffix is None:
            continue
        if settings.opens(probe, default=find_probe(probe).attacked):
            data = {role: sets.of_attack(role, seed) for role in settings.roles}
            shots_for(settings, data, sets.asked(probe, seed).examples)
            sought_on(settings, data)
