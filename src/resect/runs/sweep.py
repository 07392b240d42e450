"""A frontier for any model and data: the configuration behind `resect sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resect.errors import InputError
from resect.files.reading import read_json
from resect.records import DecodingMode, Format, Search
from resect.runs.config import RunConfig, parse_config, read_values

# What an 8B model lives at; a grid of one's own is a file.
FRACTIONS = (1e-6, 5e-6, 1e-5, 2e-5, 5e-5)
PROTECTED = (5e-5, 1e-3)
# What a request says of how variants are asked, by the names of the configuration.
ASKED_WITH = ("batch_size", "together", "check_together", "search", "decoding")


@dataclass(frozen=True)
class SweepRequest:
    """The options of `resect sweep`, see its help; a grid file goes before the two tuples."""

    model: str
    target: str
    preserve: str
    evaluation: str | None = None
    utility: str | None = None
    contrast: str | None = None
    rounds: int = 1
    grid: Path | None = None
    fractions: tuple[float, ...] = FRACTIONS
    protected: tuple[float, ...] = PROTECTED
    attack: str = "prefill"
    prefill_tokens: int = 10
    phrase: str | None = None
    judge: str = "keyword"
    format: Format = "chat"
    skip: int = 0
    limit: int | None = None
    prompts: int | None = None
    budget: float = 0.05
    seeds: tuple[int, ...] = (0,)
    max_new_tokens: int = 256
    batch_size: int = 16
    together: int = 1
    check_together: int = 0
    search: Search = "full"
    decoding: DecodingMode = "fast"


def sweep_config(request: SweepRequest) -> RunConfig:
    """Return a run with the one study `frontier`.

    The configured ranking is the plain one, or with `contrast` the contrasted one, beside which the
    plain one stands as a method; with several `rounds` each is tried in rounds as well.

    Raises:
        InputError: The grid file or an option cannot be used.
    """
    scored: dict[str, object] = {"skip": request.skip, "limit": request.limit}
    targets: dict[str, dict[str, object]] = {"generation": {"data": "target", **scored}}
    methods: list[dict[str, object]] = []
    if request.contrast is not None:
        targets["generation"]["contrast"] = "contrast"
        targets["plain"] = {"data": "target", **scored}
        targets["contrast"] = {"data": "contrast", **scored}
        methods.append({"name": "plain", "target": "plain"})
    if request.rounds > 1:
        name = f"configured, {request.rounds} rounds"
        methods.append({"name": name, "target": "generation", "rounds": request.rounds})
    data = {
        "target": request.target,
        "preserve": request.preserve,
        "contrast": request.contrast,
        "evaluation": request.evaluation,
        "utility": request.utility,
    }
    utility = {"utility": "utility"} if request.utility else {"likelihood": "preserve"}
    grid: dict[str, Any] = {"fractions": request.fractions, "protected": request.protected}
    grid |= _grid(request.grid)
    unit = grid.pop("unit", "weight")
    values = {
        "name": f"frontier of {request.model}",
        "seeds": list(request.seeds),
        "models": {"aligned": request.model},
        "data": {name: spec for name, spec in data.items() if spec is not None},
        "format": request.format,
        "targets": targets,
        "preserve": {"data": "preserve", "limit": request.limit},
        "selection": {"p": grid["protected"][0], "unit": unit},
        "attack": {
            "name": request.attack,
            "tokens": request.prefill_tokens,
            "phrase": request.phrase,
        },
        "evaluation": {
            "probes": {"generation": "evaluation" if request.evaluation else "target", **utility},
            "limit": request.prompts,
            "judge": request.judge,
            "max_new_tokens": request.max_new_tokens,
            **{name: getattr(request, name) for name in ASKED_WITH},
        },
        "studies": {"frontier": {"utility_drop": request.budget, "methods": methods, **grid}},
    }
    return parse_config(values, "the sweep")


def _grid(path: Path | None) -> dict[str, object]:
    """Read `fractions`, `protected`, `scopes` and `unit` from a YAML file."""
    if path is None:
        return {}
    values = read_values(path)
    lists = ("fractions", "protected", "scopes")
    allowed = (*lists, "unit")
    if not isinstance(values, dict) or not values or set(values) - set(allowed):
        raise InputError(
            f"{path} is no grid",
            got=", ".join(map(str, values)) if isinstance(values, dict) else str(values)[:80],
            allowed="a mapping with some of " + ", ".join(allowed),
            fix="for instance: fractions: [1.0e-6, 1.0e-5]",
        )
    for name in lists:
        if name in values and not (isinstance(values[name], list) and values[name]):
            raise InputError(f"{name} in {path} is no list", got=str(values[name]))
    return {str(name): value for name, value in values.items()}


def chosen_rows(results: Path) -> list[dict[str, Any]]:
    """Return the rows of the chosen point over all seeds, one for each half; none if none is."""
    studies = read_json(results)["studies"]
    grid = next(study for study in studies if study["study"] == "frontier")["tables"]["grid"]
    return [row for row in grid if row["chosen"] and row["seed"] is None]
