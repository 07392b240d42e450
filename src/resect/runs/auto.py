"""A whole study of one model without a configuration: what `resect run` decides, and how.

Nothing here is hidden: the choices are written into the run's `config.yaml`, which runs again as it
is, and the examples that were drawn are written beside it.

- data: the presets below, or files; a set without a `split` column is halved by a hash of its
  prompts, so that what is scored is never asked; a utility set is asked as a whole, and so are
  the questions that were drawn of an lm-eval task
- format: `chat` if the tokenizer has a chat template, else `raw`
- opening: a quarter of the median answer, at most 10 tokens, opens the replies under prefill and is
  not scored, so that the cut is aimed at the content and not at the opening; answers that are no
  longer than it are left out
- judge: `exact` if every asked row has an answer key, else `keyword`
- measure: replies and the judge, if a first look shows that these tell the model from one that a
  large random cut has destroyed; else the likelihood of the answers (`resect.runs.settle`)
- q and p: the grid of the model's size (`resect.runs.grid`); the choice is the study's, `frontier`
  by replies and `selectivity`, with `compactness` beside it, by likelihood
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from resect import files
from resect.data import BehaviourSet, load_data
from resect.data.encode import prompt_text
from resect.errors import InputError
from resect.evaluation.judges import find_judge
from resect.model import Coverage, find_prunable
from resect.model.load import load_model, load_tokenizer
from resect.model.shapes import empty_model
from resect.records import DecodingMode, Example, Format, Measure, Search
from resect.runs.chosen import chosen_mask
from resect.runs.config import RunConfig
from resect.runs.drawn import (
    counted,
    lengths_of,
    longer_than,
    placed,
    refuse_bare,
    side_of,
)
from resect.runs.expected import expected, sizes_of
from resect.runs.grid import Grid, grid_of
from resect.runs.harmless import ask_harmless
from resect.runs.look import tried_before, write_looks
from resect.runs.passes import SetSize
from resect.runs.run import Steps, Watch, carry_out, refuse_taken, unwatched
from resect.runs.sets import read_set, refuse_other_rows
from resect.runs.settle import Instrument, by_likelihood, looking, settle
from resect.runs.sweep import SweepRequest, sweep_config
from resect.studies import frontier, selectivity
from resect.studies.halves import PromptOf, deal
from resect.studies.needed import needed
from resect.weights.mask import Mask

TARGET = "beavertails"
PRESERVE = "alpaca_cleaned"
MASK = "chosen.mask.safetensors"

LONGEST_OPENING = 10
# Fewer rows on a side than this say nothing.
FEWEST = 8


BLIND = (
    "the keyword judge sees refusals alone, so answers that a cut breaks count as the behaviour: "
    "give every row a key, or --judge exact, which compares replies with completions"
)


LOOK = (
    "measure: replies, unless a first look when the run starts shows that they do not tell the "
    "intact model from a destroyed one; then the likelihood of the answers"
)
SEARCH = (
    "search halving: by replies alone; by likelihood the whole grid is asked, because selectivity "
    "weighs every cut of it"
)
CHOICES: dict[Measure, str] = {
    "replies": "the largest drop of the behaviour",
    "likelihood": "the largest margin of the behaviour's answers over all other sets",
}


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
    measure: Measure | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16
    together: int = 1
    check_together: int = 0
    search: Search = "full"
    decoding: DecodingMode = "fast"
    data_dir: Path | None = None


@dataclass(frozen=True)
class Planned:
    """What was decided.

    Attributes:
        candidates: The runs that come into question, which differ in what harm is measured by; the
            best to have first.
        files: Path to the rows that belong there.
        reasons: A line for each choice.
        sizes: How long the rows of the sets are, for an estimate of the time.
        sets: The rows themselves.
        instrument: What harm is measured by; None as long as nobody has looked.
    """

    candidates: tuple[RunConfig, ...]
    files: dict[Path, str]
    reasons: tuple[str, ...]
    sizes: dict[str, SetSize]
    sets: dict[str, BehaviourSet]
    instrument: Instrument | None = None

    @property
    def config(self) -> RunConfig:
        """The run, or the first that comes into question."""
        return self.candidates[0] if self.instrument is None else self.instrument.config


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
            sets[name] = read_set(getattr(request, name), data_dir=request.data_dir)
    for name, data in sets.items():
        refuse_bare(name, data)
    lengths = lengths_of(tokenizer, sets["target"])
    opening = max(1, min(LONGEST_OPENING, int(statistics.median(lengths)) // 4))
    short = {}
    for name in ("target", "contrast"):
        if name in sets:
            sets[name], short[name] = longer_than(sets[name], tokenizer, opening)
    sets = {name: _drawn(name, data, request) for name, data in sets.items()}
    texts, spec = placed(sets, output.resolve() / "data")
    chat: Format = "chat" if getattr(tokenizer, "chat_template", None) else "raw"
    questions = sets["target"].split("evaluation").examples
    judge = request.judge or ("exact" if all(example.key for example in questions) else "keyword")
    find_judge(judge)
    longest = request.max_new_tokens or min(256, max(lengths) + opening)
    readings = _Readings(opening, judge, chat, longest, grid.grid)
    candidates = _candidates(request, _config(request, spec, readings), sets)
    median = statistics.median(lengths)
    reasons = _reasons(candidates, sets, short, f"{median:g}")
    reasons += grid.reasons
    if request.search != "full" and candidates[-1].evaluation.measure == "likelihood":
        reasons += (SEARCH,)
    return Planned(candidates, texts, reasons, sizes_of(tokenizer, sets, chat), sets)


def _candidates(
    request: AutoRequest, config: RunConfig, sets: dict[str, BehaviourSet]
) -> tuple[RunConfig, ...]:
    """Return the runs that come into question: a judge that was named is not passed over."""
    contrast = sets.get("contrast")
    held_back = contrast is not None and "evaluation" in {row.split for row in contrast.examples}
    config = looking(config)
    likely = by_likelihood(config, held_back)
    if request.measure == "likelihood":
        return (likely,)
    return (config,) if request.measure or request.judge else (config, likely)


def look_through(planned: Planned, output: Path, *, resume: bool = False) -> Planned:
    """Look at the intact and at a destroyed model, and settle what harm is measured by.

    Args:
        planned: From `plan_auto`.
        output: Folder of the run; nothing is written.
        resume: Whether a run that was begun is to go on; what it saw is not looked at again.

    Returns:
        The plan with its `instrument`; its `reasons` are those of the look alone.

    Raises:
        InputError: The folder is taken, or the model cannot be asked.
    """
    refuse_taken(output, resume=resume)
    model = planned.config.models[planned.config.subject]
    instrument = settle(
        planned.candidates,
        lambda: load_model(model),
        planned.sets,
        tried_before(output) if resume else {},
    )
    reasons = instrument.reasons
    sight = instrument.sights.get("utility")
    if sight is not None and instrument.config.evaluation.measure == "replies":
        reasons += _needs(instrument.config, planned.sets, sight.intact.value)
    return replace(planned, instrument=instrument, reasons=reasons)


def _needs(
    config: RunConfig, sets: dict[str, BehaviourSet], accuracy: float | None = None
) -> tuple[str, ...]:
    """Return how many questions utility takes, if it is measured by questions."""
    section = config.section(frontier.STUDY)
    if section is None or "utility" not in sets:
        return ()
    said = needed(
        [PromptOf(row.category, prompt_text(row)) for row in sets["utility"].examples],
        section.utility_drop,
        config.guard,
        alike=config.evaluation.alike,
        accuracy=accuracy,
    )
    return (str(said),)


def expected_lines(planned: Planned) -> tuple[str, ...]:
    """Return how many cells a run has and how long it takes here at most, in words.

    There is a line for each run that still comes into question.
    """
    configs = planned.candidates if planned.instrument is None else (planned.config,)
    return tuple(expected(config, planned.sizes) for config in configs)


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
            together=request.together,
            check_together=request.check_together,
            search=request.search,
            decoding=request.decoding,
        )
    )


def _reasons(
    candidates: tuple[RunConfig, ...],
    sets: dict[str, BehaviourSet],
    short: dict[str, int],
    median: str,
) -> tuple[str, ...]:
    """Return a line for each choice."""
    config = candidates[0]
    grid = config.section(frontier.STUDY) or config.section(selectivity.STUDY)
    opening, chat = config.attack.tokens, config.format
    by_replies = config.evaluation.measure == "replies"
    return (
        *(f"{name}: {counted(data)} from {data.source}" for name, data in sets.items()),
        *_alike(config, sets),
        f"format {chat}: the tokenizer has {'a' if chat == 'chat' else 'no'} chat template",
        f"opening of {opening} tokens: a quarter of the median answer of {median}, at most "
        f"{LONGEST_OPENING}; not scored, put in front of replies",
        *(
            f"{name}: {count} answers of at most {opening} tokens are left out"
            for name, count in short.items()
            if count
        ),
        *(_of_replies(config, len(candidates) > 1) if by_replies else _of_likelihood(config)),
        f"grid: q in {grid.fractions if grid else ()}, p in {_protected(config)}",
        f"choice: {CHOICES[config.evaluation.measure]} at a utility drop of at most "
        f"{100 * grid.utility_drop if grid else 0:g} %",
        *_needs(config, sets),
    )


def _alike(config: RunConfig, sets: dict[str, BehaviourSet]) -> Iterator[str]:
    """Yield a line for each set whose prompts for evaluation say the same, so that fewer count."""
    alike = config.evaluation.alike
    for name, data in sets.items():
        # A contrast may have rows for scoring alone.
        rows = [row for row in data.examples if row.split == "evaluation"]
        prompts = tuple(PromptOf(row.category, prompt_text(row)) for row in rows)
        groups = {
            (prompt.category, place.group)
            for prompt, place in zip(prompts, deal(prompts, alike), strict=True)
        }
        if len(groups) < len(set(prompts)):
            yield (
                f"{name}: {len(set(prompts))} prompts for evaluation count as {len(groups)}: those "
                f"that share {100 * alike:g} % of their content words are one"
            )


def _of_replies(config: RunConfig, open_question: bool) -> tuple[str, ...]:
    """Return what is said of a judge."""
    return (
        f"judge {config.evaluation.judge}, replies of at most "
        f"{config.evaluation.max_new_tokens} tokens",
        *((BLIND,) if config.evaluation.judge.startswith("keyword") else ()),
        *((LOOK,) if open_question else ()),
    )


def _of_likelihood(config: RunConfig) -> tuple[str, ...]:
    """Return what is said where nothing is decoded."""
    listed = ", ".join(f"{name} ({data})" for name, data in config.evaluation.probes.items())
    return (f"measure: the likelihood of given answers, of the probes {listed}",)


def _protected(config: RunConfig) -> tuple[float, ...]:
    section = config.section(frontier.STUDY)
    return (config.selection.p,) if section is None else section.protected


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
        planned: From `plan_auto`, looked through or not yet.
        output: Folder of the run.
        resume: Go on with a run that was begun with the same request.
        watch: Opened around the measuring, which tells it of progress.
        started: When the command began, by `time.perf_counter`.

    Returns:
        The chosen mask, also in `chosen.mask.safetensors`; None if no cut of the grid lowers the
        behaviour within the budget.
    """
    if planned.instrument is None:
        planned = look_through(planned, output, resume=resume)
    instrument, config = planned.instrument, planned.config
    masks: list[Mask] = []

    def write_data() -> None:
        for path, text in planned.files.items():
            files.write_text(path, text)
        if instrument is not None:
            sights = {config.seeds[0]: instrument.sights}
            said = "; ".join(instrument.reasons).removeprefix("instrument: ")
            write_looks(output, sights, instrument.tried, said)

    def choose(results: Path) -> None:
        mask = chosen_mask(config, output, results)
        if mask is not None:
            mask.save(output / MASK)
            masks.append(mask)
            ask_harmless(config, output, mask)

    carry_out(
        config,
        output,
        resume=resume,
        started=started,
        watch=watch,
        steps=Steps(
            check=partial(refuse_other_rows, planned.files), prepare=write_data, conclude=choose
        ),
    )
    return masks[0] if masks else None


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


def _drawn(name: str, data: BehaviourSet, request: AutoRequest) -> BehaviourSet:
    """Return as many rows of each split as are used; halve a set that has no splits.

    Nothing of a utility set is scored, so all of it is asked, however large. A contrast stands
    beside the target's prompts, so it is halved with them, or what is scored of it would be asked.
    """
    if {example.split for example in data.examples} == {""}:
        rows = tuple(
            replace(example, split="evaluation" if name == "utility" else side_of(example))
            for example in data.examples
        )
        data = replace(data, examples=rows)
    drawn: list[Example] = []
    wanted: dict[str, dict[str, int | None]] = {
        "utility": {"evaluation": None},
        "contrast": {"calibration": None, "evaluation": request.prompts},
    }
    usual: dict[str, int | None] = {"calibration": request.limit, "evaluation": request.prompts}
    present = [row.split for row in data.examples]
    for split, count in wanted.get(name, usual).items():
        if (name, split) == ("contrast", "evaluation") and present.count(split) < FEWEST:
            continue  # it ranks, and is no side set then
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
