"""A whole study of one model without a configuration: what `resect run` decides, and how.

Nothing here is hidden: the choices are written into the run's `config.yaml`, which runs again as it
is, and the examples that were drawn are written beside it.

- data: the presets below, or files; a set without a `split` column is halved by a hash of its
  prompts, so that what is scored is never asked; a utility set is asked as a whole
- format: `chat` if the tokenizer has a chat template, else `raw`
- opening: a quarter of the median answer, at most 10 tokens, opens the replies under prefill and is
  not scored, so that the cut is aimed at the content and not at the opening; answers that are no
  longer than it are left out
- judge: `exact` if every asked row has an answer key, else `keyword`
- q and p: the grid of the model's size (`resect.runs.grid`); the choice is the `frontier` study's
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from resect import files
from resect.data import BehaviourSet, load_data
from resect.errors import InputError
from resect.files.origin import hash_text
from resect.files.reading import read_json
from resect.model import Coverage, find_prunable
from resect.model.load import load_tokenizer
from resect.model.shapes import empty_model
from resect.records import Example, Format, Tokenizer
from resect.runs.config import RunConfig
from resect.runs.forecast import Rows, expected_here
from resect.runs.grid import Grid, grid_of
from resect.runs.run import Steps, Watch, carry_out, plan_run, unwatched
from resect.runs.sweep import SweepRequest, chosen_rows, sweep_config
from resect.studies import frontier
from resect.studies.cells import Cut, mask_path
from resect.weights.mask import Mask

TARGET = "beavertails"
PRESERVE = "alpaca_cleaned"
MASK = "chosen.mask.safetensors"

LONGEST_OPENING = 10
# Rows of a set whose length is measured for the estimate of the time.
MEASURED = 64
# Fewer rows on a side than this say nothing.
FEWEST = 8


BLIND = (
    "the keyword judge sees refusals alone, so answers that a cut breaks count as the behaviour: "
    "give every row a key, or --judge exact, which compares replies with completions"
)


@dataclass(frozen=True)
class AutoRequest:
    """The options of `resect run`; see its help."""

    model: str
    target: str = TARGET
    preserve: str = PRESERVE
    contrast: str | None = None
    utility: str | None = None
    budget: float = 0.05
    rounds: int = 1
    limit: int = 256
    prompts: int = 200
    seed: int = 0
    judge: str | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16
    data_dir: Path | None = None


@dataclass(frozen=True)
class Planned:
    """What was decided.

    Attributes:
        config: The run.
        files: Path to the rows that belong there.
        reasons: A line for each choice.
        rows: What the sets hold, for an estimate of the time.
    """

    config: RunConfig
    files: dict[Path, str]
    reasons: tuple[str, ...]
    rows: Rows


def plan_auto(request: AutoRequest, output: Path) -> Planned:
    """Decide everything that a run needs; loads data and tokenizer and no weight.

    Args:
        request: What the user said.
        output: Folder of the run; nothing is written.

    Raises:
        InputError: A set cannot be had or is too small, or the model is no checkpoint.
    """
    _refuse_few(request)
    grid = _grid_of(find_prunable(empty_model(request.model)))
    tokenizer = load_tokenizer(request.model)
    sets = {"target": _load(request, "target"), "preserve": _load(request, "preserve")}
    for name in ("contrast", "utility"):
        if getattr(request, name) is not None:
            sets[name] = load_data(getattr(request, name), data_dir=request.data_dir)
    for name, data in sets.items():
        _refuse_bare(name, data)
    lengths = _lengths(tokenizer, sets["target"])
    opening = max(1, min(LONGEST_OPENING, int(statistics.median(lengths)) // 4))
    short = {}
    for name in ("target", "contrast"):
        if name in sets:
            sets[name], short[name] = _longer(sets[name], tokenizer, opening)
    sets = {name: _drawn(name, data, request) for name, data in sets.items()}
    # The whole path, so that the configuration runs again from anywhere.
    folder = output.resolve() / "data"
    texts = {folder / f"{name}.jsonl": _lines(data) for name, data in sets.items()}
    spec = {path.stem: str(path) for path in texts}
    chat: Format = "chat" if getattr(tokenizer, "chat_template", None) else "raw"
    questions = sets["target"].split("evaluation").examples
    judge = request.judge or ("exact" if all(example.key for example in questions) else "keyword")
    longest = request.max_new_tokens or min(256, max(lengths) + opening)
    readings = _Readings(opening, judge, chat, longest, grid.grid)
    config = _config(request, spec, readings)
    median = statistics.median(lengths)
    reasons = _reasons(config, sets, short, f"{median:g}")
    return Planned(config, texts, (*reasons, *grid.reasons), _rows(tokenizer, sets))


def _rows(tokenizer: Tokenizer, sets: dict[str, BehaviourSet]) -> Rows:
    """Return how many rows are scored and asked at most, and how long a few of them are."""
    counts = {
        split: max(sum(row.split == split for row in data.examples) for data in sets.values())
        for split in ("calibration", "evaluation")
    }
    texts = [
        f"{example.prompt} {example.completion}"
        for data in sets.values()
        for example in data.examples[:MEASURED]
    ]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return Rows(round(statistics.mean(lengths)), counts["calibration"], counts["evaluation"])


def expected_line(planned: Planned) -> str:
    """Return how many cells a run has and how long it takes here at most, in words."""
    cells = plan_run(planned.config)
    seconds = expected_here(planned.config, cells, planned.rows)
    return (
        f"{len(cells)} cells, at most about {max(1, round(seconds / 60)):,} min on this machine: "
        "an estimate from its speed, with replies in full length"
    )


class _Longer(NamedTuple):
    """The rows with something left to score after the opening, and how many have nothing."""

    data: BehaviourSet
    dropped: int


@dataclass(frozen=True)
class _Readings:
    """What the data, the tokenizer and the model's size say of a run."""

    opening: int
    judge: str
    format: Format
    max_new_tokens: int
    grid: Grid


