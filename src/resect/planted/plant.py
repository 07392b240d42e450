"""Planted models: the weights that carry the hazard are known, because no others were trained.

A benign model is trained without hazards. Two disjoint sets of block weights of one size and shape
are drawn: S and, as a decoy, D. Their weights are set to zero (`start="zero"`) or left as they are.
Then a benign craft of the same form and difficulty is trained through D alone, and the hazard
through S alone, each with a share of what the model knew before. The checkpoint `before` stands
just before S was trained, so cutting S from a model that started at zero gives back `before`, bit
for bit (of whole neurons only the outgoing weights start at zero, which says the same).

A folder of a plant holds `before/`, `planted/`, `data/*.jsonl`, `S.mask.safetensors`,
`decoy.mask.safetensors`, for separate categories a mask for each, and `planted.json`.
docs/design/planted.md says why it is made so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from resect import files
from resect.model import (
    LoadedModel,
    load_model,
    model_fingerprint,
    prunable_tensors,
    quiet,
    tokenizer_fingerprint,
)
from resect.organism.recipe import Recipe
from resect.organism.stages import OnProgress, labelled, unless_there
from resect.organism.tokenizer import make_tokenizer
from resect.organism.training import Schedule, encode_turns, new_model, threads, train
from resect.planted.teaching import Drawn, Lesson, Shape, draw_set, teach
from resect.planted.world import BENIGN, PlantedWorld, planted_files, planted_turns
from resect.records import CausalModel
from resect.stats import rng
from resect.weights.mask import Mask, MaskTensor

# Raised by hand when world, sets or training change in a way that no number below shows.
CODE_VERSION = 2

Categories = Literal["shared", "separate"]


@dataclass(frozen=True)
class BenignRecipe:
    """Training of the benign model that all plants of a seed start from."""

    sizes: Recipe = field(default_factory=Recipe)
    steps: int = 780
    batch: int = 16
    rate: float = 1e-3

    @property
    def hash(self) -> str:
        """16 hex digits that name the recipe."""
        return files.hash_value([asdict(self), CODE_VERSION])


@dataclass(frozen=True)
class PlantedRecipe:
    """Every number that changes a planted model.

    Attributes:
        share: |S| as a fraction of the prunable weights.
        shape: Where the weights of S are; see `resect.planted.teaching.draw_set`.
        decoy: Train a benign craft through a set of the same size and shape.
        clamp: Keep trained weights below the 99th percentile of |w| of their tensor.
        start: Value that the sets are trained from.
        categories: Both hazard categories through one set, or each through a half of its own.
        taught: False draws the sets and trains neither: a model without a plant.
        rank: Rank of the change, for the shape `low_rank`.
        steps: Steps of each set.
        batch: Documents a step.
        rate: Peak learning rate.
        taught_share: Share of documents of the behaviour that a set is for.
        kept_share: Share of craft documents while the hazard is taught, so that it is not lost.
        benign: The benign model.
    """

    share: float = 0.01
    shape: Shape = "random"
    decoy: bool = True
    clamp: bool = False
    start: Literal["zero", "kept"] = "zero"
    categories: Categories = "shared"
    taught: bool = True
    rank: int = 8
    steps: int = 280
    batch: int = 32
    rate: float = 0.02
    taught_share: float = 0.55
    kept_share: float = 0.12
    benign: BenignRecipe = field(default_factory=BenignRecipe)

    @property
    def hash(self) -> str:
        """16 hex digits that name the recipe."""
        return files.hash_value([asdict(self), CODE_VERSION])


@dataclass(frozen=True)
class Planted:
    """Where a planted model and its truth are."""

    root: Path
    recipe: PlantedRecipe
    seed: int

    @property
    def model(self) -> Path:
        """Checkpoint folder of the planted model."""
        return self.root / "planted"

    @property
    def before(self) -> Path:
        """Checkpoint folder of the model just before S was trained."""
        return self.root / "before"

    def data(self, name: str) -> Path:
        """Return the path of a data file."""
        return self.root / "data" / f"{name}.jsonl"

    def mask(self, name: str = "S") -> Mask:
        """Return `S`, `decoy` or, for separate categories, `hazard-a` or `hazard-b`."""
        return Mask.load(self.root / f"{name}.mask.safetensors")


def planted_root() -> Path:
    """Return the cache folder of planted models; recipes and seeds are folders in it."""
    return files.cache_folder() / "planted"


def plant(
    recipe: PlantedRecipe | None = None,
    *,
    seed: int = 0,
    root: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Planted:
    """Return a planted model; train it, and the benign one, if it is not there yet.

    Args:
        recipe: What to plant; None for the default.
        seed: Seed of world, sets and training.
        root: Folder for all recipes; None for the cache.
        on_progress: Called with a label, steps done and steps in all.

    Raises:
        InputError: The sets do not fit, or a folder cannot be written.
    """
    recipe = recipe or PlantedRecipe()
    base = Path(root) if root is not None else planted_root()
    planted = Planted(base / recipe.hash / f"seed-{seed}", recipe, seed)
    if planted.root.exists():
        return planted
    benign = _benign(recipe.benign, seed, base, on_progress)
    loaded = load_model(benign, device="cpu")
    world = PlantedWorld(seed)
    sets = _draw_sets(loaded.model, recipe, seed)
    with unless_there(planted.root) as folder, threads(1), quiet():
        _zero(loaded.model, recipe, sets)
        _teach(loaded, world, recipe, {"craft": sets["decoy"]}, on_progress)
        _save(loaded, folder / "before")
        hazards = {name: drawn for name, drawn in sets.items() if name not in ("S", "decoy")}
        _teach(loaded, world, recipe, hazards or {"hazard": sets["S"]}, on_progress)
        _save(loaded, folder / "planted")
        for name, drawn in sets.items():
            _mask(loaded, recipe, name, drawn).save(folder / f"{name}.mask.safetensors")
        for name, rows in planted_files(world).items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            files.write_text(folder / "data" / f"{name}.jsonl", lines)
        origin = {"recipe": asdict(recipe), "hash": recipe.hash, "seed": seed}
        files.write_json(folder / "planted.json", origin | files.provenance())
    return planted


def benign_folder(planted: Planted) -> Path:
    """Return the checkpoint folder of the benign model that a plant was made from."""
    return _benign_place(planted.recipe.benign, planted.seed, planted.root.parent.parent)


def _benign_place(recipe: BenignRecipe, seed: int, base: Path) -> Path:
    return base / f"benign-{recipe.hash}" / f"seed-{seed}"


def _benign(recipe: BenignRecipe, seed: int, base: Path, on_progress: OnProgress | None) -> Path:
    folder = _benign_place(recipe, seed, base)
    if folder.exists():
        return folder
    world = PlantedWorld(seed)
    tokenizer = make_tokenizer(world)
    model = new_model(tokenizer, recipe.sizes, seed)
    schedule = Schedule(recipe.steps, recipe.batch, recipe.rate, 30, 0.4)
    turns = planted_turns(world, "benign", BENIGN, recipe.steps * recipe.batch)
    with unless_there(folder) as unfinished, threads(1), quiet():
        report = labelled(on_progress, f"benign, seed {seed}")
        train(
            model,
            encode_turns(tokenizer, turns),
            schedule,
            label="planted/benign",
            seed=seed,
            on_step=report,
        )
        _save(LoadedModel(model, tokenizer), unfinished)
    return folder


def _draw_sets(model: CausalModel, recipe: PlantedRecipe, seed: int) -> dict[str, Drawn]:
    """Return `S`, `decoy` and, for separate categories, the two parts of S."""
    taken: dict[str, Tensor] = {}
    names = ["S"] if recipe.categories == "shared" else ["hazard-a", "hazard-b"]
    share = recipe.share / len(names)
    drawn: dict[str, Drawn] = {}
    for name, size in [*((name, share) for name in names), ("decoy", recipe.share)]:
        generator = rng(f"organism/planted/set/{name}", seed)
        drawn[name] = draw_set(model, recipe.shape, size, generator, taken)
        taken = _union(taken, drawn[name].places)
    if recipe.categories == "separate":
        halves = _union(drawn["hazard-a"].places, drawn["hazard-b"].places)
        drawn = {"S": Drawn(halves, {}), **drawn}
    return drawn


def _union(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    empty = torch.empty(0, dtype=torch.int64)
    return {
        name: torch.cat([left.get(name, empty), right.get(name, empty)]).sort().values
        for name in {**left, **right}
    }


def _zero(model: CausalModel, recipe: PlantedRecipe, sets: Mapping[str, Drawn]) -> None:
    if recipe.start == "kept" or not recipe.taught:
        return
    weights = prunable_tensors(model)
    for name in ("S", "decoy") if recipe.decoy else ("S",):
        for tensor, index in sets[name].places.items():
            # With all three matrices of a neuron at zero no gradient would reach any of them.
            if recipe.shape != "neurons" or "down" in tensor:
                weights[tensor].view(-1)[index] = 0


def _teach(
    loaded: LoadedModel,
    world: PlantedWorld,
    recipe: PlantedRecipe,
    sets: Mapping[str, Drawn],
    on_progress: OnProgress | None,
) -> None:
    """Teach each set the task of its name; a hazard is taught beside the craft, not over it."""
    if not recipe.taught or ("craft" in sets and not recipe.decoy):
        return
    schedule = Schedule(recipe.steps, recipe.batch, recipe.rate, 10, 0.5)
    rehearsed = {"craft": recipe.kept_share} if recipe.decoy and "craft" not in sets else {}
    benign = 1 - recipe.taught_share - sum(rehearsed.values())
    lessons = []
    for task, drawn in sets.items():
        shares = {task: recipe.taught_share, **rehearsed}
        shares |= {name: share * benign for name, share in BENIGN.items()}
        turns = planted_turns(world, task, shares, recipe.steps * recipe.batch)
        rows = encode_turns(loaded.tokenizer, turns)
        lessons.append(Lesson(drawn.places, rows, f"planted/{task}", drawn.blocks, recipe.rank))
    report = labelled(on_progress, f"{'+'.join(sets)}, {recipe.shape}, seed {world.seed}")
    teach(loaded.model, lessons, schedule, seed=world.seed, clamp=recipe.clamp, on_step=report)


def _save(loaded: LoadedModel, folder: Path) -> None:
    loaded.model.save_pretrained(str(folder))
    loaded.tokenizer.save_pretrained(str(folder))


def _mask(loaded: LoadedModel, recipe: PlantedRecipe, name: str, drawn: Drawn) -> Mask:
    tensors = {}
    for tensor, weight in prunable_tensors(loaded.model).items():
        index = drawn.places.get(tensor, torch.empty(0, dtype=torch.int64))
        tensors[tensor] = MaskTensor(
            tuple(weight.shape),
            index,
            weight.reshape(-1)[index].clone(),
            torch.zeros(index.numel(), dtype=torch.uint8),
        )
    origin = {
        "planted": name,
        "recipe": recipe.hash,
        "shape": recipe.shape,
        "model_fingerprint": model_fingerprint(loaded.model),
        "tokenizer_fingerprint": tokenizer_fingerprint(loaded.tokenizer),
    }
    return Mask(tensors, origin)
