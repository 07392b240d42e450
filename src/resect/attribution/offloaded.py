"""Score a model that is larger than memory, block by block, with its weights read from disk.

All examples go through one block before the next one is opened:

    forwards    for every block: open it, run all batches through it, write what comes out
    the end     last norm, head and loss: the gradient at what the last block gave
    backwards   for every block from the last: open it, run each batch through it again and back,
                fold the gradients of its weights into sums, make scores of them, close it

So each block is read twice however many batches there are. In memory at once are one block, its
sums, gradients and scores, the activations of one batch inside one block, and what is outside of
the blocks. The hidden states between blocks are on disk, 1 + depth times tokens × width.

What a block is called with beside the hidden states (positions, masks) is recorded from a pass of
the model in which every block gives back what it got. Gradients and sums are those of the engine in
memory (`resect.attribution.hooks`), so the scores are the same up to the order in which sums are
added. A model whose blocks do not stand in one plain row is refused.

Several processes share the examples: each reads every block, and sums are added weight by weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resect.attribution.choices import device_of, streamed_tokens
from resect.attribution.engine import finished, harvest, needs_of
from resect.attribution.feeder import Identity, Scored
from resect.attribution.head import Head
from resect.attribution.hooks import Watch, observing
from resect.attribution.loss import batch_loss, batches, check_examples, not_finite
from resect.attribution.methods import rule_of
from resect.attribution.passes import Progress, named_in_any, sums_of_all
from resect.attribution.settings import Origin, Pass
from resect.attribution.sums import EACH, Statistic, Sums
from resect.edit.forward import forward_of
from resect.errors import CoverageError, InputError, ResectError
from resect.files.scratch import scratch_folder
from resect.machine.memory import returned
from resect.machine.processes import ALONE, Processes
from resect.model.faults import first_line
from resect.model.load import tokenizer_fingerprint
from resect.model.on_disk import Shelf
from resect.model.prunable import Coverage, PrunableWeight, find_prunable
from resect.records import CausalModel, Encoded
from resect.weights.scores import Scores

Batch = Sequence[Encoded]
Forward = Callable[..., object]
# Stands for what a block gives beside hidden states, to see whether another block is given it.
_EXTRA = object()


class Call(NamedTuple):
    """What a block is called with beside the hidden states.

    Attributes:
        positional: Positional arguments after the hidden states.
        named: Arguments by name.
    """

    positional: tuple[object, ...]
    named: dict[str, object]


class _Recorded(NamedTuple):
    """What one batch gives to the blocks.

    Attributes:
        hidden: Hidden states [B, T, width] that the first block gets.
        calls: How each block is called.
    """

    hidden: Tensor
    calls: list[Call]


@dataclass(frozen=True)
class _Store:
    """Hidden states on disk, by batch and position in the row of blocks."""

    folder: Path

    def put(self, batch: int, position: int, hidden: Tensor) -> None:
        save_file({"hidden": hidden.detach().contiguous()}, self._path(batch, position))

    def get(self, batch: int, position: int, device: torch.device) -> Tensor:
        hidden: Tensor = load_file(self._path(batch, position))["hidden"]
        return hidden.to(device)

    def drop(self, batch: int, position: int) -> None:
        self._path(batch, position).unlink()

    def _path(self, batch: int, position: int) -> Path:
        return self.folder / f"{batch}-{position}.safetensors"


def attribute_streamed(
    shelf: Shelf,
    encoded: Sequence[Encoded],
    *,
    reductions: Sequence[str] = ("signed",),
    settings: Pass | None = None,
    origin: Origin | None = None,
    on_progress: Progress | None = None,
    scratch: Path | None = None,
    processes: Processes = ALONE,
) -> dict[str, Scores]:
    """Score every prunable weight as `attribute_many` does, with one block in memory.

    Args:
        shelf: The model, from `open_shelf`.
        encoded: The examples.
        reductions: Names in `resect.attribution.methods.METHODS[settings.method]`.
        settings: How the pass is made. What it says of layers a pass, of checkpointing and of the
            device of the sums has no meaning here.
        origin: What the artefact says of the data, as in `attribute_many`.
        on_progress: Called with blocks done and blocks in all, each counted twice.
        scratch: Folder for hidden states; None for the system's temporary folder.
        processes: The processes that share the examples; all of them call this and get the same
            scores.

    Raises:
        InputError: An example cannot be scored, a loss or gradient is not finite, or the method
            needs more than one pass.
        CoverageError: The blocks of the model do not stand in one plain row, or hold weights of an
            unknown kind, or mix the examples of a batch.
    """
    settings = settings or Pass()
    if settings.factors != [1.0]:
        raise InputError(
            "a model that is read from disk is scored in one pass",
            got=f"{settings.method}, which needs several",
            fix="choose another method, or leave --stream out",
        )
    coverage = find_prunable(shelf.model, allow_partial=settings.allow_partial)
    check_examples(encoded, shelf.model)
    rules = {name: rule_of(settings.method, name) for name in reductions}
    tokens = streamed_tokens(
        shelf.model,
        encoded,
        settings,
        coverage,
        sums=len(needs_of(rules.values())),
        processes=processes,
    )
    chosen = replace(settings, batch_tokens=tokens)
    feeder = Blocks(shelf, encoded, chosen, coverage, processes, on_progress, scratch=scratch)
    return finished(shelf.model, coverage, harvest(feeder, rules, settings, origin))


class Blocks:
    """The feeder of models on disk: one pass over the data, block by block."""

    def __init__(
        self,
        shelf: Shelf,
        encoded: Sequence[Encoded],
        settings: Pass,
        coverage: Coverage,
        processes: Processes = ALONE,
        on_progress: Progress | None = None,
        *,
        scratch: Path | None = None,
    ):
        """Prepare, but read nothing yet.

        Args:
            shelf: The model.
            encoded: The examples.
            settings: How the pass is made, with nothing left open.
            coverage: The model's prunable weights.
            processes: The processes that share the examples.
            on_progress: Called with blocks done and blocks in all, each counted twice.
            scratch: Folder for hidden states; None for the system's temporary folder.
        """
        self.encoded = encoded
        self.coverage = coverage
        self._shelf = shelf
        self._model: CausalModel = shelf.model
        self._singly = settings.batch_size == 1
        self._processes = processes
        self._on_progress: Progress = on_progress or (lambda _done, _total: None)
        self._scratch = scratch
        self._device = device_of(shelf.model)
        tokens = settings.batch_tokens
        # Shares of examples that are sorted by length have almost the same lengths.
        order = sorted(encoded, key=lambda example: (-len(example.input_ids), example.id))
        self._batches: list[Batch] = list(
            batches(
                processes.share(order),
                size=settings.batch_size,
                tokens=1 if tokens == "auto" else tokens,
            )
        )
        # Whether the model indexes what its blocks give.
        self._tuples = False
        self._extra: object = _EXTRA
        self._passed_on = False
        # For each batch, what each block is called with.
        self._calls: list[list[Call]] = []

    def identity(self) -> Identity:
        """Return which model it is; reads every weight."""
        return Identity(
            model_id=str(getattr(self._model, "name_or_path", "")),
            model_fingerprint=self._shelf.fingerprint(),
            tokenizer_fingerprint=tokenizer_fingerprint(self._shelf.tokenizer),
            streamed=True,
        )

    def means(self, needs: Collection[Statistic]) -> Generator[Scored]:
        """Yield each weight, its values and its means over examples, the last block first."""
        depth, owners = len(self._shelf.blocks), self._owners()
        count = len(self.encoded)
        with returned(), scratch_folder(self._scratch) as folder:
            store = _Store(folder)
            self._forwards(store)
            self._end(store, depth)
            for position in reversed(range(depth)):
                block = self._shelf.blocks[position]
                with self._shelf.opened(block):
                    sums = self._backwards(position, store, owners[position], needs)
                    for weight in owners[position]:
                        values = self._model.get_parameter(weight.name).detach()
                        means = {
                            statistic: totals.pop(weight.name).div_(count)
                            for statistic, totals in sums.items()
                        }
                        yield Scored(weight, values, means)
                        del values, means  # or they would stay while the next block is run
                    del sums
                self._on_progress(2 * depth - position, 2 * depth)

    def _owners(self) -> list[list[PrunableWeight]]:
        """Return the weights of each block."""
        weights = [
            (id(self._model.get_parameter(weight.name)), weight) for weight in self.coverage.weights
        ]
        owners = []
        for block in self._shelf.blocks:
            inside = {id(parameter) for parameter in block.parameters()}
            owners.append([weight for parameter, weight in weights if parameter in inside])
        return owners

    def _recorded(self, batch: Batch) -> _Recorded:
        """Return what `_record` does; find out by the first batch what blocks have to give."""
        try:
            return self._record(batch)
        except CoverageError as error:
            if self._tuples or self._calls:
                raise
            self._tuples = True
            for self._extra in (_EXTRA, None):
                try:
                    return self._record(batch)
                except CoverageError:
                    if self._passed_on:
                        raise
            raise error from None

    def _record(self, batch: Batch) -> _Recorded:
        """Run a batch past all blocks, and note what each of them is called with."""
        calls: list[Call] = []
        order: list[nn.Module] = []
        states: list[Tensor] = []

        def stub(block: nn.Module) -> Forward:
            def forward(*args: object, **kwargs: object) -> object:
                if any(value is _EXTRA for value in (*args, *kwargs.values())):
                    self._passed_on = True
                    raise _not_plain("a block gives the next one more than hidden states")
                hidden, call = _hidden_of(args, kwargs)
                if states and hidden is not states[-1]:
                    raise _not_plain("something changes the hidden states between two blocks")
                states.append(hidden)
                order.append(block)
                calls.append(call)
                return (hidden, self._extra) if self._tuples else hidden

            return forward

        with self._blocks_as(stub), _by_themselves():
            batch_loss(self._model, batch, Head())
        if order != self._shelf.blocks:
            raise _not_plain("its blocks are not called once each, in their order")
        return _Recorded(states[0], calls)

    @contextlib.contextmanager
    def _blocks_as(self, stub: Callable[[nn.Module], Forward]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for block in self._shelf.blocks:
                stack.enter_context(forward_of(block, stub(block)))
            yield

    def _forwards(self, store: _Store) -> None:
        """Run all batches through every block, and keep what each block gives."""
        depth = len(self._shelf.blocks)
        with torch.no_grad():
            for number, batch in enumerate(self._batches):
                hidden, calls = self._recorded(batch)
                self._calls.append(calls)
                store.put(number, 0, hidden)
            for position, block in enumerate(self._shelf.blocks):
                with self._shelf.opened(block):
                    for number, calls in enumerate(self._calls):
                        hidden = store.get(number, position, self._device)
                        store.put(number, position + 1, _run(block, hidden, calls[position]))
                self._on_progress(position + 1, 2 * depth)

    def _end(self, store: _Store, depth: int) -> None:
        """Replace what the last block gave by the gradient of the loss at it."""
        head = Head()
        for number, batch in enumerate(self._batches):
            leaf = store.get(number, depth, self._device).requires_grad_()

            def stub(block: nn.Module, leaf: Tensor = leaf) -> Forward:
                def forward(*args: object, **kwargs: object) -> object:
                    hidden = _hidden_of(args, kwargs).hidden
                    out = leaf if block is self._shelf.blocks[-1] else hidden
                    return (out, None) if self._tuples else out

                return forward

            with self._blocks_as(stub), torch.enable_grad():
                loss = batch_loss(self._model, batch, head)
                (gradient,) = torch.autograd.grad(loss, leaf)
            _look(gradient, batch)
            store.put(number, depth, gradient)

    def _backwards(
        self,
        position: int,
        store: _Store,
        weights: Sequence[PrunableWeight],
        needs: Collection[Statistic],
    ) -> dict[Statistic, dict[str, Tensor]]:
        """Run all batches through one block and back; return the sums of its weights."""
        block = self._shelf.blocks[position]
        parameters = {weight.name: self._model.get_parameter(weight.name) for weight in weights}
        sums = Sums(parameters, needs)
        singly = self._singly and bool(EACH.intersection(needs))
        with observing(self._model, weights, sums, singly=singly) as watch:
            for number, batch in enumerate(self._batches):
                hidden = store.get(number, position, self._device).requires_grad_()
                gradient = store.get(number, position + 1, self._device)
                watch.begin(batch)
                with torch.enable_grad():
                    out = _run(block, hidden, self._calls[number][position])
                    _back(watch, out, gradient)
                if hidden.grad is None:
                    raise _not_plain("a block does not depend on what it is given")
                _look(hidden.grad, batch)
                store.put(number, position, hidden.grad)
                store.drop(number, position + 1)
        mixed = named_in_any(self._processes, weights, sums.mixed)
        if mixed:
            raise CoverageError(
                "the examples of a batch cannot be told apart in some weights",
                got=f"{mixed[0].name} and {len(mixed) - 1} more",
                fix="score one example at a time: --batch-size 1",
            )
        return sums_of_all(
            sums, weights, parameters, self._processes, has_examples=bool(self._batches)
        )


class _Received(NamedTuple):
    """The arguments of a block, with the hidden states [B, T, width] taken out."""

    hidden: Tensor
    call: Call


def _hidden_of(args: tuple[object, ...], kwargs: dict[str, object]) -> _Received:
    """Take the hidden states out of the arguments of a block."""
    named = dict(kwargs)
    hidden, positional = (args[0], args[1:]) if args else (None, args)
    if not isinstance(hidden, Tensor):
        hidden, positional = named.pop("hidden_states", None), args
    if not isinstance(hidden, Tensor):
        raise _not_plain("a block is not called with hidden states first")
    others = [value for value in (*positional, *named.values()) if isinstance(value, Tensor)]
    if any(value.requires_grad for value in others):
        raise _not_plain("a block is given more than one tensor that carries a gradient")
    return _Received(hidden, Call(positional, named))


def _run(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    with _by_themselves():
        out = block(hidden, *call.positional, **call.named)
    out = out[0] if isinstance(out, tuple | list) else out
    if not isinstance(out, Tensor) or out.shape != hidden.shape:
        raise _not_plain("a block gives something else than hidden states")
    return out


@contextlib.contextmanager
def _by_themselves() -> Iterator[None]:
    """Say of a model whose blocks need more than hidden states that it is not read by blocks.

    What they raise then is of their own kind; a lack of memory is a `RuntimeError` and passes.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ResectError):
            raise
        reason = f"a block cannot be run apart from the others ({first_line(error)})"
        raise _not_plain(reason) from error


def _back(watch: Watch, out: Tensor, gradient: Tensor) -> None:
    # The scalar whose gradient at `out` is the given one.
    watch.backward((out.float() * gradient.float()).sum())


def _look(gradient: Tensor, batch: Batch) -> None:
    if not bool(gradient.isfinite().all()):
        bad = (~gradient.flatten(1).isfinite().all(dim=1)).nonzero()[0]
        raise not_finite("gradient", batch[int(bad)])


def _not_plain(reason: str) -> CoverageError:
    return CoverageError(
        "the model cannot be scored block by block",
        got=reason,
        allowed="blocks in one plain row, each given the hidden states of the one before",
        fix="score it in memory: leave --stream out",
    )
