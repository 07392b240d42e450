"""The feeder of models in memory: examples in batches, and their sums over all processes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from resect.attribution.feeder import Identity, Scored
from resect.attribution.head import Head
from resect.attribution.hooks import Watch, observing
from resect.attribution.loss import batch_loss, batches, checkpointed
from resect.attribution.settings import Pass
from resect.attribution.sums import EACH, Statistic, Sums
from resect.edit.live import shrunk
from resect.errors import InputError
from resect.machine.devices import empty_caches
from resect.machine.memory import is_out_of_memory, returned
from resect.machine.processes import ALONE, Processes, gathered, is_sharded
from resect.model.faults import first_line
from resect.model.load import LoadedModel, model_fingerprint, tokenizer_fingerprint
from resect.model.prunable import Coverage, PrunableWeight, blocks
from resect.records import CausalModel, Encoded

# Bytes of weights from which on memory of a pass goes back to the system at once: it is then worth
# its page faults.
LARGE = 2**28
_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


class Passes:
    """Runs all examples through a model in memory, for all layers or for a group at a time."""

    def __init__(
        self,
        loaded: LoadedModel,
        encoded: Sequence[Encoded],
        settings: Pass,
        coverage: Coverage,
        processes: Processes = ALONE,
        on_progress: Progress | None = None,
    ):
        """Prepare, but run nothing yet.

        Args:
            loaded: A causal LM that is wholly in memory, and its tokenizer.
            encoded: The examples.
            settings: How the passes are made, with nothing left open (`planned`).
            coverage: The model's prunable weights.
            processes: The processes that share the examples.
            on_progress: Called with examples done and examples in all.
        """
        self.loaded = loaded
        self.encoded = encoded
        self.coverage = coverage
        self._settings = settings
        self._on_progress = on_progress
        tokens = settings.batch_tokens
        self._feed = Feed(
            settings.batch_size,
            1 if tokens == "auto" else tokens,  # `planned` leaves no auto
            settings.checkpoint,
            processes,
        )
        self._passes = 1
        self._done = 0

    def identity(self) -> Identity:
        """Return which model it is; reads every weight."""
        model, tokenizer = self.loaded
        return Identity(
            model_id=str(getattr(model, "name_or_path", "")),
            model_fingerprint=model_fingerprint(model),
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        )

    def means(self, needs: Collection[Statistic]) -> Generator[Scored]:
        """Yield each weight with its means over examples, which are freed as they are used up."""
        size = sum(p.numel() * p.element_size() for p in self.loaded.model.parameters())
        with returned() if size > LARGE else contextlib.nullcontext():
            yield from self._means(needs)

    def _means(self, needs: Collection[Statistic]) -> Generator[Scored]:
        model, settings = self.loaded.model, self._settings
        groups = _groups(self.coverage.weights, settings.layers_per_pass)
        factors = settings.factors
        self._passes = len(groups) * len(factors)
        count = len(self.encoded) * len(factors)
        for group in groups:
            means: dict[str, dict[Statistic, Tensor]] = {weight.name: {} for weight in group}
            for factor in factors if needs else []:
                with self._at(factor):
                    sums = sum_examples(
                        model,
                        group,
                        needs,
                        self.encoded,
                        self._feed,
                        device="cpu" if settings.accumulator == "cpu" else "",
                        on_done=self._advance,
                    )
                for statistic, totals in sums.items():
                    for weight in group:
                        mean = totals.pop(weight.name).div_(count)
                        earlier = means[weight.name].get(statistic)
                        means[weight.name][statistic] = (
                            mean if earlier is None else earlier.add_(mean)
                        )
            for weight in group:
                yield _scored(model, weight, means.pop(weight.name))

    def _advance(self, examples: int) -> None:
        self._done += examples
        if self._on_progress is not None:
            # Further passes are part of the work, and the other processes keep up; the bar counts
            # examples once.
            total = len(self.encoded)
            done = self._done * self._feed.processes.count // self._passes
            self._on_progress(min(done, total), total)

    @contextlib.contextmanager
    def _at(self, factor: float) -> Iterator[None]:
        """Shrink all prunable weights to a point of the path of `integrated`."""
        if factor == 1.0:
            yield
            return
        model = self.loaded.model
        with shrunk(
            {weight.name: model.get_parameter(weight.name) for weight in self.coverage.weights},
            factor,
        ):
            yield


def _groups(weights: Sequence[PrunableWeight], layers: int | None) -> list[list[PrunableWeight]]:
    if layers is None:
        return [list(weights)]
    groups: dict[int, list[PrunableWeight]] = {}
    for weight in weights:
        groups.setdefault(weight.layer // layers, []).append(weight)
    return list(groups.values())


def _scored(
    model: CausalModel, weight: PrunableWeight, means: Mapping[Statistic, Tensor]
) -> Scored:
    values = gathered(model.get_parameter(weight.name).detach())
    # Sorted, because gathering is done by all processes, and sets differ in order.
    whole = {name: gathered(mean).to(values.device) for name, mean in sorted(means.items())}
    return Scored(weight, values, whole)


@dataclass(frozen=True)
class Feed:
    """How examples are put through a model.

    Attributes:
        size: Examples a batch; None fills batches up to `tokens`.
        tokens: Most tokens a batch, padding included.
        checkpoint: Compute activations again in the backward pass.
        processes: The processes that share the examples.
        head: How the output head is reached; found out by the first batch.
    """

    size: int | None
    tokens: int
    checkpoint: bool = False
    processes: Processes = ALONE
    head: Head = field(default_factory=Head)


def run_examples(
    model: CausalModel,
    watch: Watch,
    encoded: Sequence[Encoded],
    feed: Feed,
    on_done: Callable[[int], None],
) -> None:
    """Run this process's share of the examples; what the hooks of `watch` see fills its sums.

    A batch that does not fit makes this and all later ones smaller.

    Args:
        model: A Hugging Face causal LM.
        watch: Its hooks, installed.
        encoded: All examples of the job.
        feed: How they are put through.
        on_done: Called with the number of examples of each batch.

    Raises:
        InputError: An example does not fit into memory, or its loss or gradient is not finite.
    """
    context = checkpointed(blocks(model)) if feed.checkpoint else None
    with context or contextlib.nullcontext():
        if any(is_sharded(parameter) for parameter in model.parameters()):
            _run_together(model, watch, encoded, feed, on_done)
            return
        # Shares of examples that are sorted by length have almost the same lengths.
        order = sorted(encoded, key=lambda example: (-len(example.input_ids), example.id))
        pending = list(feed.processes.share(order))
        size, tokens = feed.size, feed.tokens
        while pending:
            for batch in batches(pending, size=size, tokens=tokens):
                chosen = set(map(id, batch))
                pending = [example for example in pending if id(example) not in chosen]
                fitted = _run_in_halves(model, watch, batch, feed)
                on_done(len(batch))
                if fitted < len(batch):
                    size, tokens = size and min(size, fitted), max(1, tokens // 2)
                    break


def run_singly(model: CausalModel, watch: Watch, encoded: Sequence[Encoded], feed: Feed) -> None:
    """Run this process's share of the examples one at a time.

    Raises:
        InputError: An example does not fit into memory, or its loss or gradient is not finite.
    """
    for example in feed.processes.share(encoded):
        _run_in_halves(model, watch, (example,), feed)


def _run_together(
    model: CausalModel,
    watch: Watch,
    encoded: Sequence[Encoded],
    feed: Feed,
    on_done: Callable[[int], None],
) -> None:
    """Run a sharded model: all processes run the same number of batches at the same time."""
    for batch in _common_batches(encoded, feed):
        try:
            _run(model, watch, batch, feed)
        except torch.OutOfMemoryError as error:
            # Trying again would need the other processes, which are in the middle of this batch.
            raise InputError(
                f"a batch of {len(batch)} examples does not fit into memory",
                got=str(error).splitlines()[0],
                fix="lower the batch size; sharded models cannot try again by themselves",
            ) from error
        on_done(len(batch))


def _common_batches(encoded: Sequence[Encoded], feed: Feed) -> Iterator[tuple[Encoded, ...]]:
    processes = feed.processes
    size = feed.size and feed.size * processes.count
    for batch in batches(encoded, size=size, tokens=feed.tokens * processes.count):
        # A process without an example takes part with one that weighs nothing.
        yield tuple(processes.share(batch)) or (replace(batch[0], weight=0.0),)


def _run_in_halves(
    model: CausalModel, watch: Watch, batch: Sequence[Encoded], feed: Feed, *, again: bool = False
) -> int:
    """Run one batch, in halves if memory does not suffice; return how many examples fitted.

    What a failed batch had added to the sums stays and is not added again.
    """
    try:
        _run(model, watch, batch, feed, again=again)
        return len(batch)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).splitlines()[0]
    # Outside of the handler, because a traceback would keep the activations alive.
    watch.clear()
    empty_caches()
    if len(batch) == 1:
        raise InputError(
            f"example {batch[0].id!r} does not fit into memory",
            got=message,
            fix="shorten it, score fewer layers a pass, keep sums on the CPU or use checkpointing",
        )
    _log.info("a batch of %d examples does not fit into memory; trying halves", len(batch))
    half = len(batch) // 2
    return min(
        _run_in_halves(model, watch, batch[:half], feed, again=True),
        _run_in_halves(model, watch, batch[half:], feed, again=True),
    )


def _run(
    model: CausalModel, watch: Watch, batch: Sequence[Encoded], feed: Feed, *, again: bool = False
) -> None:
    watch.begin(batch, again=again)
    if watch.sums.needs == {"inputs"}:
        with torch.no_grad():
            batch_loss(model, batch, feed.head)
    else:
        with torch.enable_grad(), _differentiable():
            watch.backward(batch_loss(model, batch, feed.head))


@contextlib.contextmanager
def _differentiable() -> Iterator[None]:
    """Say what a model's own checks say: that it is not being trained (Reformer), for instance."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        raise InputError(
            "the model refuses to be run on these texts, with gradients and without dropout",
            got=first_line(error),
            allowed="models that give a loss and its gradients in evaluation mode",
        ) from error


