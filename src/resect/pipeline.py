"""From a configuration to records: locate, select, cut, measure, each step cached in the run.

A `Cell` is one model variant with the probes that are put to it. Cells are idempotent: a cell's
record file is written before judging, rewritten after it, and a cell with a judged file is done.
Studies share cells: a cut that two studies need is measured once.

A run folder holds
    config.yaml      resolved, runs again as it is
    manifest.json    provenance, models, data
    scores/ masks/   what was located and what was cut
    records/         a Parquet file a cell
    results.json     claims and tables
    report.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resect.attacks import AttackSettings
from resect.attribution import AttributeSettings, attribute_many
from resect.config import RunConfig, Target
from resect.data.encode import encode
from resect.data.load import BehaviourSet, check_disjoint, load_data
from resect.errors import MismatchError
from resect.evaluate import EvaluationSettings, ask, judge_replies, reply_of, rows_of
from resect.generate import GenerationSettings
from resect.mask import Mask
from resect.model import (
    find_prunable,
    load_model,
    model_fingerprint,
    prunable_tensors,
    tokenizer_fingerprint,
)
from resect.records import Encoded
from resect.scoreset import Scores
from resect.selection import magnitude_matched, next_slice, random_mask, select
from resect.store import hash_value, read_json, read_parquet, write_json, write_parquet

Kind = Literal["target", "random", "magnitude", "opposite", "next_slice"]


@dataclass(frozen=True)
class Cut:
    """Which weights a variant lacks.

    Attributes:
        target: Name of the behaviour whose scores rank the weights.
        kind: The ranking itself, or the control that is derived from it.
        q: Fraction of the ranking that is taken before the set difference.
        category: Score with this category of the target's examples alone; "" for all.
    """

    target: str
    kind: Kind
    q: float
    category: str = ""


@dataclass(frozen=True)
class Cell:
    """One model variant and what it is asked.

    Attributes:
        role: Role of the model in the configuration.
        seed: Seed of the model, of the calibration draw and of the random controls.
        cut: What is removed; None for the intact model.
        probes: Names of the probes.
    """

    role: str
    seed: int
    cut: Cut | None
    probes: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the cell's files; the probes are not part of it."""
        return hash_value([self.role, self.seed, None if self.cut is None else asdict(self.cut)])


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
    """Return where a cell's rows are."""
    return run / "records" / f"{cell.key}.parquet"


def is_done(run: Path, cell: Cell) -> bool:
    """Return whether all probes of the cell are recorded and judged."""
    path = record_path(run, cell)
    if not path.exists():
        return False
    rows = read_parquet(path)
    return set(cell.probes) <= {row["probe"] for row in rows if row["judge"] is not None}


@dataclass(frozen=True)
class _Loaded:
    place: str
    model: Any
    tokenizer: Any
    prunable: int


