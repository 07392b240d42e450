"""What of lm-eval puts its tasks to a model in memory and marks each question.

The requests, the few-shot examples, the filters and the metrics are lm-eval's own, as is the class
that asks: a number here is the one that lm-eval reports of the same questions. Of a task one metric
counts, the first in its own list that lm-eval averages over questions and of which more is better,
unless a SPEC names another.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from resect.data.load import BehaviourSet
from resect.data.task import TaskSpec, parse_task
from resect.data.template import bounded_template
from resect.errors import InputError, nearest
from resect.evaluation.tasks import CHANCE, METRIC, Answered, TaskSet
from resect.files.origin import hash_value, package_versions
from resect.model import LoadedModel
from resect.records import Example
from resect.stats import rng

# What lm-eval takes for a task that does not say what it asks for.
WRITTEN = "generate_until"
KINDS = ("multiple_choice", WRITTEN, "loglikelihood")
BY_ITSELF = "resect tasks MODEL --task NAME -o FOLDER"
RUN_CODE = "--confirm_run_unsafe_code"
# lm-eval's own seed of few-shot examples.
FEW_SHOT_SEED = 1234
AVERAGES = ("mean", "nanmean")
MOST_NAMED = 8
# How lines begin that lm-eval logs of every model in memory.
IN_MEMORY = ("`pretrained` model kwarg is not of type", "Passed an already-initialized model")
# What a group says of itself, and not of its tasks.
_STRUCTURE = ("task", "group", "tag")


class Unfit(NamedTuple):
    """Why a task cannot be run as is asked, and what to do instead."""

    reason: str
    fix: str


@dataclass(frozen=True)
class _Task:
    """A task of lm-eval, which has no types, with what marks its questions."""

    task: Any
    metric: str
    filter: str


class InMemory(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's Hugging Face model for one that is in memory; shows no bars of its own."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[object]:
        """Answer as HFLM does."""
        answers: list[object] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answer as HFLM does."""
        answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return answers

    def apply_chat_template(self, *turns: object, **options: object) -> str:
        """Write a conversation as HFLM does, within bounds."""
        with bounded_template("a question of a task", alone=False):
            text: str = super().apply_chat_template(*turns, **options)
        return text