def sum_examples(
    model: CausalModel,
    weights: Sequence[PrunableWeight],
    needs: Iterable[Statistic],
    encoded: Sequence[Encoded],
    feed: Feed,
    *,
    device: str = "",
    on_done: Callable[[int], None],
) -> dict[Statistic, dict[str, Tensor]]:
    """Run the examples and return fp32 sums over them, by statistic and name.

    Args:
        model: A Hugging Face causal LM.
        weights: The weights that are scored.
        needs: Which sums to make.
        encoded: All examples of the job.
        feed: How they are put through, and which processes share them.
        device: Device of the sums; "" for that of each weight.
        on_done: Called with the number of examples of each batch.

    Returns:
        Sums as `sums_of_all` returns them.

    Raises:
        InputError: An example does not fit into memory, its loss or gradient is not finite, the
            inputs of a weight cannot be told apart by example, or another process has ended.
    """
    parameters = {weight.name: model.get_parameter(weight.name) for weight in weights}
    sums = Sums(parameters, needs, device)
    with observing(model, weights, sums) as watch:
        run_examples(model, watch, encoded, feed, on_done)
    by_example = EACH & sums.needs
    if by_example:
        # What one process cannot tell apart, all score again: their sums belong together.
        mixed = named_in_any(feed.processes, weights, sums.mixed)
        if mixed:
            _log.warning(
                "%d weights mix the examples of a batch; they are scored one example a pass",
                len(mixed),
            )
            again = Sums(
                {weight.name: parameters[weight.name] for weight in mixed}, by_example, device
            )
            with observing(model, mixed, again, singly=True) as watch:
                run_singly(model, watch, encoded, feed)
            for statistic, totals in again.totals.items():
                sums.totals[statistic].update(totals)
    has_examples = feed.processes.rank < len(encoded)
    return sums_of_all(sums, weights, parameters, feed.processes, has_examples=has_examples)