class Workbench:
    """Holds the model that is being worked on; one model at a time is in memory."""

    def __init__(self, config: RunConfig, run: Path, keep: float):
        """Open the run folder.

        Args:
            config: The run's configuration.
            run: Its folder.
            keep: Fraction of each ranking that scores must hold.
        """
        self.config = config
        self.run = run
        self.keep = keep
        self._loaded: _Loaded | None = None
        self._data: dict[str, BehaviourSet] = {}
        self._scores: dict[str, dict[str, Scores]] = {}

    def measure(self, cell: Cell) -> None:
        """Ask a variant, store the replies, judge them and store the verdicts."""
        loaded = self._load(cell.role, cell.seed)
        mask = self.mask(cell) if cell.cut is not None else None
        probes = {name: self._asked(name, cell.seed) for name in cell.probes}
        settings = evaluation_settings(self.config)
        replies = ask(loaded.model, loaded.tokenizer, probes, settings, mask)
        facts = {
            "role": cell.role,
            "seed": cell.seed,
            "cut_target": "" if cell.cut is None else cell.cut.target,
            "cut_kind": "intact" if cell.cut is None else cell.cut.kind,
            "cut_category": "" if cell.cut is None else cell.cut.category,
            "q": 0.0 if cell.cut is None else cell.cut.q,
            "removed": 0 if mask is None else mask.count,
            "removed_fraction": 0.0 if mask is None else mask.count / loaded.prunable,
        }
        path = record_path(self.run, cell)
        write_parquet(path, [facts | row for row in rows_of(replies, None)])
        verdicts = judge_replies(replies, settings)
        write_parquet(path, [facts | row for row in rows_of(replies, verdicts)])

    def mask(self, cell: Cell) -> Mask:
        """Return the mask of a cell's cut; masks of targets are kept in the run folder."""
        cut = cell.cut
        if cut is None:
            raise ValueError("an intact model has no mask")
        path = mask_path(self.run, cell)
        if cut.kind == "target" and path.exists():
            return Mask.load(path)
        scores = self.scores(cell.role, cell.seed, cut.target, cut.category)
        preserve = self.preserve_scores(cell.role, cell.seed)
        chosen = self.config.selection
        settings: dict[str, Any] = {"q": cut.q, "p": chosen.p, "scope": chosen.scope}
        if cut.kind == "opposite":
            return select(scores["opposite"], preserve, **settings)
        if cut.kind == "next_slice":
            return next_slice(scores["signed"], preserve, **settings)
        mask = select(scores["signed"], preserve, **settings)
        if cut.kind == "target":
            mask.save(path)
            return mask
        weights = prunable_tensors(self._load(cell.role, cell.seed).model)
        draw = random_mask if cut.kind == "random" else magnitude_matched
        return draw(mask, weights, label=f"{cut.kind}/{cut.target}/{cut.q:g}", seed=cell.seed)

    def scores(self, role: str, seed: int, target: str, category: str = "") -> dict[str, Scores]:
        """Return facilitation and opposite-sign scores of a target behaviour."""
        return self._cached_scores(
            (role, seed, target, category), self.config.targets[target], ("signed", "opposite")
        )

    def preserve_scores(self, role: str, seed: int) -> Scores | None:
        """Return the importance for the preserve set; None if nothing is protected."""
        preserve = self.config.preserve
        if self.config.selection.p == 0:
            return None
        place = (role, seed, "preserve", "")
        return self._cached_scores(place, preserve, (preserve.reduction,))[preserve.reduction]

    def _cached_scores(
        self, place: tuple[str, int, str, str], target: Target, reductions: tuple[str, ...]
    ) -> dict[str, Scores]:
        role, seed, _, category = place
        key = hash_value([*place, self.keep])
        if key in self._scores:
            return self._scores[key]
        loaded = self._load(role, seed)
        paths = {r: self.run / "scores" / f"{key}-{r}.scores.safetensors" for r in reductions}
        if all(path.exists() for path in paths.values()):
            found = {reduction: Scores.load(path) for reduction, path in paths.items()}
        else:
            data = self._calibration(target, seed, category)
            found = attribute_many(
                loaded.model,
                loaded.tokenizer,
                self._encode(data, target, loaded),
                reductions=reductions,
                settings=AttributeSettings(
                    keep=self.keep,
                    data_hash=data.hash,
                    category=category,
                    format=self.config.format,
                    skip=target.skip,
                    seed=seed,
                ),
            )
            for reduction, path in paths.items():
                found[reduction].save(path)
        self._scores[key] = found
        return found

    def _encode(self, data: BehaviourSet, target: Target, loaded: _Loaded) -> list[Encoded]:
        room = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        return encode(
            data.examples,
            loaded.tokenizer,
            format=self.config.format,
            skip=target.skip,
            max_length=room,
        )

    def _calibration(self, target: Target, seed: int, category: str) -> BehaviourSet:
        data = self._set(target.data, seed).split("calibration")
        for probe in self.config.evaluation.probes:
            check_disjoint(data, self._asked(probe, seed))
        if category:
            data = data.category(category)
        return data.limit(target.limit, seed)

    def _asked(self, probe: str, seed: int) -> BehaviourSet:
        """Return the evaluation examples of a probe; the same for every arm."""
        evaluation = self.config.evaluation
        return self._set(evaluation.probes[probe], seed).split("evaluation").limit(evaluation.limit)

    def _set(self, name: str, seed: int) -> BehaviourSet:
        place = at_seed(self.config.data[name], seed)
        if place not in self._data:
            self._data[place] = load_data(place)
        return self._data[place]

    def _load(self, role: str, seed: int) -> _Loaded:
        place = at_seed(self.config.models[role], seed)
        if self._loaded is None or self._loaded.place != place:
            # The old model goes first, otherwise two would be in memory at once.
            self._loaded = None
            self._scores.clear()
            model, tokenizer = load_model(place)
            self._loaded = _Loaded(place, model, tokenizer, find_prunable(model).total)
        self._remember(role, seed, self._loaded)
        return self._loaded

    def _remember(self, role: str, seed: int, loaded: _Loaded) -> None:
        """Write down which model played a role; refuse another one in the same run."""
        path = self.run / "models" / f"{role}-{seed}.json"
        if path.exists():
            known = read_json(path)
            if known["place"] == loaded.place and known["prunable"] == loaded.prunable:
                return
        facts = {
            "role": role,
            "seed": seed,
            "place": loaded.place,
            "fingerprint": model_fingerprint(loaded.model),
            "tokenizer": tokenizer_fingerprint(loaded.tokenizer),
            "prunable": loaded.prunable,
        }
        if path.exists() and read_json(path)["fingerprint"] != facts["fingerprint"]:
            raise MismatchError(
                f"the model {role!r} is not the one that this run began with",
                got=loaded.place,
                fix="choose a new folder with -o",
            )
        write_json(path, facts)