class _Grid(NamedTuple):
    """The grid of a model, and what is said of it."""

    grid: Grid
    reasons: tuple[str, ...]


def _grid_of(coverage: Coverage) -> _Grid:
    largest = max(weight.size // len(weight.places) for weight in coverage.weights)
    grid = grid_of(coverage.total, largest)
    reasons = [f"the grid is that of {coverage.total:,} prunable weights"]
    if grid.raised:
        reasons.append(
            f"the least q is {grid.fractions[0]:g}: less removes nothing, since the largest tensor "
            f"has {largest:,} weights"
        )
    return _Grid(grid, tuple(reasons))


def _config(request: AutoRequest, spec: dict[str, str], readings: _Readings) -> RunConfig:
    return sweep_config(
        SweepRequest(
            model=request.model,
            target=spec["target"],
            preserve=spec["preserve"],
            contrast=spec.get("contrast"),
            utility=spec.get("utility"),
            rounds=request.rounds,
            fractions=readings.grid.fractions,
            protected=readings.grid.protected,
            prefill_tokens=readings.opening,
            judge=readings.judge,
            format=readings.format,
            skip=readings.opening,
            budget=request.budget,
            seeds=(request.seed,),
            max_new_tokens=readings.max_new_tokens,
            batch_size=request.batch_size,
        )
    )


def _reasons(
    config: RunConfig, sets: dict[str, BehaviourSet], short: dict[str, int], median: str
) -> tuple[str, ...]:
    """Return a line for each choice."""
    grid, opening, chat = config.section(frontier.STUDY), config.attack.tokens, config.format
    return (
        *(f"{name}: {_counted(data)} from {data.source}" for name, data in sets.items()),
        f"format {chat}: the tokenizer has {'a' if chat == 'chat' else 'no'} chat template",
        f"opening of {opening} tokens: a quarter of the median answer of {median}, at most "
        f"{LONGEST_OPENING}; not scored, put in front of replies",
        *(
            f"{name}: {count} answers of at most {opening} tokens are left out"
            for name, count in short.items()
            if count
        ),
        f"judge {config.evaluation.judge}, replies of at most "
        f"{config.evaluation.max_new_tokens} tokens",
        *((BLIND,) if config.evaluation.judge.startswith("keyword") else ()),
        f"grid: q in {grid.fractions if grid else ()}, p in {grid.protected if grid else ()}",
        "choice: the largest drop of the behaviour at a utility drop of at most "
        f"{100 * grid.utility_drop if grid else 0:g} %",
    )


def run_auto(
    planned: Planned,
    output: Path,
    *,
    resume: bool = False,
    watch: Watch = unwatched,
    started: float | None = None,
) -> Mask | None:
    """Measure, choose and write the results, the chosen mask and the report.

    Args:
        planned: From `plan_auto`.
        output: Folder of the run.
        resume: Go on with a run that was begun with the same request.
        watch: Opened around the measuring, which tells it of progress.
        started: When the command began, by `time.perf_counter`.

    Returns:
        The chosen mask, also in `chosen.mask.safetensors`; None if no cut of the grid lowers the
        behaviour within the budget.
    """
    masks: list[Mask] = []

    def write_data() -> None:
        for path, text in planned.files.items():
            files.write_text(path, text)

    def choose(results: Path) -> None:
        mask = chosen_mask(planned.config, output, results)
        if mask is not None:
            mask.save(output / MASK)
            masks.append(mask)

    carry_out(
        planned.config,
        output,
        resume=resume,
        started=started,
        watch=watch,
        steps=Steps(prepare=write_data, conclude=choose),
    )
    return masks[0] if masks else None


def chosen_mask(config: RunConfig, run: Path, results: Path) -> Mask | None:
    """Return the mask that a frontier chose, with its measurement in its origin.

    Args:
        config: A run with the study `frontier` and one seed.
        run: Its folder.
        results: Its `results.json`.
    """
    rows = chosen_rows(results)
    if not rows:
        return None
    row = rows[0]
    grid = config.section(frontier.STUDY)
    targets = {method.name: method.target for method in grid.methods} if grid else {}
    cut = Cut(
        targets.get(row["method"], config.target),
        "target",
        row["q"],
        p=None if row["p"] == config.selection.p else row["p"],
        scope=None if row["scope"] == config.selection.scope else row["scope"],
        rounds=row["rounds"],
    )
    mask = Mask.load(mask_path(run, config.subject, config.seeds[0], cut))
    claim = read_json(results)["claims"][0]
    attack = config.attack
    measured = {
        "rows": rows,
        "attack": f"{attack.name}, {attack.phrase or f'{attack.tokens} tokens of the answer'}",
        "judge": config.evaluation.judge,
        "prompts": 2 * claim["n"],
        "verdict": claim["verdict"],
        "budget": grid.utility_drop if grid else None,
        "config": files.hash_value(config.model_dump(mode="json")),
    }
    return Mask(mask.tensors, {**mask.meta, "measured": measured})


def _load(request: AutoRequest, name: str) -> BehaviourSet:
    """Load the target or the preserve set; say what to do where a preset cannot be had."""
    spec: str = getattr(request, name)
    preset = {"target": TARGET, "preserve": PRESERVE}[name]
    try:
        return load_data(spec, data_dir=request.data_dir)
    except InputError as error:
        if spec != preset:
            raise
        raise InputError(
            f"no --{name} was given, and the built-in set {spec} cannot be had here",
            got=f"{error.what}: {error.got}",
            allowed=f"--{name} FILE with the columns prompt and completion, or --data-dir with a "
            f"copy of {spec}",
            fix="resect run MODEL --target harm.jsonl --preserve benign.jsonl -o run; "
            "`resect data show` says more of a preset",
        ) from error


def _refuse_few(request: AutoRequest) -> None:
    """Refuse options that leave a side with too few rows, whatever the sets hold."""
    for option, count in (("--limit", request.limit), ("--prompts", request.prompts)):
        if count < FEWEST:
            raise InputError(
                f"{option} asks for too few rows",
                got=str(count),
                allowed=f"at least {FEWEST}",
                fix=f"leave {option} out or raise it",
            )


def _refuse_bare(name: str, data: BehaviourSet) -> None:
    if any(not example.completion or not example.prompt for example in data.examples):
        raise InputError(
            f"the {name} set {data.source} has rows without a prompt or a completion",
            allowed="rows with both",
            fix="collect answers first: resect data collect MODEL --data SPEC -o FILE",
        )


def _drawn(name: str, data: BehaviourSet, request: AutoRequest) -> BehaviourSet:
    """Return as many rows of each split as are used; halve a set that has no splits.

    Nothing of a utility set is scored, so all of it may be asked. A contrast stands beside the
    target's prompts, so it is halved with them, or what is scored of it would be asked.
    """
    if {example.split for example in data.examples} == {""}:
        rows = tuple(
            replace(example, split="evaluation" if name == "utility" else _side(example))
            for example in data.examples
        )
        data = replace(data, examples=rows)
    drawn: list[Example] = []
    needed: dict[str, dict[str, int | None]] = {
        "utility": {"evaluation": request.prompts},
        "contrast": {"calibration": None},
    }
    usual: dict[str, int | None] = {"calibration": request.limit, "evaluation": request.prompts}
    for split, count in needed.get(name, usual).items():
        drawn_rows = data.split(split).limit(count, request.seed)
        if len(drawn_rows) < FEWEST:
            raise InputError(
                f"the {name} set {data.source} is too small",
                got=f"{len(drawn_rows)} rows for {split}",
                allowed=f"at least {FEWEST}",
                fix="give more rows; a set without a split column is halved",
            )
        drawn += drawn_rows.examples
    return replace(data, examples=tuple(drawn))


def _side(example: Example) -> str:
    odd = int(hash_text("run", str(example.prompt)), 16) % 2
    return "calibration" if odd else "evaluation"


def _counted(data: BehaviourSet) -> str:
    splits = [example.split for example in data.examples]
    sides = [side for side in ("calibration", "evaluation") if side in splits]
    return ", ".join(f"{splits.count(side)} for {side}" for side in sides)


def _lengths(tokenizer: Tokenizer, data: BehaviourSet) -> list[int]:
    return [
        len(tokenizer(example.completion, add_special_tokens=False)["input_ids"])
        for example in data.examples
    ]


def _longer(data: BehaviourSet, tokenizer: Tokenizer, opening: int) -> _Longer:
    """Return the rows with something left to score after the opening, and how many have not."""
    lengths = _lengths(tokenizer, data)
    rows = [
        example
        for example, length in zip(data.examples, lengths, strict=True)
        if length > max(opening, example.prefix_tokens)
    ]
    return _Longer(replace(data, examples=tuple(rows)), len(lengths) - len(rows))


def _lines(data: BehaviourSet) -> str:
    """Return the rows as JSON lines that `load_data` reads back as they are."""
    lines = []
    for example in data.examples:
        prompt: object = example.prompt
        if not isinstance(example.prompt, str):
            prompt = [{"role": role, "content": content} for role, content in example.prompt]
        row: dict[str, object] = {
            "id": example.id,
            "prompt": prompt,
            "completion": example.completion,
        }
        row |= {"category": example.category, "split": example.split}
        row |= {"key": example.key} if example.key else {}
        row |= {"prefix_tokens": example.prefix_tokens} if example.prefix_tokens else {}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)