def named_in_any(
    processes: Processes, weights: Sequence[PrunableWeight], names: Collection[str]
) -> list[PrunableWeight]:
    """Return the weights that any process names; all processes call this at the same time."""
    flags = processes.either([weight.name in names for weight in weights])
    return [weight for weight, flag in zip(weights, flags, strict=True) if flag]


def sums_of_all(
    sums: Sums,
    weights: Sequence[PrunableWeight],
    parameters: Mapping[str, Tensor],
    processes: Processes,
    *,
    has_examples: bool,
) -> dict[Statistic, dict[str, Tensor]]:
    """Return sums over the examples of all processes; all call this at the same time.

    Args:
        sums: The sums of this process.
        weights: The weights that are scored.
        parameters: Their values by name.
        processes: The processes that share the examples.
        has_examples: Whether this process had any.

    Returns:
        Sums shaped as the weights; those of `inputs` as [1, I] or [I, 1] to match them. Where
        weights are sharded, so are the sums.

    Raises:
        InputError: The inputs of a weight cannot be told apart by example, or another process has
            ended.
    """
    totals = dict(sums.totals)
    if "inputs" in sums.needs:
        missing = {weight.name for weight in weights if weight.name not in sums.inputs}
        unseen = named_in_any(processes, weights, missing if has_examples else set())
        if unseen:
            raise InputError(
                "the inputs of some weights cannot be told apart by example",
                got=f"{unseen[0].name} and {len(unseen) - 1} more",
                allowed="models whose prunable weights are linear layers outside of experts",
                fix="choose another method",
            )
        totals["inputs"] = {
            weight.name: _input_sum(sums, weight, parameters[weight.name]) for weight in weights
        }
    # Sets have another order in every process; sums must meet those of the same name.
    for statistic in sorted(totals):
        for weight in weights:
            processes.add(totals[statistic][weight.name])
    return totals


def _input_sum(sums: Sums, weight: PrunableWeight, parameter: Tensor) -> Tensor:
    axis = 1 if weight.layout == "in_out" else 0
    squares = sums.inputs.get(weight.name)
    if squares is None:  # a process without examples
        squares = torch.zeros(weight.shape[1 - axis], device=parameter.device)
    return squares.unsqueeze(axis)