def mask_path(run: Path, cell: Cell) -> Path:
    """Return where the mask of a target cut is kept."""
    return run / "masks" / f"{cell.key}.mask.safetensors"


def at_seed(place: str, seed: int) -> str:
    """Return a place with `{seed}` filled in."""
    return place.replace("{seed}", str(seed))


def evaluation_settings(config: RunConfig) -> EvaluationSettings:
    """Return how the run's variants are asked and judged."""
    evaluation = config.evaluation
    return EvaluationSettings(
        format=config.format,
        attack=AttackSettings(config.attack.name, config.attack.tokens, config.attack.phrase),
        judge=evaluation.judge,
        generation=GenerationSettings(evaluation.max_new_tokens, evaluation.batch_size),
    )


def needed_keep(config: RunConfig, cells: Iterable[Cell]) -> float:
    """Return the fraction of each ranking that the cells' masks reach into."""
    reach = [config.selection.p]
    reach += [
        cell.cut.q * (2 if cell.cut.kind == "next_slice" else 1)
        for cell in cells
        if cell.cut is not None
    ]
    return min(1.0, max(reach))


def run_cells(
    config: RunConfig,
    run: Path,
    cells: list[Cell],
    *,
    keep: float,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Measure the cells that are not done yet.

    Args:
        config: The run's configuration.
        run: Its folder.
        cells: Merged cells, or a shard of them.
        keep: From `needed_keep` over all cells, so that shards share their scores.
        on_progress: Called with cells done and cells in all.
    """
    bench = Workbench(config, run, keep)
    for position, cell in enumerate(cells):
        if on_progress is not None:
            on_progress(position, len(cells))
        if not is_done(run, cell):
            bench.measure(cell)
    if on_progress is not None:
        on_progress(len(cells), len(cells))


def rejudge(config: RunConfig, run: Path, cells: Iterable[Cell]) -> None:
    """Judge stored replies again, with the judge of `config`; needs no model."""
    settings = evaluation_settings(config)
    for cell in cells:
        path = record_path(run, cell)
        rows = read_parquet(path)
        verdicts = judge_replies([reply_of(row) for row in rows], settings)
        write_parquet(
            path, [row | asdict(verdict) for row, verdict in zip(rows, verdicts, strict=True)]
        )
