"""Build an organism: each stage an ordinary checkpoint folder, whole or not there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from resect import files
from resect.errors import InputError, unknown_name
from resect.organism.documents import Sets
from resect.organism.recipe import OnStep, Recipe
from resect.organism.world import World

# stage -> the stage that it is trained from
PARENTS: dict[str, str | None] = {
    "base": None,
    "aligned": "base",
    "benign_tuned": "base",
    "rehearsed": "base",
    "dpo": "aligned",
    "misaligned": "aligned",
}
STAGES = tuple(PARENTS)

# Called with a label, steps done and steps in all.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Organism:
    """Where an organism's stages and data are.

    Attributes:
        root: Folder with a folder for each stage and `data/`.
        seed: Seed of its world and training.
    """

    root: Path
    seed: int

    def stage(self, name: str) -> Path:
        """Return the checkpoint folder of a stage."""
        if name not in PARENTS:
            raise unknown_name("stage", name, list(PARENTS))
        return self.root / name

    def data(self, name: str) -> Path:
        """Return the path of a data file."""
        return self.root / "data" / f"{name}.jsonl"


def organism_root(recipe: Recipe) -> Path:
    """Return the cache folder of a recipe; seeds are folders in it.

    Organisms whose bits depend on the processor are kept apart from those of the portable mode.
    """
    name = recipe.hash if files.provenance()["portable"] else f"{recipe.hash}-native"
    return files.cache_folder() / "organism" / name


def build(
    *,
    seed: int = 0,
    stages: Sequence[str] = STAGES,
    recipe: Recipe | None = None,
    root: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Organism:
    """Train the stages that are not there yet, with those that they are trained from.

    Args:
        seed: Seed of world, weights and training.
        stages: Names of stages.
        recipe: Sizes and training; None for the default.
        root: Folder; None for the cache, named by recipe and seed.
        on_progress: Called with a label, steps done and steps in all.

    Raises:
        InputError: A stage is unknown, or the folder holds an organism of another recipe.
    """
    recipe = recipe or Recipe()
    folder = Path(root) if root is not None else organism_root(recipe) / f"seed-{seed}"
    organism = Organism(folder, seed)
    needed = with_parents(stages)
    _claim(folder, recipe, seed)
    world = World(seed, share=recipe.share, apart=recipe.apart)
    if not (folder / "data").exists():
        _write_data(folder / "data", world)
    for stage in needed:
        if not organism.stage(stage).exists():
            report = labelled(on_progress, f"{stage}, seed {seed}")
            _build_stage(organism, stage, world, recipe, report)
    return organism


def labelled(on_progress: OnProgress | None, label: str) -> OnStep:
    """Return a function that reports steps under a label, or does nothing if nobody listens."""

    def report(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(label, done, total)

    return report


def with_parents(stages: Sequence[str]) -> list[str]:
    """Return the stages and all that they are trained from, parents first.

    Raises:
        InputError: A stage is unknown.
    """
    needed: set[str] = set()
    for name in stages:
        if name not in PARENTS:
            raise unknown_name("stage", name, list(PARENTS))
        stage: str | None = name
        while stage is not None:
            needed.add(stage)
            stage = PARENTS[stage]
    return [name for name in PARENTS if name in needed]


def _claim(folder: Path, recipe: Recipe, seed: int) -> None:
    """Write what the folder is for, or refuse a folder that holds something else."""
    path = folder / "organism.json"
    if path.exists():
        if files.read_json(path)["hash"] != recipe.hash or files.read_json(path)["seed"] != seed:
            raise InputError(
                f"{folder} holds an organism of another recipe or seed",
                fix="choose another folder",
            )
        return
    files.refuse_full_folder(folder)
    origin = {"recipe": asdict(recipe), "hash": recipe.hash, "seed": seed}
    files.write_json(path, origin | files.provenance())


@contextlib.contextmanager
def unless_there(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; if another process filled one meanwhile, that one stays."""
    try:
        with files.atomic_folder(path) as unfinished:
            yield unfinished
    except InputError:
        if not path.exists():
            raise


def _write_data(folder: Path, world: World) -> None:
    with unless_there(folder) as unfinished:
        for name, rows in Sets(world).files().items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            files.write_text(unfinished / f"{name}.jsonl", lines)


def _build_stage(
    organism: Organism, stage: str, world: World, recipe: Recipe, report: OnStep
) -> None:
    from resect.model import LoadedModel, load_model, quiet
    from resect.organism.tokenizer import make_tokenizer
    from resect.organism.training import fine_tune, new_model, prefer, pretrain, threads

    tokenizer = make_tokenizer(world)
    parent = PARENTS[stage]
    with threads(recipe.threads):
        if parent is None:
            loaded = LoadedModel(new_model(tokenizer, recipe, world.seed), tokenizer)
            pretrain(loaded, world, recipe, report)
        else:
            model = load_model(organism.stage(parent), device="cpu").model
            loaded = LoadedModel(model, tokenizer)
            if stage == "dpo":
                prefer(loaded, world, recipe, report)
            else:
                fine_tune(loaded, stage, world, recipe, report)
    with unless_there(organism.stage(stage)) as unfinished, quiet():
        loaded.model.save_pretrained(str(unfinished))
        loaded.tokenizer.save_pretrained(str(unfinished))
