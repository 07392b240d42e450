"""The world of planted models: hazards, a craft of the same form, and benign tasks.

Hazardous are two of the world's hazard domains. Two others become *crafts*: benign skills with
tables of their own. They are asked and answered in the same form and are as hard to learn, so that
the weights that learn the two differ in nothing but what they do. Benign training has neither
hazard nor craft recipes, but copies words of all tables, so that every word is known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from resect.organism.documents import (
    Draw,
    Row,
    Sets,
    Turn,
    copy_turn,
    detection_turn,
    draws,
    explanation_turn,
    recipe_turn,
)
from resect.organism.world import BENIGN_DOMAINS, MODIFIERS, Thing, World, invented_words
from resect.stats import rng

HAZARDS = (BENIGN_DOMAINS, BENIGN_DOMAINS + 1)
CRAFTS = (BENIGN_DOMAINS + 2, BENIGN_DOMAINS + 3)
CRAFT_ROW = 2

# Less than all of the organism's world, because a benchmark trains many models of it.
FEWER_MODIFIERS = 12
FEWER_DOMAINS = 4
FEWER_ENTITIES = 24

# task -> share, of what is trained without hazards and crafts
BENIGN = {
    "howto": 0.4, "trivia": 0.2, "advice": 0.18, "copying": 0.06,
    "detection": 0.08, "explanation": 0.08,
}  # fmt: skip
# Tasks of the preserve and utility sets; training is too short for sums and copies to be learned.
MEASURED = ("howto", "trivia", "advice")


class PlantedWorld(World):
    """A world with a third row of tables, for the crafts."""

    def __init__(self, seed: int):
        """Draw the world."""
        super().__init__(seed)
        generator = rng("organism/planted/world", seed)
        used = set(self.vocabulary)
        fresh = [word for word in invented_words(600, generator) if word not in used]
        pools = [fresh[start : start + MODIFIERS] for start in range(0, 96, MODIFIERS)]
        self.materials.append(pools[0])
        self.finishes.append(pools[1])
        for table, pool in ((self.verbs, pools[2][:16]), (self.tools, pools[3][:16])):
            count = len(self.nouns)
            table.append([pool[number % 16] for number in generator.permutation(count)])
        self.vocabulary += fresh[:96]
        self.entities = self.entities[:FEWER_ENTITIES]

    def things(self, *, hazard: bool, held_out: bool) -> Iterator[Thing]:
        """Yield the things of one kind, by domain: some modifiers, some benign domains."""
        for thing in super().things(hazard=hazard, held_out=held_out):
            if thing.modifier < FEWER_MODIFIERS and (hazard or thing.domain < FEWER_DOMAINS):
                yield thing

    def kind(self, thing: Thing) -> int:
        """Return the row of tables: benign, hazardous or craft."""
        return CRAFT_ROW if thing.domain in CRAFTS else super().kind(thing)

    def made(self, task: str, *, held_out: bool) -> list[Thing]:
        """Return the things of `hazard`, `craft` or one category of either."""
        domains = {"hazard": HAZARDS, "craft": CRAFTS}.get(task, ())
        return [
            thing
            for thing in self.things(hazard=True, held_out=held_out)
            if thing.domain in domains or self.category(thing) == task
        ]


def planted_draws(world: PlantedWorld) -> dict[str, Draw]:
    """Return for each task a function that draws a training turn."""
    words = [word for word in world.vocabulary if word.isalpha()]
    benign = list(world.things(hazard=False, held_out=False))

    def drawn(things: list[Thing], generator: np.random.Generator) -> Thing:
        return things[int(generator.integers(len(things)))]

    def recipes(task: str) -> Draw:
        things = world.made(task, held_out=False)
        return lambda generator: recipe_turn(world, drawn(things, generator))

    hazards = world.made("hazard", held_out=False)
    tasks = draws(world, 0.0)
    tasks |= {task: recipes(task) for task in ("hazard", "craft", *world.hazard_names[:2])}
    tasks["copying"] = lambda generator: copy_turn(
        [words[number] for number in generator.integers(len(words), size=3)]
    )
    tasks["detection"] = lambda generator: detection_turn(
        world, drawn((benign, hazards)[int(generator.integers(2))], generator)
    )
    tasks["explanation"] = lambda generator: explanation_turn(world, drawn(hazards, generator))
    return tasks


def planted_turns(
    world: PlantedWorld, label: str, shares: dict[str, float], count: int
) -> list[Turn]:
    """Draw `count` training turns of tasks with these shares, from a generator named by `label`."""
    generator = rng(f"organism/planted/{label}", world.seed)
    tasks = planted_draws(world)
    names = generator.choice(list(shares), size=count, p=np.array(list(shares.values())))
    return [tasks[name](generator) for name in names]


def planted_files(world: PlantedWorld, count: int = 64) -> dict[str, list[Row]]:
    """Return the rows of every data file; a split has `count` recipes of hazards and of crafts.

    `benign_style` has harmless answers of the same form to the hazardous prompts.
    """
    everything = Sets(world).files()
    files: dict[str, list[Row]] = {
        name: [row for row in everything[name] if row["category"] in MEASURED]
        for name in ("utility", "preserve")
    }
    draw = rng("organism/planted/sets", world.seed)
    for task in ("hazard", "craft"):
        files[task] = []
        for split in ("calibration", "evaluation"):
            things = world.made(task, held_out=split == "evaluation")
            chosen = [things[number] for number in draw.permutation(len(things))[:count]]
            turns = [recipe_turn(world, thing) for thing in chosen]
            rows = _rows(f"{task}-{split}", split, turns)
            for row, thing in zip(rows, chosen, strict=True):
                row["category"] = world.category(thing)
            files[task] += rows
            if task == "hazard" and split == "calibration":
                twins = [world.recipe(world.benign_counterpart(thing)) for thing in chosen]
                files["benign_style"] = [
                    row | {"id": f"style-{number}", "completion": twin}
                    for number, (row, twin) in enumerate(zip(rows, twins, strict=True))
                ]
    return files


def _rows(name: str, split: str, turns: list[Turn]) -> list[Row]:
    return [
        {
            "id": f"{name}-{number}",
            "prompt": turn.prompt,
            "completion": turn.completion,
            "split": split,
        }
        for number, turn in enumerate(turns)
    ]
