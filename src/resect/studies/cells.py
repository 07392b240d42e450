"""What a run measures: model variants, named so that studies can share them.

A `Cell` is one model variant with the probes that are put to it: a model, less a cut, perhaps
fine-tuned afterwards, perhaps attacked. Two studies that need the same variant name the same cell,
and it is measured once.

The names of files are hashes of these fields. A field that was added later is left out of hashes
and columns while it has its default (`records.LEFT_OUT_BY_DEFAULT`), so that old runs keep theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resect.errors import InputError
from resect.files.origin import hash_value
from resect.records import LEFT_OUT_BY_DEFAULT, Scope
from resect.studies.design import Design
from resect.studies.halves import Half

if TYPE_CHECKING:
    from resect.weights.fill import Filling

# Ends the names of records that no judge has seen.
ASKED = ".asked.parquet"
Kind = Literal["target", "random", "magnitude", "damage", "opposite", "next_slice", "direction"]
INSTEAD = "zero, mean, resampled, or scale:ALPHA with a number"


@dataclass(frozen=True)
class Cut:
    """Which weights a variant lacks.

    Attributes:
        target: Name of the behaviour whose scores rank the weights.
        kind: The ranking itself, the control that is derived from it, or `direction`: no weight is
            cut, but the direction between the activations of the target and of its contrast (of
            the preserve set, where it has none) is taken out of what the blocks write
            (`resect.edit.direction`).
        q: Fraction of the ranking that is taken before the set difference; of a `direction` the
            strength, 1 for all of it.
        category: Score with this category of the target's examples alone; "" for all.
        p: Fraction that is protected; None for the configuration's.
        scope: Rank within tensors or over the model; None for the configuration's.
        rounds: The target set is built in so many parts, scored again after each.
        scored_on: Role of the model whose gradients rank the weights; "" for the model that is cut.
        examples: Calibration examples; None for the target's own limit.
        draw: Seed of the draw of calibration examples; None for the cell's seed.
        permutation: Rank by the target's contrast over the prompts that both have, with target and
            contrast answer swapped for a random half of the prompts, drawn by this number. 0 swaps
            none: the ranking that is held against the permutations 1, 2, ... None is the usual
            ranking, whose two draws need not be of the same prompts.
        instead: What stands in the place of the weights: `zero`; `scale:ALPHA`, the weights times
            a factor; `mean`, of their tensor; `resampled`, values of their tensor at random.
        depth: Of a `direction`: take that of the block at this depth, from 0 to 1, out of all
            blocks; None takes each block's own out of its weights.
    """

    target: str
    kind: Kind
    q: float
    category: str = ""
    p: float | None = None
    scope: Scope | None = None
    rounds: int = 1
    scored_on: str = ""
    examples: int | None = None
    draw: int | None = None
    permutation: int | None = field(default=None, metadata=LEFT_OUT_BY_DEFAULT)
    instead: str = field(default="zero", metadata=LEFT_OUT_BY_DEFAULT)
    depth: float | None = field(default=None, metadata=LEFT_OUT_BY_DEFAULT)

    def __post_init__(self) -> None:
        """Refuse what no cut can be.

        Raises:
            InputError: The number of the permutation is negative, `instead` is unknown, or a
                direction and a cut of weights are mixed up.
        """
        of_weights = self.instead != "zero" or self.rounds > 1 or self.scored_on
        if self.kind == "direction":
            mixed = bool(of_weights) or self.p is not None or self.scope is not None
        else:
            mixed = self.depth is not None
        if mixed:
            raise InputError(
                "what holds for cuts of weights does not hold for a direction, and the other way",
                got=str(self),
                allowed="a direction with target, strength and depth alone; a depth for it alone",
            )
        if self.permutation is not None and self.permutation < 0:
            raise InputError(
                "the number of a permutation is too small",
                got=str(self.permutation),
                allowed="1, 2, ..., or 0 for the labels as they are",
                fix="count permutations from 1",
            )
        _ = self.filling

    @property
    def filling(self) -> Filling:
        """What stands in the place of the weights: a factor of them, or the name of a rule.

        Raises:
            InputError: `instead` is unknown.
        """
        if self.instead == "zero":
            return 0.0
        if self.instead == "mean":
            return "mean"
        if self.instead == "resampled":
            return "resampled"
        name, _, number = self.instead.partition(":")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if name != "scale" or not math.isfinite(factor):
            raise InputError(
                "unknown value in the place of cut weights",
                got=repr(self.instead),
                allowed=INSTEAD,
                fix="for instance scale:0.5",
            )
        return factor

    @property
    def described(self) -> str:
        """What it is, in words: the behaviour, the fraction, and what is not as configured."""
        control = "" if self.kind == "target" else f", {self.kind.replace('_', ' ')}"
        details = {
            "category": self.category,
            "p": self.p,
            "scope": self.scope,
            "rounds": self.rounds if self.rounds > 1 else None,
            "scored on": self.scored_on,
            "examples": self.examples,
            "draw": self.draw,
            "permutation": self.permutation,
        }
        words = [f", {name} {value}" for name, value in details.items() if value not in (None, "")]
        return f"{self.target}{control}, q = {self.q:g}{''.join(words)}"

    @property
    def located(self) -> Cut:
        """The target cut whose places this one takes or is matched to."""
        return replace(self, kind="target", instead="zero")


@dataclass(frozen=True)
class Tuning:
    """How a variant is fine-tuned after its cut.

    Attributes:
        data: Name of a set under `data`; its calibration split is trained on.
        steps: Optimizer steps.
        rate: Learning rate, constant.
        category: Train on this category alone; "" for all.
        examples: Most examples to train on; None for all.
        batch: Examples a step.
        method: `full` or `lora`.
        rank: Rank of the adapter.
        hold: Hold what was cut at zero while training.
        against: Compare where the weights changed with what this cut would remove.
        repeat: Trainings that differ in this alone start from other adapters and take the examples
            in another order.
    """

    data: str
    steps: int
    rate: float
    category: str = ""
    examples: int | None = None
    batch: int = 16
    method: Literal["full", "lora"] = "full"
    rank: int = 16
    hold: bool = False
    against: Cut | None = None
    repeat: int = field(default=0, metadata=LEFT_OUT_BY_DEFAULT)


@dataclass(frozen=True)
class Cell:
    """One model variant and what it is asked.

    Attributes:
        role: Role of the model in the configuration.
        seed: Seed of the model, of the calibration draw and of the random controls.
        cut: What is removed; None for the intact model.
        probes: Names of the probes.
        tuning: How it is fine-tuned after the cut; None if it is not.
        attack: Attack of the probes that are put under one; "" for the configuration's.
        samples: Replies to each prompt; more than one only when sampling.
        temperature: 0 decodes greedily; above 0 samples.
        half: The prompts that it is asked, "" for all. What is asked of a half is a record of its
            own, by its probes (`resect.studies.halving`).
        frame: A text with `{prompt}` in which its questions stand; "" for none.
    """

    role: str
    seed: int
    cut: Cut | None
    probes: tuple[str, ...]
    tuning: Tuning | None = None
    attack: str = ""
    samples: int = field(default=1, metadata=LEFT_OUT_BY_DEFAULT)
    temperature: float = field(default=0.0, metadata=LEFT_OUT_BY_DEFAULT)
    half: Half = field(default="", metadata=LEFT_OUT_BY_DEFAULT)
    frame: str = field(default="", metadata=LEFT_OUT_BY_DEFAULT)

    def __post_init__(self) -> None:
        """Refuse replies that cannot be had.

        Raises:
            InputError: No reply is asked for, or several greedy ones, which would be the same; or
                what is held at zero while training is not zero.
        """
        if self.samples < 1 or self.temperature < 0 or (self.samples > 1 and not self.temperature):
            raise InputError(
                "these replies cannot be sampled",
                got=f"{self.samples} samples at temperature {self.temperature:g}",
                allowed="one greedy reply, or one or more at a temperature above 0",
                fix="set a temperature, for instance 1",
            )
        holds = self.tuning is not None and self.tuning.hold
        whole = self.cut is not None and (self.cut.filling != 0 or self.cut.kind == "direction")
        if holds and self.cut is not None and whole:
            raise InputError(
                "weights that are held at zero while training must be zero",
                got="a direction, which zeroes no weight"
                if self.cut.kind == "direction"
                else f"{self.cut.instead} in their place",
                allowed="zero",
                fix="leave out hold, or what stands in their place",
            )

    @property
    def key(self) -> str:
        """Name of the cell's files; the probes are part of it only where a half is asked."""
        return _key_of(self)

    def part(self, probe: str, half: Half) -> Cell:
        """Return the same variant, asked one probe on one half of its prompts."""
        return replace(self, probes=(probe,), half=half)


