"""The commands `resect score` and `resect select`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resect.cli.options import (
    AllowPartial,
    Category,
    Columns,
    DrawSeed,
    Dtype,
    ExampleLimit,
    Force,
    MaskOutput,
    Model,
    PromptFormat,
    ProtectedFraction,
    RankScope,
    Skip,
    TargetFraction,
    WholeUnit,
    category_of,
    refuse_idle_columns,
    tell_of_links,
    with_columns,
)
from resect.cli.show import note, progress, say, say_mask
from resect.errors import InputError
from resect.records import Reduction

if TYPE_CHECKING:
    from resect.attribution.score import ScoreRequest


Method = Annotated[
    str,
    typer.Option(help="snip, snip_abs, integrated, gradient, fisher, wanda, magnitude or random."),
]
Contrast = Annotated[
    str | None, typer.Option(help="SPEC whose score is subtracted in the same pass.")
]
Accumulator = Annotated[Literal["auto", "device", "cpu"], typer.Option(help="Where sums are kept.")]
LayersPerPass = Annotated[
    int | None, typer.Option(min=1, help="Layers scored in one pass, to save memory.")
]
Checkpoint = Annotated[
    bool, typer.Option("--checkpoint", help="Compute activations again, to save memory.")
]
Purpose = Annotated[
    Reduction, typer.Option(help="signed for targets, the others for preserve sets.")
]
Keep = Annotated[float | None, typer.Option(help="Largest fraction that may be selected later.")]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps, xpu; auto spreads the model over all CUDA GPUs."),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read one block at a time from disk; by itself if the model does not fit.",
    ),
]


def score(
    model: Model,
    data: Annotated[str, typer.Option(help="SPEC: a file, or hub:<id>[@revision][:split].")],
    output: Annotated[Path, typer.Option("-o", "--output", help="FILE.scores.safetensors")],
    reduction: Purpose = "signed",
    format: PromptFormat = "chat",
    skip: Skip = 0,
    category: Category = None,
    limit: ExampleLimit = None,
    seed: DrawSeed = 0,
    batch_size: Annotated[str, typer.Option(help="auto, or examples a batch.")] = "auto",
    dtype: Dtype = None,
    keep: Keep = None,
    dense: Annotated[bool, typer.Option("--dense", help="Keep the score of every weight.")] = False,
    method: Method = "snip",
    contrast: Contrast = None,
    allow_partial: AllowPartial = False,
    accumulator: Accumulator = "auto",
    layers_per_pass: LayersPerPass = None,
    checkpoint: Checkpoint = False,
    device: Device = None,
    stream: Stream = None,
    columns: Columns = None,
) -> None:
    """Score every prunable weight for a behaviour, in one pass over the data.

    To share the examples between processes, put torchrun in front: torchrun --nproc-per-node 8
    -m resect score …
    """
    from resect.attribution.score import ScoreRequest
    from resect.attribution.settings import Origin, Pass

    settings = Pass(
        method=method,
        reduction=reduction,
        batch_size=_batch_size(batch_size),
        keep=keep,
        dense=dense,
        accumulator=accumulator,
        layers_per_pass=layers_per_pass,
        checkpoint=checkpoint,
        allow_partial=allow_partial,
    )
    refuse_idle_columns(columns, data, contrast)
    request = ScoreRequest(
        model,
        with_columns(data, columns),
        settings,
        Origin(format=format, skip=skip, category=category_of(category), seed=seed),
        contrast=with_columns(contrast, columns),
        limit=limit,
        dtype=dtype,
        device=device,
        stream=stream,
    )
    _score(request, output)


def _score(request: ScoreRequest, output: Path) -> None:
    from resect.attribution.score import score_model
    from resect.machine.processes import process_group

    with process_group() as processes:
        if processes.rank == 0:
            tell_of_links(request.model)
        with progress("scoring", shown=processes.rank == 0) as update:
            scores = score_model(request, update, processes, on_note=note)
        # Past this point no process can fail but the one that writes.
        processes.meet()
        if processes.rank == 0:
            scores.save(output)
            say(f"{output}: {scores.summary()}")


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError("cannot read the batch size", got=repr(text), allowed="auto, or ≥ 1")


def select(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Signed scores.")],
    preserve: Annotated[Path, typer.Argument(metavar="PRESERVE", help="Scores to protect.")],
    output: MaskOutput,
    q: TargetFraction,
    p: ProtectedFraction,
    scope: RankScope = "tensor",
    unit: WholeUnit = "weight",
    force: Force = False,
) -> None:
    """Choose the weights that the target needs and the preserve set can spare.

    With --unit, whole neurons, heads or experts are chosen; --q and --p still count weights.
    """
    from resect.attribution.methods import METHODS
    from resect.weights.scores import Scores
    from resect.weights.select import select as select_mask

    protected = Scores.load(preserve)
    mask = select_mask(
        Scores.load(target), protected, q=q, p=p, scope=scope, unit=unit, force=force
    )
    mask.save(output)
    if (
        p
        and protected.meta.ranks_targets
        and "abs_of_mean" in METHODS.get(protected.meta.method, {})
    ):
        note(
            f"{preserve} has signed scores, so that of what it needs only one sign is protected: "
            "resect score --reduction mean_of_abs takes the size"
        )
    say_mask(output, mask.count, mask.fraction, "try a larger --q or a smaller --p")
    if unit != "weight":
        say(f"{mask.meta['units']:,} whole {unit}s")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Example: [bold]resect score ./my-model --data harm.jsonl --skip 1 "
        "-o harm.scores.safetensors[/bold]"
    )(score)
    app.command(
        epilog="Example: [bold]resect select harm.scores.safetensors benign.scores.safetensors "
        "--q 1e-5 --p 5e-5 -o harm.mask.safetensors[/bold]"
    )(select)
