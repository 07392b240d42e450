"""Evaluate one model on several sets: `resect eval --data A --data B`.

Each set is an evaluation of its own, in a folder of its own under the output, as if it had been
asked for alone. `sets.json` beside them names the folders. Where a probe has fewer sets than
others, the later folders are without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from resect import files
from resect.data.load import name_of
from resect.errors import InputError
from resect.evaluation.differences import SETS
from resect.evaluation.evaluate import (
    EvalRequest,
    Evaluation,
    evaluate_model,
    probe_sets,
    specs_of,
)
from resect.model import load_model


def split_sets(request: EvalRequest) -> dict[str, EvalRequest]:
    """Return a request for each set, by its name; a single one has the name "".

    Raises:
        InputError: A probe is put to one set twice.
    """
    specs = specs_of(request)
    count = max((len(of_probe) for of_probe in specs.values()), default=0)
    for name, of_probe in specs.items():
        if len(set(of_probe)) < len(of_probe):
            raise InputError(f"the probe {name!r} has one set twice", got=", ".join(of_probe))
    if count < 2:
        return {"": request}
    requests: dict[str, EvalRequest] = {}
    for number in range(count):
        asked = {
            name: of_probe[number] for name, of_probe in specs.items() if number < len(of_probe)
        }
        title = re.sub(r"[^A-Za-z0-9._-]+", "-", name_of(next(iter(asked.values())))).strip(".")
        label = title or "set"
        while label in requests:
            label = f"{title}-{number + 1}"
        requests[label] = replace(
            request,
            probes=tuple(asked),
            data=tuple(f"{name}={spec}" for name, spec in asked.items()),
        )
    return requests


def evaluate_sets(
    request: EvalRequest, output: Path, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Evaluation]:
    """Evaluate each set of a request, with one model in memory.

    Args:
        request: What to ask whom.
        output: New folder: that of the evaluation, or for several sets a folder of such folders.
        on_progress: Called with variants done and variants in all.

    Returns:
        The evaluation of each set by its name; a single one has the name "".

    Raises:
        InputError: Something in the request cannot be used as given.
    """
    requests = split_sets(request)
    if len(requests) == 1:
        return {"": evaluate_model(request, output, on_progress)}
    files.refuse_full_folder(output)
    for asked in requests.values():
        probe_sets(asked)
    loaded = load_model(request.model) if request.backend == "hf" else None
    each = 1 if request.mask is None else 2
    evaluations: dict[str, Evaluation] = {}
    with files.atomic_folder(output) as folder:
        for number, (name, asked) in enumerate(requests.items()):

            def report(done: int, _total: int, begun: int = number * each) -> None:
                if on_progress is not None:
                    on_progress(begun + done, len(requests) * each)

            evaluations[name] = evaluate_model(asked, folder / name, report, loaded=loaded)
        files.write_json(folder / SETS, {"sets": list(evaluations)})
    return evaluations