@lru_cache(maxsize=1 << 14)
def _key_of(cell: Cell) -> str:
    values: list[object] = [cell.role, cell.seed, cell.attack, cell.cut, cell.tuning]
    later = {
        entry.name: getattr(cell, entry.name)
        for entry in fields(cell)
        if entry.metadata == LEFT_OUT_BY_DEFAULT and getattr(cell, entry.name) != entry.default
    }
    if cell.half:
        later["probes"] = cell.probes
    return hash_value([*values, later] if later else values)


def merge(cells: Iterable[Cell]) -> list[Cell]:
    """Return each variant once, with the probes of all cells that ask for it, in a fixed order.

    Cells of one model stand together, so that a model is loaded once.
    """
    probes: dict[Cell, set[str]] = {}
    for cell in cells:
        probes.setdefault(replace(cell, probes=()), set()).update(cell.probes)
    merged = [replace(cell, probes=tuple(sorted(names))) for cell, names in probes.items()]
    return sorted(merged, key=lambda cell: (cell.seed, cell.role, cell.key))


def record_path(run: Path, cell: Cell) -> Path:
    """Return where a cell's rows are once all of them are judged."""
    return run / "records" / f"{cell.key}.parquet"


def asked_path(run: Path, cell: Cell) -> Path:
    """Return where a cell's rows are until then."""
    return run / "records" / f"{cell.key}{ASKED}"


