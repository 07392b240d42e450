"""Commands on behaviour sets: data list, show, check, collect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resect.cli.options import (
    BatchSize,
    Columns,
    JudgeName,
    MaxNewTokens,
    Model,
    PromptFormat,
    Skip,
    Temperature,
    refuse_idle_columns,
    with_columns,
)
from resect.cli.show import mode, note, progress, say, table
from resect.records import Format, Tokenizer

if TYPE_CHECKING:
    from resect.data.check import Pair
    from resect.data.load import BehaviourSet
    from resect.data.rendered import View

data_app = typer.Typer(no_args_is_help=True, help="Behaviour sets: presets, checks, collection.")

Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="A file, a preset[@revision][:split], or hub:<id>[@revision][:split]."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with local copies of preset sets; also RESECT_DATA_DIR."),
]
LONGEST = 200
# What `data check` shows of a text at each of its ends.
END = 240


@data_app.command("list", epilog="Example: [bold]resect data list[/bold]")
def list_presets() -> None:
    """List the presets of public sets."""
    from resect.data import find_preset, preset_names

    table(
        "presets",
        [
            {
                "preset": preset.name,
                "set": preset.title,
                "hub": preset.hub or "not there",
                "revision": (preset.revision or "give one")[:8] if preset.hub else "–",
                "gated": preset.gated,
                "responses": not preset.prompts_only,
                "licence": preset.licence,
            }
            for preset in map(find_preset, preset_names())
        ],
    )
    say("more on one: resect data show PRESET")


@data_app.command("show", epilog="Example: [bold]resect data show triviaqa --rows 3[/bold]")
def show(
    spec: Spec,
    rows: Annotated[
        int, typer.Option(min=0, help="Show the text of so many rows; it may be harmful.")
    ] = 0,
    data_dir: DataDir = None,
    columns: Columns = None,
) -> None:
    """Say what a set is and where it comes from; its text only if asked."""
    from resect.data import find_preset, load_data, preset_names
    from resect.data.encode import prompt_text
    from resect.data.seeds import read_seeds
    from resect.errors import InputError

    refuse_idle_columns(columns, spec)
    spec = with_columns(spec, columns)
    name = spec.partition(":")[0].partition("@")[0]
    seeds = name.endswith(".yaml") and Path(name).is_file() and read_seeds(Path(name)) is not None
    is_preset = not seeds and (
        name.endswith(".yaml") or (name in preset_names() and not Path(spec).is_file())
    )
    if is_preset:
        card = find_preset(name).model_dump(mode="json", exclude_defaults=True)
        table(name, [{"field": key, "value": str(value)} for key, value in card.items()])
    try:
        data = (
            load_data(spec, data_dir=data_dir, prompts_only=True) if rows or not is_preset else None
        )
    except InputError:
        if is_preset and not rows:
            return
        raise
    if data is None:
        return
    splits = sorted({example.split for example in data.examples} - {""})
    say(f"{spec}: {len(data):,} rows, hash {data.hash}, splits {', '.join(splits) or 'none'}")
    table("origin", [{"key": key, "value": str(value)} for key, value in data.origin.items()])
    table(
        "rows",
        [
            {
                "id": example.id,
                "category": example.category,
                "split": example.split,
                "prompt": prompt_text(example)[:LONGEST],
                "completion": example.completion[:LONGEST],
            }
            for example in data.examples[:rows]
        ],
    )


@data_app.command(
    "check", epilog="Example: [bold]resect data check harm.jsonl --against test.jsonl[/bold]"
)
def check(
    spec: Spec,
    against: Annotated[
        str | None, typer.Option(metavar="SPEC", help="A set that is evaluated on.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Count the tokens of this model's tokenizer.")
    ] = None,
    data_dir: DataDir = None,
    columns: Columns = None,
    *,
    examples: Annotated[
        int, typer.Option(min=0, help="Show so many rows as the model sees them; 0 for none.")
    ] = 3,
    format: Annotated[
        Format | None, typer.Option(help="How prompts are put; else as the tokenizer allows.")
    ] = None,
    skip: Skip = 0,
) -> None:
    """Look for doubled rows and leaks, lengths and categories; exit 2 on a leak."""
    from resect.data import load_data
    from resect.data.check import check_set
    from resect.data.rendered import View
    from resect.errors import InputError

    refuse_idle_columns(columns, spec, against)
    spec, against = with_columns(spec, columns), with_columns(against, columns)
    data = load_data(spec, data_dir=data_dir, prompts_only=True)
    evaluation = against and load_data(against, data_dir=data_dir, prompts_only=True)
    tokenizer = None if model is None else _tokenizer_of(model)
    count = None if tokenizer is None else _counter(tokenizer)
    checked = check_set(data, evaluation or None, count)
    say(f"{spec}: {len(data):,} rows, hash {data.hash}")
    chat = getattr(tokenizer, "chat_template", None)
    _show_examples(data, examples, View(tokenizer, format or ("chat" if chat else "raw"), skip))
    table("lengths", checked.lengths)
    table("categories", checked.categories)
    for title, pairs in (("rows that ask the same", checked.duplicates), ("leaks", checked.leaks)):
        table(title, _pair_rows(pairs))
    _say_keys(data)
    if checked.sides is None:
        note("no splits and no --against: nothing to look for leaks between")
        return
    if checked.leaks:
        raise InputError(
            f"{len(checked.leaks)} of {checked.sides.evaluation} evaluation rows ask what a "
            "calibration row asks",
            got=", ".join(f"{pair.earlier} and {pair.later}" for pair in checked.leaks[:5]),
            allowed="disjoint sets",
            fix="remove the rows from one side",
        )
    say(
        f"no leak between {checked.sides.calibration:,} calibration and "
        f"{checked.sides.evaluation:,} evaluation rows"
    )


def _tokenizer_of(model: str) -> Tokenizer:
    from resect.model.load import load_tokenizer

    return load_tokenizer(model)


def _counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """Return what counts the tokens of a text."""
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _show_examples(data: BehaviourSet, count: int, view: View) -> None:
    """Show rows as the model sees them, with what is scored between marks."""
    from resect.data.rendered import render_some

    if not count:
        return
    rendered = list(render_some(data, count, view))
    if mode().machine:
        table("examples", [asdict(row) for row in rendered])
        return
    how = "as they are; --model shows the model's own template and tokens"
    if view.tokenizer is not None:
        how = f"in {view.format} format, {view.skip} response tokens skipped"
    note(f"examples {how}; what is scored stands between ⟦ and ⟧")
    for row in rendered:
        scored = f"not scored: {row.why}" if row.why else f"⟦{_shown(row.scored)}⟧"
        say(f"{row.id}: {_shown(row.before)}{scored}")


def _shown(text: str) -> str:
    """Return a text on one line, and of a long one both ends."""
    if len(text) > 2 * END:
        text = f"{text[:END]} … {text[-END:]}"
    return text.replace("\n", "↵")


def _pair_rows(pairs: Sequence[Pair]) -> list[dict[str, object]]:
    """Return a row for each way in which rows ask the same."""
    likenesses = dict.fromkeys(pair.likeness for pair in pairs)
    groups = {
        likeness: [pair for pair in pairs if pair.likeness == likeness] for likeness in likenesses
    }
    return [
        {
            "kind": likeness,
            "pairs": len(group),
            "first pair": f"{group[0].earlier}, {group[0].later}",
        }
        for likeness, group in groups.items()
    ]


def _say_keys(data: BehaviourSet) -> None:
    """Say which rows would be judged wrong if the model said just what they hold."""
    from resect.evaluation.judges.exact import judge_exact
    from resect.evaluation.spoken import to_judge
    from resect.records import Reply

    keyed = [example for example in data.examples if example.key and example.completion]
    replies = [Reply(e.id, "", "", "", "", "", e.completion, e.key, e.completion) for e in keyed]
    outcomes = [judge_exact(to_judge(reply), "comply").outcome for reply in replies]
    wrong = ("partial", "wrong", "incoherent")
    missed = [r for r, outcome in zip(replies, outcomes, strict=True) if outcome in wrong]
    if missed:
        note(
            f"{len(missed):,} of {len(replies):,} completions are not right by their own key, "
            f"first {missed[0].example_id}: the exact judge would count them as wrong answers"
        )


@data_app.command(
    "collect",
    epilog="Example: [bold]resect data collect ./my-model --data advbench --attack prefill:10 "
    "--judge keyword -n 4 --temperature 1 -o harm.jsonl[/bold]",
)
def collect(
    model: Model,
    data: Annotated[str, typer.Option(metavar="SPEC", help="Prompts, with answers for prefill:K.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="New FILE.jsonl.")],
    attack: Annotated[
        str, typer.Option(help="none, prefill[:K] or prefill=PHRASE.")
    ] = "prefill:10",
    judge: JudgeName = "exact",
    want: Annotated[
        Literal["complied", "refused"], typer.Option(help="Which replies are kept.")
    ] = "complied",
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="Replies a prompt.")] = 1,
    temperature: Temperature = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the samples and of --limit.")] = 0,
    format: PromptFormat = "chat",
    category: Annotated[str | None, typer.Option(help="Ask this category alone.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    count_prefix: Annotated[
        bool, typer.Option("--count-prefix", help="Score the attack's words as a response too.")
    ] = False,
    batch_size: BatchSize = 16,
    data_dir: DataDir = None,
    columns: Columns = None,
) -> None:
    """Elicit a model's own responses and keep those that a judge accepts; can be interrupted."""
    from resect.evaluation.collect import CollectRequest
    from resect.evaluation.collect import collect as run
    from resect.evaluation.spoken import cut_off_note

    refuse_idle_columns(columns, data)
    request = CollectRequest(
        model=model,
        data=with_columns(data, columns),
        attack=attack,
        judge=judge,
        want=want,
        samples=samples,
        temperature=temperature,
        seed=seed,
        format=format,
        category=category,
        limit=limit,
        max_new_tokens=max_new_tokens,
        count_prefix=count_prefix,
        batch_size=batch_size,
        data_dir=data_dir,
    )
    with progress("collecting") as update:
        done = run(request, output, on_progress=update)
    table(
        "rejected",
        [{"reason": reason, "replies": count} for reason, count in done.rejected.items()],
    )
    if warning := cut_off_note(done.cut_off, "kept and rejected"):
        note(warning)
    say(f"{output}: {done.kept:,} rows")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(data_app, name="data")
