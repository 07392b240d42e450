"""The lm-eval door: its tasks on a model with its weights cut, and their items as our records.

    resect lm-eval --model resect --model_args pretrained=DIR,mask=FILE --tasks NAME
    resect tasks DIR --task NAME --mask FILE -o OUT

The first is lm-eval's own command line with one more kind of model. The second runs the tasks on
the intact and on the cut model and keeps every item, so that the two can be compared in pairs,
which the standard errors of two separate runs do not allow.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from resect.data.template import bounded_template
from resect.edit.live import removed
from resect.errors import InputError
from resect.evaluation.judging import Row, rows_of
from resect.evaluation.lm_eval_tasks import (
    building,
    described,
    no_data,
    taken_apart,
    task_manager,
    unrunnable,
)
from resect.files.origin import package_versions, provenance
from resect.files.tables import write_parquet
from resect.files.writing import atomic_folder, refuse_full_folder, write_json
from resect.integrations.cuts import as_mask, check_mask, mask_facts
from resect.model import LoadedModel, load_model, model_fingerprint
from resect.model.load import find_device, find_dtype, load_tokenizer
from resect.records import CausalModel, Judgement, Reply, Tokenizer
from resect.stats import Resampler, Sample, same_text
from resect.weights.mask import Mask

NAME = "resect"
TARGET = "resect.integrations.lm_eval:ResectLM"


class ResectLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's Hugging Face model, cut while it answers requests and whole at all other times."""

    def __init__(
        self,
        pretrained: str | CausalModel,
        *,
        mask: Mask | str | Path | None = None,
        device: str | None = None,
        **arguments: object,
    ) -> None:
        """Load a model as lm-eval does and check the mask against it.

        Args:
            pretrained: A folder, a Hub id, or a model in memory.
            mask: Weights that are removed: a mask or its file; None leaves the model whole.
            device: Device of a model that is loaded here; None for a GPU if there is one.
            arguments: What `lm_eval.models.huggingface.HFLM` takes.

        Raises:
            InputError: The mask's file is missing or not a mask.
            MismatchError: The mask belongs to another model.
        """
        # lm-eval's default is a GPU, whether there is one or not; it takes the CPU if not.
        device = device or find_device(None)
        self.mask = as_mask(mask)
        super().__init__(pretrained, device=device, **arguments)
        check_mask(self.model, self.mask)

    @contextlib.contextmanager
    def _cut(self) -> Iterator[None]:
        if self.mask is None:
            yield
        else:
            with removed(self.model, self.mask):
                yield

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[object]:
        """Answer as HFLM does, with the weights cut."""
        with self._cut():
            answers: list[object] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Answer as HFLM does, with the weights cut."""
        with self._cut():
            values: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return values

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer as HFLM does, with the weights cut."""
        with self._cut():
            answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return answers

    def apply_chat_template(self, *turns: object, **options: object) -> str:
        """Write a conversation as HFLM does, within bounds."""
        with bounded_template("a question of a task", alone=False):
            text: str = super().apply_chat_template(*turns, **options)
        return text

    def get_model_info(self) -> dict[str, object]:
        """Return what lm-eval's results say about the model, the mask with it."""
        info: dict[str, object] = super().get_model_info()
        return info | {"model_fingerprint": model_fingerprint(self.model), **mask_facts(self.mask)}


def register() -> None:
    """Make `--model resect` known; lm-eval 0.4.13 reads no entry points, its successor does."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


def command_line(words: Sequence[str]) -> None:
    """Run lm-eval's own command line with `--model resect` known to it."""
    from lm_eval.__main__ import cli_evaluate

    register()
    sys.argv = ["lm-eval", *words]
    cli_evaluate()


@dataclass(frozen=True)
class TaskSettings:
    """How lm-eval tasks are run; the same for all arms of a comparison.

    Attributes:
        include_path: Folder with task files of one's own.
        limit: Most items a task.
        num_fewshot: Examples before each item; None for each task's own number.
        chat: Whether prompts go through the chat template.
        batch_size: Requests that go through the model together.
    """

    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    chat: bool = False
    batch_size: int = 16


class Measure(NamedTuple):
    """One number of one task.

    Attributes:
        task: Name of the task.
        metric: Name of the metric, and where items tell filters apart, "metric,filter".
    """

    task: str
    metric: str


