"""Two copies of a real model that are tuned here: one to refuse, and one as long without refusals.

    aligned        harmful prompts with templated refusals, benign ones with the model's own answers
    benign_tuned   the benign rows alone, for as many steps

Both are trained by TRL on the prompts of `lessons`, and `checked` says what came of it. They lie
beside the model in the cache, in a folder that is named by all that they are made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from resect import files
from resect.data.load import load_data
from resect.data.rows import read_rows
from resect.edit.tune import TuneSettings, tune
from resect.errors import InputError
from resect.evaluation.collect import CollectRequest, collect
from resect.files.locking import locked
from resect.model import load_model, quiet
from resect.organism.training import threads
from resect.records import Example
from resect.runs.real.checked import PHRASES, TOKENS, Check, check_copies, judge_of
from resect.runs.real.lessons import Lessons, Recipe, make_lessons
from resect.runs.real.prompts import Prompt
from resect.runs.real.sets import BATCH, PLAIN, REFUSALS, Manner, Size, lines

OnProgress = Callable[[int, int], None]
# Opens a block in which something of a name is done, with what takes how far it is.
Bar = Callable[[str], AbstractContextManager[OnProgress]]
CHECK = "check.json"


class Pair(NamedTuple):
    """A model and its tuned copies.

    Attributes:
        untuned: Folder of the model.
        folder: Where all that was made of it lies.
        aligned: Checkpoint folder of the copy that refuses.
        benign_tuned: The same of the copy that was tuned as long without refusals.
    """

    untuned: Path
    folder: Path
    aligned: Path
    benign_tuned: Path

    @property
    def models(self) -> dict[str, Path]:
        """Folders by role."""
        return {"base": self.untuned, "aligned": self.aligned, "benign_tuned": self.benign_tuned}


def pair_of(
    model: Path,
    sources: Sequence[str],
    recipe: Recipe,
    reserved: Sequence[Size],
    manner: Manner = PLAIN,
) -> Pair:
    """Return where the copies of a model are, or will be.

    Args:
        model: Its folder.
        sources: Names of the wheels that prompts are from.
        recipe: How copies are made.
        reserved: Sizes of sets whose prompts are no lesson.
        manner: How the model's own answers are had.
    """
    depends = {
        "model": model.name,
        "sources": sorted(sources),
        "recipe": recipe,
        "reserved": [[size.asked, size.pool, size.types] for size in reserved],
        "manner": manner,
        "refusals": REFUSALS,
        "portable": files.provenance()["portable"],
    }
    folder = model.with_name(f"pair-{files.hash_value(files.plain(depends))}")
    return Pair(model, folder, folder / "aligned", folder / "benign_tuned")


def make_pair(
    pair: Pair,
    read: Callable[[], Mapping[str, Sequence[Prompt]]],
    recipe: Recipe,
    reserved: Sequence[Size],
    bar: Bar,
    *,
    manner: Manner = PLAIN,
) -> Check:
    """Tune the copies that are not there yet, and return what they do.

    Args:
        pair: From `pair_of`, with the same arguments.
        read: Returns prompts under `harm`, `benign`, `facts`; called if something is to be made.
        recipe: How copies are made.
        reserved: Sizes of sets whose prompts are no lesson.
        bar: Shows how far something is.
        manner: How the model's own answers are had.

    Raises:
        InputError: Another process is at work on these copies, there are too few prompts or
            answers, or a copy does not do what it was tuned to.
    """
    path = pair.folder / CHECK
    if not path.is_file():
        with locked(pair.folder):
            origin = {"recipe": asdict(recipe), "refusals": REFUSALS} | files.provenance()
            files.write_json(pair.folder / "pair.json", origin)
            with bar("collecting what copies are tuned on") as update:
                lessons = make_lessons(
                    str(pair.untuned), read, pair.folder, recipe, reserved, update, manner=manner
                )
            with bar("tuning two copies") as update:
                _tune_copies(pair, lessons, recipe, update)
            with bar("looking at the copies") as update:
                files.write_json(path, check_copies(pair.models, lessons, pair.folder, update))
    check = files.read_as(path, Check, "check of tuned copies")
    check.refuse_untaught()
    return check


def _tune_copies(pair: Pair, lessons: Lessons, recipe: Recipe, update: OnProgress) -> None:
    """Tune both copies, each to its rows; one that is there stays."""
    refused, rehearsed = (load_data(path).split("calibration").examples for path in lessons)
    rows = {pair.aligned: (*refused, *rehearsed), pair.benign_tuned: rehearsed}
    for number, (target, examples) in enumerate(rows.items()):
        on_step = partial(_report, update, number * recipe.steps, len(rows) * recipe.steps)
        on_step(0, recipe.steps)
        if not target.is_dir():
            _tune(pair.untuned, target, examples, recipe, on_step)
        on_step(recipe.steps, recipe.steps)


def _report(update: OnProgress, before: int, total: int, done: int, _steps: int) -> None:
    """Report the steps of a copy among those of all copies."""
    update(before + done, total)


def _tune(
    model: Path,
    target: Path,
    examples: Sequence[Example],
    recipe: Recipe,
    on_step: OnProgress,
) -> None:
    settings = TuneSettings(
        steps=recipe.steps,
        rate=recipe.rate,
        batch=recipe.batch,
        schedule="linear",
        warmup=recipe.warmup,
    )
    with threads(recipe.threads):
        # On the CPU everywhere, so that a copy does not depend on what else is there.
        loaded = load_model(model, device="cpu")
        tune(loaded, examples, settings, on_step=on_step)
    with files.atomic_folder(target) as draft, quiet():
        loaded.model.save_pretrained(str(draft))
        loaded.tokenizer.save_pretrained(str(draft))


def own_refusals(pair: Pair, harm: Path, on_progress: OnProgress | None = None) -> Path:
    """Return the refusals by which the tuned copy answers the prompts of a set, collected once.

    Args:
        pair: The copies, made.
        harm: The set; prompts keep their sides.
        on_progress: Called with prompts done and prompts in all.

    Raises:
        InputError: The copy refuses less than half of the prompts of a side.
    """
    asked = read_rows(harm)
    name = f"refusals-{files.hash_file(harm)}"
    path = pair.folder / f"{name}.jsonl"
    if not path.is_file():
        kept = ("id", "prompt", "category", "split")
        prompts = pair.folder / f"{name}.prompts.jsonl"
        files.write_text(prompts, lines([{key: row[key] for key in kept} for row in asked]))
        request = CollectRequest(
            model=str(pair.aligned),
            data=str(prompts),
            attack="none",
            judge=judge_of(pair.folder / PHRASES),
            want="refused",
            max_new_tokens=TOKENS,
            batch_size=BATCH,
        )
        collect(request, path, on_progress)
    refused = read_rows(path)
    for side in ("calibration", "evaluation"):
        had, wanted = (sum(row["split"] == side for row in rows) for rows in (refused, asked))
        if 2 * had < wanted:
            raise InputError(
                "the copy that was tuned to refuse does not refuse enough of the prompts",
                got=f"{had} of {wanted} {side} rows",
                allowed="half of them, or more",
            )
    return path