class _Asker:
    """Asks tasks that are built already."""

    def __init__(self, tasks: Mapping[str, _Task], chat: bool):
        """Hold the tasks."""
        self._tasks = tasks
        self._chat = chat

    def __call__(
        self, loaded: LoadedModel, questions: Sequence[Example], batch_size: int
    ) -> dict[str, Answered]:
        """Return what became of each question, by its id."""
        positions: dict[str, list[int]] = {}
        for question in questions:
            positions.setdefault(question.category, []).append(_position(question))
        samples = {name: sorted(of_task) for name, of_task in positions.items()}
        for name in samples:
            # Every variant is shown the same examples before the same questions.
            self._tasks[name].task.set_fewshot_seed(seed=FEW_SHOT_SEED)
        model, tokenizer = loaded
        training = model.training
        try:
            with _quietly():
                # A copy, because lm-eval gives it a padding token; the caller's own stays as it is.
                wrapped = InMemory(model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
                results = evaluate(
                    wrapped,
                    {"tasks": {name: self._tasks[name].task for name in samples}, "groups": {}},
                    samples=samples,
                    apply_chat_template=self._chat,
                    # The default of lm-eval's command line, and not of this function.
                    fewshot_as_multiturn=True,
                    bootstrap_iters=0,
                    log_samples=True,
                )
        except (AssertionError, ValueError) as error:
            raise InputError(
                "lm-eval cannot put the questions of a task to this model",
                got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                fix="give fewer few_shot examples, or another task",
            ) from error
        finally:
            model.train(training)
        return {
            _id(name, item["doc_id"]): _answered(self._tasks[name], item)
            for name, items in results["samples"].items()
            for item in items
            if item["filter"] == self._tasks[name].filter
        }


def load_tasks(text: str) -> TaskSet:
    """Build the tasks that a SPEC names, and draw their questions; no model is needed.

    Raises:
        InputError: A task is unknown, cannot be built or had, or cannot be asked question by
            question.
    """
    spec = parse_task(text)
    manager = task_manager(spec.names, spec.include_path)
    with building(spec.names, f"see whether it runs by itself: {BY_ITSELF}"):
        for name, said in described(manager, spec.names).items():
            _refuse_unfit(name, _unaskable(said))
        built = manager.load(list(spec.names))["tasks"]
        tasks = {name: _chosen(name, task, spec) for name, task in built.items()}
        examples, origin = [], {}
        for name, task in tasks.items():
            of_task = _questions(name, task, spec.questions)
            examples += of_task
            origin[name] = {
                "version": str(getattr(task.task, "VERSION", None)),
                "metric": f"{task.metric},{task.filter}",
                "few_shot": task.task.get_config("num_fewshot") or 0,
                "questions": len(of_task),
                "of": len(task.task.eval_docs),
            }
    plain = BehaviourSet(text, tuple(examples), "").at(range(len(examples)))
    source: dict[str, object] = {
        "lm_eval": package_versions(("lm-eval",)).get("lm-eval"),
        "named": list(spec.names),
        "tasks": origin,
    }
    # Other settings of a task are another set, though its questions are the same.
    named = hash_value([plain.hash, source, spec.chat])
    return TaskSet(text, plain.examples, named, source, _Asker(tasks, spec.chat))


def task_manager(tasks: Sequence[str], include_path: Path | None) -> TaskManager:
    """Return a manager that knows the tasks; the index of lm-eval's own takes seconds to read.

    Raises:
        InputError: A task is unknown, or there is no such folder.
    """
    if include_path is not None and not include_path.is_dir():
        raise InputError("no such folder of tasks", got=str(include_path))
    local = None
    if include_path is not None:
        local = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(tasks) <= set(local.all_tasks):
            return local
    manager = TaskManager(include_path=str(include_path) if include_path else None)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        allowed = "what `resect lm-eval ls tasks` lists"
        if local is not None:
            allowed = f"{', '.join(local.all_tasks) or 'none'} in {include_path}, and {allowed}"
        near = (nearest(name, manager.all_tasks) for name in unknown)
        own = "name the folder of tasks of your own with --include-path"
        raise InputError(
            "unknown task",
            got=", ".join(unknown),
            allowed=allowed,
            fix=next(filter(None, near), "" if include_path else own),
        )
    return manager


def described(manager: TaskManager, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the files of lm-eval say of each task behind some names.

    None is built for it: that fetches a task's data and runs the code that its file names, which
    may fetch more. The file of humaneval asks the hub for a metric, for minutes without a network.

    Args:
        manager: Knows the names.
        names: Names of tasks, groups or tags.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for name in names:
        _describe(manager.task_index, {"task": name}, {}, tasks)
    return tasks


def _describe(
    index: Mapping[str, Any],
    member: Mapping[str, Any],
    over: Mapping[str, Any],
    tasks: dict[str, dict[str, Any]],
) -> None:
    """Add what is said of the tasks behind a member of a group, which may say more of them."""
    name = member.get("group", member.get("task"))
    entry = index.get(name)
    # A tag has no file, and the names of its tasks in the place of its own tags.
    own = member if entry is None else entry.cfg or {"task": sorted(entry.tags)}
    merged = {**own, **over, **member}
    said = {key: value for key, value in merged.items() if key not in _STRUCTURE}
    if not isinstance(own.get("task"), list):
        tasks[str(name)] = said
        return
    for inner in own["task"]:
        _describe(index, inner if isinstance(inner, Mapping) else {"task": inner}, said, tasks)


def unrunnable(said: Mapping[str, Any]) -> Unfit | None:
    """Return why a model in memory is not asked a task, None if it is.

    Args:
        said: What is said of the task, from `described`.
    """
    if said.get("doc_to_image") or said.get("doc_to_audio"):
        return Unfit("it shows pictures or sounds", "take a task that is text alone")
    if said.get("unsafe_code"):
        return Unfit(
            "it runs the code that a model writes",
            f"lm-eval's own command does so: resect lm-eval --model resect {RUN_CODE}",
        )
    return None


def no_data(error: BaseException) -> InputError:
    """Return the message for a task whose data cannot be had."""
    return InputError(
        "the data of a task cannot be had",
        got=str(error).splitlines()[0],
        fix="run it once with a network, or give a task of your own with --include-path",
    )


@contextlib.contextmanager
def building(names: Sequence[str], fix: str) -> Iterator[None]:
    """Say in one message why tasks cannot be built.

    Args:
        names: What they are called.
        fix: The next step if lm-eval, or what a task names, cannot.

    Raises:
        InputError: They cannot be built.
    """
    try:
        with _quietly():
            yield
    except InputError:
        raise
    except (ConnectionError, FileNotFoundError) as error:
        raise no_data(error) from error
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise InputError(
            f"lm-eval cannot build {', '.join(names)}",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            fix=fix,
        ) from error


class _Expected(logging.Filter):
    """Leaves out what lm-eval says of every model that is in memory."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is to be shown."""
        return not str(record.msg).startswith(IN_MEMORY)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide bars, which would stand in the middle of ours; warnings are logged as ever."""
    logger, expected = logging.getLogger("lm_eval.models.huggingface"), _Expected()
    logger.addFilter(expected)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.removeFilter(expected)


def taken_apart(targets: Sequence[object]) -> bool:
    """Tell whether lm-eval compares answers of a task character by character.

    It does so with each answer that is text where the first is a list, which it makes of a text
    in brackets too.

    Args:
        targets: Answers of all questions, in the task's order; none if there are no questions.
    """
    return isinstance(next(iter(targets), None), list) and any(
        isinstance(target, str) for target in targets
    )


def _chosen(name: str, task: Any, spec: TaskSpec) -> _Task:
    """Return a task with the metric and the filter that count.

    Raises:
        InputError: It cannot be asked question by question, or has no such metric or filter.
    """
    # A task that is a class says some of it when it is built.
    _refuse_unfit(
        name,
        _unaskable(
            {
                "output_type": task.OUTPUT_TYPE,
                "doc_to_image": getattr(task, "MULTIMODAL", False),
                "unsafe_code": getattr(task, "UNSAFE_CODE", False),
                "generation_kwargs": task.get_config("generation_kwargs"),
                "repeats": task.get_config("repeats"),
            }
        ),
    )
    if taken_apart([task.doc_to_target(doc) for doc in task.eval_docs]):
        raise InputError(
            f"lm-eval would mark answers of {name} character by character",
            got="a first answer that it reads as a list, as each text in brackets, and others as "
            "text",
            allowed="answers that are all lists, or all text",
            fix="name the column of the answers without braces: `doc_to_target: COLUMN`",
        )
    usual = task.get_config("num_fewshot")
    # As lm-eval does: a task that says 0 has no use for examples.
    if spec.few_shot is not None and usual != 0:
        task.set_config("num_fewshot", spec.few_shot)
    elif usual is None:
        task.set_config("num_fewshot", 0)
    better, averages = task.higher_is_better(), task.aggregation()
    metrics = [
        metric
        for metric, average in averages.items()
        if better.get(metric) and getattr(average, "__name__", "") in AVERAGES
    ]
    filters = [ensemble.name for ensemble in task._filters]
    _refuse_unknown(name, "metric", spec.metric, metrics)
    _refuse_unknown(name, "filter", spec.filter, filters)
    return _Task(task, spec.metric or metrics[0], spec.filter or filters[0])


def _unaskable(said: Mapping[str, Any]) -> Unfit | None:
    """Return why a task cannot be asked question by question, None if it can."""
    unfit = unrunnable(said)
    if unfit is not None:
        return unfit
    afterwards = "measure it afterwards: resect tasks"
    kind = said.get("output_type", WRITTEN)
    if kind not in KINDS:
        return Unfit(f"it asks for {kind}", afterwards)
    decoding = said.get("generation_kwargs")
    sampled = isinstance(decoding, Mapping) and decoding.get("do_sample")
    if sampled or (said.get("repeats") or 1) > 1:
        return Unfit("it samples its answers", afterwards)
    return None


def _refuse_unfit(name: str, unfit: Unfit | None) -> None:
    if unfit is not None:
        raise InputError(
            f"the lm-eval task {name} cannot be asked question by question",
            got=unfit.reason,
            allowed="multiple choice, or one answer that is written greedily, with a metric that "
            "marks each question between 0 and 1",
            fix=unfit.fix,
        )


def _refuse_unknown(task: str, setting: str, value: str, names: Sequence[str]) -> None:
    """Refuse a metric or filter that a task has not, or a task that has none."""
    if not names or (value and value not in names):
        raise InputError(
            f"the lm-eval task {task} has no such {setting}"
            if names
            else f"{task} has no {setting}",
            got=value or f"no {setting} that marks each question, more being better",
            allowed=", ".join(names[:MOST_NAMED]),
        )


def _questions(name: str, chosen: _Task, limit: int | None) -> list[Example]:
    """Return the questions of a task, or some that are drawn with a fixed seed, in its order."""
    task, docs = chosen.task, chosen.task.eval_docs
    positions: Sequence[int] = range(len(docs))
    if limit is not None and limit < len(docs):
        draw = rng(f"lm-eval/{name}").choice(len(docs), size=limit, replace=False)
        positions = sorted(draw.tolist())
    return [_example(name, chosen, task, docs[position], position) for position in positions]


def _example(name: str, chosen: _Task, task: Any, doc: Any, position: int) -> Example:
    choices = task.doc_to_choice(doc) if task.get_config("doc_to_choice") is not None else []
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    if not isinstance(text, str) or not text.strip():
        # Of some tasks the choices are whole sentences, and the text is which of them is right.
        text = "\n".join(map(str, choices)) or f"question {position}"
    key: dict[str, Any] = {METRIC: f"{chosen.metric},{chosen.filter}"}
    if task.OUTPUT_TYPE == "multiple_choice" and chosen.metric.startswith("acc") and choices:
        key[CHANCE] = (len(target) if isinstance(target, list) else 1) / len(choices)
    if isinstance(target, int) and 0 <= target < len(choices):
        target = choices[target]
    return Example(_id(name, position), text, str(target), category=name, key=key)


def _id(task: str, position: int) -> str:
    return f"{task}/{position}"


def _position(question: Example) -> int:
    return int(question.id.rpartition("/")[2])


def _answered(chosen: _Task, item: Mapping[str, Any]) -> Answered:
    answer, value = item["filtered_resps"], item[chosen.metric]
    text = answer[0] if len(answer) == 1 and isinstance(answer[0], str) else str(answer)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return Answered(text, None)
    if not 0 <= value <= 1:
        raise InputError(
            f"the metric {chosen.metric} of an lm-eval task is no mark of one question",
            got=f"{value:g}",
            allowed="a number from 0 to 1",
            fix="name another with metric=NAME behind the task, or take another task",
        )
    return Answered(text, float(value))