@dataclass(frozen=True)
class TaskRun:
    """What lm-eval found on one model variant.

    Attributes:
        replies: One for each item, metric and filter; `category` is the task.
        verdicts: lm-eval's value of the same; unscored where it is not a number for one item.
        higher_is_better: Task and metric to the direction that its task declares.
        aggregated: lm-eval's own results, task to "metric,filter" to value.
        versions: Task to its version.
    """

    replies: tuple[Reply, ...]
    verdicts: tuple[Judgement, ...]
    higher_is_better: Mapping[Measure, bool | None]
    aggregated: Mapping[str, Mapping[str, object]]
    versions: Mapping[str, object]

    @property
    def rows(self) -> list[Row]:
        """Rows for a record file."""
        return rows_of(self.replies, self.verdicts)

    def scores(self) -> dict[Measure, list[float | None]]:
        """Return task and "metric,filter" to the values of its items, in lm-eval's order."""
        scores: dict[Measure, list[float | None]] = {}
        for reply, verdict in zip(self.replies, self.verdicts, strict=True):
            scores.setdefault(Measure(reply.category, verdict.rule), []).append(verdict.score)
        return scores

    def questions(self) -> dict[Measure, list[int]]:
        """Return task and "metric,filter" to the numbers of its items' questions, as in `scores`.

        Items of one prompt share their number; an item without a prompt has its own.
        """
        prompts: dict[Measure, list[str]] = {}
        for reply, verdict in zip(self.replies, self.verdicts, strict=True):
            text = reply.prompt.strip() or reply.example_id
            prompts.setdefault(Measure(reply.category, verdict.rule), []).append(text)
        return {measure: same_text(texts) for measure, texts in prompts.items()}


def built_tasks(tasks: Sequence[str], settings: TaskSettings) -> TaskManager:
    """Return a manager that has built some tasks and gives them whenever they are asked for.

    That takes no model: it reads lm-eval's index and the tasks' data.

    Args:
        tasks: Names of tasks, groups or tags.
        settings: How they are to be run.

    Raises:
        InputError: An unknown task, one that runs code or shows pictures, or one that lm-eval
            cannot build or have the data of.
    """
    manager = task_manager(tasks, settings.include_path)
    with building(tasks, "mend its file, or see what lm-eval says of it: resect lm-eval validate"):
        for name, said in described(manager, tasks).items():
            unfit = unrunnable(said)
            if unfit is not None:
                raise InputError(
                    f"the lm-eval task {name} is not run here", got=unfit.reason, fix=unfit.fix
                )
        built = manager.load(list(tasks))
    vars(manager)["load"] = lambda _names: built
    return manager


def run_tasks(
    loaded: LoadedModel,
    tasks: Sequence[str],
    *,
    mask: Mask | None = None,
    settings: TaskSettings | None = None,
    manager: TaskManager | None = None,
) -> TaskRun:
    """Run lm-eval tasks on a model in memory and keep every item.

    Args:
        loaded: The intact model and its tokenizer.
        tasks: Names of tasks, groups or tags.
        mask: Weights that are removed while the model answers.
        settings: How to run them.
        manager: From `built_tasks`, if they were built already.

    Raises:
        InputError: As `built_tasks`.
        MismatchError: The mask belongs to another model.
    """
    settings = settings or TaskSettings()
    model, tokenizer = loaded
    manager = manager or built_tasks(tasks, settings)
    training = model.training
    # A copy, because lm-eval gives it a padding token; the caller's own stays as it is.
    wrapped = ResectLM(
        model, tokenizer=copy.deepcopy(tokenizer), mask=mask, batch_size=settings.batch_size
    )
    try:
        results = simple_evaluate(
            model=wrapped,
            tasks=list(tasks),
            task_manager=manager,
            limit=settings.limit,
            num_fewshot=settings.num_fewshot,
            apply_chat_template=settings.chat,
            bootstrap_iters=0,
            log_samples=True,
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise no_data(error) from error
    finally:
        model.train(training)
    return _read(results)


def _read(results: Mapping[str, Any]) -> TaskRun:
    records = []
    for task, items in results["samples"].items():
        apart = taken_apart(
            [item["target"] for item in sorted(items, key=lambda item: item["doc_id"])]
        )
        for item in items:
            records += [_record(task, item, metric, apart=apart) for metric in item["metrics"]]
    directions = {
        Measure(task, metric): direction
        for task, metrics in results.get("higher_is_better", {}).items()
        for metric, direction in metrics.items()
    }
    return TaskRun(
        tuple(record.reply for record in records),
        tuple(record.verdict for record in records),
        directions,
        results["results"],
        results["versions"],
    )


class _Record(NamedTuple):
    """One item under one metric: the answer, and lm-eval's value of it."""

    reply: Reply
    verdict: Judgement


def _record(task: str, item: Mapping[str, Any], metric: str, *, apart: bool) -> _Record:
    answer = item["filtered_resps"]
    text = answer[0] if len(answer) == 1 and isinstance(answer[0], str) else str(answer)
    arguments = item["arguments"] if isinstance(item["arguments"], dict) else {}
    reply = Reply(
        example_id=f"{task}/{item['doc_id']}",
        probe="task",
        attack="none",
        category=task,
        prompt=str(arguments.get("gen_args_0", {}).get("arg_0", "")),
        prefix="",
        text=text,
        reference=str(item["target"]),
    )
    value, rule = item[metric], f"{metric},{item['filter']}"
    reason = ""
    if apart:
        reason = (
            "lm-eval compared answers of this task character by character, because it read the "
            "first as a list: name their column without braces, `doc_to_target: COLUMN`"
        )
    elif not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1):
        reason = "not a rate of one item: lm-eval computes it over the whole task"
    score = None if reason else float(value)
    return _Record(reply, Judgement("lm-eval", rule, score, raw=str(value), reason=reason))