def judged_records(run: Path) -> list[Path]:
    """Return the records of all cells that are done."""
    paths = sorted((run / "records").glob("*.parquet"))
    return [path for path in paths if not path.name.endswith(ASKED)]


def mask_path(run: Path, role: str, seed: int, cut: Cut) -> Path:
    """Return where the mask of a target cut is kept, or of a control that is matched in damage.

    What stands in the place of the weights does not change which they are, but what damage it does.
    """
    named = cut if cut.kind == "damage" else replace(cut, instead="zero")
    return run / "masks" / f"{hash_value([role, seed, named])}.mask.safetensors"


def masks_of(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Return the file names of the masks that variants lack, each once; a direction has none."""
    return tuple(
        dict.fromkeys(
            mask_path(Path(), cell.role, cell.seed, cell.cut).name
            for cell in cells
            if cell.cut is not None and cell.cut.kind != "direction"
        )
    )


def direction_path(run: Path, role: str, seed: int, cut: Cut) -> Path:
    """Return where the direction that a variant lacks is kept; all strengths share it."""
    return run / "masks" / f"{hash_value([role, seed, replace(cut, q=1.0)])}.direction.safetensors"


def at_seed(template: str, seed: int) -> str:
    """Return a place with `{seed}` filled in."""
    return template.replace("{seed}", str(seed))


def is_done(run: Path, cell: Cell) -> bool:
    """Return whether the cell is recorded and judged."""
    return record_path(run, cell).exists()


def lacks_verdicts(rows: Iterable[Mapping[str, object]], cell: Cell) -> bool:
    """Return whether a probe of the cell has no judged row among these."""
    return not set(cell.probes) <= {row["probe"] for row in rows if row["judge"] is not None}


def changes_path(run: Path, cell: Cell) -> Path:
    """Return where it is written how a cell's tuning changed the weights."""
    return run / "changes" / f"{cell.key}.json"


def needed_keep(config: Design, cells: Iterable[Cell]) -> float:
    """Return the fraction of each ranking that the cells' masks reach into.

    Whole units are scored by all of their weights.
    """
    if config.selection.unit != "weight":
        return 1.0
    cells = list(cells)
    reach = [config.selection.p]
    reach += [cell.cut.p for cell in cells if cell.cut is not None and cell.cut.p is not None]
    reach += [
        cell.cut.q * (2 if cell.cut.kind == "next_slice" else 1)
        for cell in cells
        if cell.cut is not None and cell.cut.kind != "direction"
    ]
    return min(1.0, max(reach))
