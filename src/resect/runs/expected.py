"""What is line of a run before it starts: its cells, questions and time on this machine."""

from __future__ import annotations

from collections.abc import Mapping

from resect.data import BehaviourSet
from resect.data.load import file_of, load_data
from resect.data.task import is_task
from resect.model.load import load_tokenizer
from resect.records import Format, Tokenizer
from resect.runs.config import RunConfig
from resect.runs.forecast import expected_here
from resect.runs.passes import SetSize, size_of_set
from resect.runs.run import plan_run
from resect.runs.searching import is_searched, most_questions
from resect.runs.speed import here
from resect.studies.cells import at_seed


def sizes_of(
    tokenizer: Tokenizer, sets: Mapping[str, BehaviourSet], format: Format
) -> dict[str, SetSize]:
    """Return how long the rows of sets are; lm-eval puts its questions without a template.

    Raises:
        InputError: A prompt cannot be written in this format.
    """
    return {
        name: size_of_set(tokenizer, data, "raw" if is_task(data.source) else format)
        for name, data in sets.items()
    }


def local_sets(config: RunConfig) -> dict[str, BehaviourSet] | None:
    """Return the sets of a run's first seed by their names under `data`.

    None stands for a run of which some set is no file here: what is elsewhere is not fetched.

    Raises:
        InputError: A file cannot be read.
    """
    specs = {name: at_seed(spec, config.seeds[0]) for name, spec in config.data.items()}
    if any(file_of(spec) is None for spec in specs.values()):
        return None
    return {name: load_data(spec) for name, spec in specs.items()}


def expected_locally(config: RunConfig, jobs: int = 1) -> str:
    """Return what `expected` does of a run whose sets are files here, "" of any other.

    Raises:
        InputError: A set cannot be read, or the model cannot.
    """
    sets = local_sets(config)
    if sets is None:
        return ""
    tokenizer = load_tokenizer(at_seed(config.models[config.subject], config.seeds[0]))
    return expected(config, sizes_of(tokenizer, sets, config.format), jobs)


def expected(config: RunConfig, sizes: Mapping[str, SetSize], jobs: int = 1) -> str:
    """Return how many cells and questions a run has, and how long it takes here, in words.

    Args:
        config: The run.
        sizes: Set to how long its rows are, by its name under `data`.
        jobs: Processes that share the cells.
    """
    cells, machine = plan_run(config), here(jobs)
    longest, usual = (
        expected_here(config, cells, sizes, full=full, jobs=jobs, machine=machine)
        for full in (True, False)
    )
    evaluation = config.evaluation
    searched = ""
    if is_searched(config):
        questions = most_questions(
            config,
            cells,
            lambda probe: len(sizes[evaluation.probes[probe]].asked[: evaluation.limit]),
        )
        searched = f", of whose questions at most {questions} are asked"
    where = "this machine" + (f" in {jobs} processes" if jobs > 1 else "")
    line = (
        f"by {evaluation.instrument}: {len(cells)} cells{searched}, at most about "
        f"{_minutes(longest)} min on {where}: an estimate from its speed"
    )
    if evaluation.measure == "replies":
        line += (
            f", with replies in full length; about {_minutes(usual)} min if they are as long as "
            "the answers of their sets"
        )
    return line


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60)):,}"