@dataclass(frozen=True)
class TasksRequest:
    """The options of `resect tasks`; see its help."""

    model: str
    tasks: tuple[str, ...]
    mask: Path | None = None
    settings: TaskSettings = TaskSettings()
    dtype: str | None = None


def measure_tasks(request: TasksRequest, output: Path) -> list[Row]:
    """Run tasks on the intact and the cut model, store every item and compare in pairs.

    Args:
        request: What to run on whom.
        output: New folder; gets `records/*.parquet` and `results.json`.

    Returns:
        A row for each task and metric, as `compare` gives them.

    Raises:
        InputError: Something in the request cannot be used as given.
        MismatchError: The mask belongs to another model.
    """
    refuse_full_folder(output)
    find_dtype(request.dtype)
    find_device(None)
    mask = as_mask(request.mask)
    # Says in a moment that there is no such model, which weights take minutes for.
    _refuse_without_template(load_tokenizer(request.model), request)
    manager = built_tasks(request.tasks, request.settings)
    loaded = load_model(request.model, dtype=request.dtype)
    check_mask(loaded.model, mask)
    ask = partial(run_tasks, loaded, request.tasks, settings=request.settings, manager=manager)
    runs = {"intact": ask()}
    if mask is not None:
        runs["cut"] = ask(mask=mask)
    rows = compare(runs["intact"], runs.get("cut"))
    with atomic_folder(output) as folder:
        for name, run in runs.items():
            write_parquet(
                folder / "records" / f"{name}.parquet",
                [{"variant": name} | row for row in run.rows],
            )
        origin = provenance() | {
            "model": request.model,
            "model_fingerprint": model_fingerprint(loaded.model),
            "lm_eval": package_versions(("lm-eval",)),
            "task_versions": dict(runs["intact"].versions),
            "request": asdict(request),
            **mask_facts(mask),
        }
        write_json(folder / "results.json", {"tasks": rows, "provenance": origin})
    return rows


def _refuse_without_template(tokenizer: Tokenizer, request: TasksRequest) -> None:
    """Raise `InputError` if prompts are to go through a chat template that is not there."""
    if request.settings.chat and not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"the tokenizer of {request.model} has no chat template",
            got="--chat",
            fix="leave --chat out, or save the tokenizer with its template",
        )


def compare(intact: TaskRun, cut: TaskRun | None) -> list[Row]:
    """Return a row for each task and metric, with 95 % intervals over the same resampled questions.

    Items of one prompt are drawn together: a task that repeats its questions asks no more of them.

    Columns: `intact` and `cut` are means over the scored items; `difference` is cut - intact, in
    pairs; unscored items are counted apart.
    """
    rows: list[Row] = []
    cut_scores = {} if cut is None else cut.scores()
    questions = intact.questions()
    for measure, scores in intact.scores().items():
        task, metric = measure
        resampler = Resampler(f"tasks/{task}/{metric}")
        groups = {"": questions[measure]}
        before = resampler.rate({"": scores}, groups)
        unfiltered = Measure(task, metric.partition(",")[0])
        row: Row = {
            "task": task,
            "metric": metric,
            "higher_is_better": intact.higher_is_better.get(unfiltered),
            "items": len(scores),
            "questions": len(set(questions[measure])),
            "unscored": sum(score is None for score in scores),
            **_bounds("intact", before),
        }
        if cut is not None:
            after = resampler.rate({"": cut_scores[measure]}, groups)
            row |= _bounds("cut", after) | _bounds("difference", after - before)
        rows.append(row)
    return rows


def _bounds(name: str, sample: Sample) -> dict[str, float | None]:
    interval = sample.interval(name)
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
