"""Commands that run other evaluation tools on a cut model: tasks, lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resect.cli.options import BatchSize, ModelId, NewFolder
from resect.cli.show import note, say, table

SHOWN = (
    "task", "metric", "items", "questions", "unscored", "intact", "cut", "difference",
    "difference_low", "difference_high",
)  # fmt: skip


def tasks(
    model: ModelId,
    task: Annotated[list[str], typer.Option(help="lm-eval task, group or tag; repeatable.")],
    output: NewFolder,
    mask: Annotated[Path | None, typer.Option(help="Weights to remove for the cut arm.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with your own tasks.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items a task.")] = None,
    few_shot: Annotated[int | None, typer.Option(min=0, help="Examples before an item.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the chat template.")] = False,
    batch_size: BatchSize = 16,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")] = None,
) -> None:
    """Run lm-eval tasks on a model, intact and cut, and compare item by item."""
    from resect.integrations import require

    require("lm_eval", "lm-eval")
    from resect.integrations.lm_eval import TaskSettings, TasksRequest, measure_tasks

    settings = TaskSettings(include_path, limit, few_shot, chat, batch_size)
    rows = measure_tasks(TasksRequest(model, tuple(task), mask, settings, dtype), output)
    table("lm-eval tasks, 95 % intervals", [{k: row.get(k) for k in SHOWN} for row in rows])
    say(f"{output}/results.json")


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval with `--model resect` known to it; all words are lm-eval's own."""
    from resect.integrations import require

    require("lm_eval", "lm-eval")
    from resect.integrations.lm_eval import command_line

    if not context.args:
        note("the options are lm-eval's own: resect lm-eval run --help")
    command_line(context.args)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Example: [bold]resect tasks ./my-model --task arc_easy "
        "--mask harm.mask.safetensors -o tasks[/bold]"
    )(tasks)
    app.command(
        "lm-eval",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        epilog="Example: [bold]resect lm-eval --model resect --model_args "
        "pretrained=./my-model,mask=harm.mask.safetensors --tasks arc_easy[/bold]",
    )(lm_eval)
