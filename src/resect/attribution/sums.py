"""Sums over examples, from which every score is made; fp32 whatever the model's dtype.

    gradient   Σ_e ∂L_e/∂w            folded in when a parameter's gradient is ready, then freed
    absolute   Σ_e |∂L_e/∂w|          from the gradients of single examples
    square     Σ_e (∂L_e/∂w)²         likewise
    inputs     Σ_e mean_t x_t²        squared inputs of a layer, one number an input feature

The gradient of one example is Σ_t δ_t xᵀ_t over its tokens, with inputs x and output gradients δ of
the layer, so no pass of batch size 1 is needed. It is made and used up in tiles that fit a cache;
the whole of it never exists. On CUDA with Triton not even the tiles do
(`resect.attribution.kernel`).

A batch that runs out of memory half-way is done again in halves. What it had added by then is
remembered by example and weight, and is not added twice.

Legend: B examples of a batch, T their padded tokens, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from resect.attribution import kernel
from resect.records import Encoded

Item = TypeVar("Item")
Kind = Literal["gradient", "absolute", "square", "inputs", "noise"]

EACH: frozenset[Kind] = frozenset({"absolute", "square"})

# A tile of 2¹⁸ fp32 numbers is 1 MB, half of a core's cache; a GPU wants fewer, larger products.
CPU_TILE = 2**18
GPU_TILE = 2**24


class Sums:
    """The sums of one pass; filled by hooks during forward and backward passes."""

    def __init__(self, weights: Mapping[str, Tensor], wanted: Iterable[Kind], place: str = ""):
        """Reserve zeros.

        Args:
            weights: Weights by name, of any shape.
            wanted: Which sums to keep.
            place: Device of the sums; "" for that of each weight.
        """
        # What a layer's inputs sum up to has a shape that is known when they are there.
        self.inputs: dict[str, Tensor] = {}
        self.wanted = frozenset(wanted)
        self.totals: dict[Kind, dict[str, Tensor]] = {
            kind: {
                # Sums of sharded weights are sharded likewise.
                name: torch.zeros_like(
                    weight.detach(),
                    dtype=torch.float32,
                    device=place or weight.device,
                    memory_format=torch.contiguous_format,
                )
                for name, weight in weights.items()
            }
            for kind in self.wanted - {"inputs", "noise"}
        }
        # Weights whose examples cannot be told apart within a batch.
        self.mixed: set[str] = set()
        self.batch: Sequence[Encoded] = ()
        # Signed sums of a batch, to be compared with what autograd says; None when not checking.
        self.check: dict[str, Tensor] | None = None
        self._done: dict[tuple[str, str], set[Any]] = {}
        self._tiles: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def width(self) -> int:
        """Padded length T of the current batch."""
        return max(len(example.input_ids) for example in self.batch)

    def begin(self, batch: Sequence[Encoded], *, again: bool = False) -> None:
        """Say which examples the next pass has; `again` if they are part of a failed batch."""
        self.batch = batch
        if not again:
            self._done.clear()

    def add_gradient(self, name: str, gradient: Tensor, row: int | None = None) -> None:
        """Add the gradient [*] of the whole batch, or of the example in one of its rows."""
        done = self._done.setdefault(("batch", name), set())
        examples = self.batch if row is None else self.batch[row : row + 1]
        if id(examples[0]) not in done:
            total = self.totals["gradient"][name]
            total.add_(gradient.to(total.device))
            done.update(id(example) for example in examples)

    def add_inputs(self, name: str, rows: Sequence[Tensor]) -> None:
        """Add squared inputs, [T, I] an example, where they predict scored tokens."""
        for example, x in self._new("inputs", name, rows):
            seen = x[example.first_scored - 1 : len(example.input_ids) - 1].float()
            here = seen.square().mean(dim=0) * abs(example.weight)
            self.inputs[name] = self.inputs[name] + here if name in self.inputs else here

    def add_products(self, name: str, left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
        """Add the gradients leftᵀ·right of single examples.

        Args:
            name: The weight, of shape [R, C].
            left: [T, R] an example: output gradients for nn.Linear, inputs for Conv1D.
            right: [T, C] an example: the other of the two.
        """
        done = self._done.setdefault(("each", name), set())
        pairs = list(zip(left, right, strict=True))
        checking = self.check is not None and name in self.check
        if pairs and kernel.usable(pairs[0][0]) and not checking:
            self._add_at_once(name, pairs)
        # What is left: without the kernel all, otherwise what a failed batch had begun by tiles.
        for example, (one, other) in zip(self.batch, pairs, strict=True):
            self._add_product(name, id(example), one, other)
            done.add(id(example))

    def add_example(self, name: str, row: int, gradient: Tensor) -> None:
        """Add the gradient [*] of the example in a row of the batch."""
        done = self._done.setdefault(("each", name), set())
        if id(self.batch[row]) not in done:
            self._add(name, slice(None), gradient.float())
            done.add(id(self.batch[row]))

    def mix(self, name: str) -> None:
        """Give up on single examples of a weight within batches."""
        self.mixed.add(name)
        self.inputs.pop(name, None)
        for kind in EACH & self.wanted:
            self.totals[kind][name].zero_()

    def rows_of(self, tensor: Tensor) -> list[Tensor] | None:
        """Return a layer's tensor as [t, *] for each example, without its padding where it can go.

        None if it is laid out neither as [B, T, *] (with more axes between, or T among them) nor as
        [B·T, *], so that its rows cannot be told apart.
        """
        batch, width, last = len(self.batch), self.width, tensor.shape[-1]
        if tensor.dim() == 3 and tensor.shape[:2] == (batch, width):
            apart = tensor
        elif tensor.dim() == 2 and tensor.shape[0] == batch * width:
            apart = tensor.reshape(batch, width, last)
        elif batch == 1:
            return [tensor.reshape(-1, last)]
        elif tensor.dim() > 3 and tensor.shape[0] == batch and width in tensor.shape[1:-1]:
            return [one.reshape(-1, last) for one in tensor]
        else:
            return None
        return [
            one[: len(example.input_ids)] for example, one in zip(self.batch, apart, strict=True)
        ]

    def _new(self, step: str, name: str, rows: Sequence[Item]) -> Iterator[tuple[Encoded, Item]]:
        """Yield the examples of the batch that have not been added yet."""
        done = self._done.setdefault((step, name), set())
        for example, row in zip(self.batch, rows, strict=True):
            if id(example) not in done:
                yield example, row
                done.add(id(example))

    def _add_at_once(self, name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add the products of all examples of which nothing has been added yet, by the kernel."""
        done = self._done.setdefault(("each", name), set())
        begun = {example for example, _ in self._done.get(("tiles", name), set())}
        fresh = [at for at, example in enumerate(self.batch) if id(example) not in done | begun]
        if not fresh:
            return
        here = pairs[0][0].device
        totals = {kind: self.totals[kind][name] for kind in EACH & self.wanted}
        # Where sums are kept elsewhere, what a batch adds crosses over once.
        buffers = {
            kind: total if total.device == here else torch.zeros_like(total, device=here)
            for kind, total in totals.items()
        }
        # It asks for all its memory before it changes anything.
        kernel.add_sums(
            [pairs[at][0] for at in fresh],
            [pairs[at][1] for at in fresh],
            absolute=buffers.get("absolute"),
            square=buffers.get("square"),
        )
        # Likewise: either all sums change or none.
        crossed = [
            (total, buffers[kind].to(total.device))
            for kind, total in totals.items()
            if buffers[kind] is not total
        ]
        for total, more in crossed:
            total.add_(more)
        done.update(id(self.batch[at]) for at in fresh)

    def _add_product(self, name: str, example: int, left: Tensor, right: Tensor) -> None:
        """Add leftᵀ·right of an example by tiles; what a failed batch has added is checked only."""
        done = example in self._done["each", name]
        tiles = self._done.setdefault(("tiles", name), set())
        check = None if self.check is None else self.check.get(name)
        if done and check is None:
            return
        rows, columns = left.shape[1], right.shape[1]
        tile = self._tile(right, columns)
        step = max(1, tile.numel() // columns)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            piece = tile[: (part.stop - start) * columns].view(-1, columns)
            torch.mm(left[:, part].T, right, out=piece)  # [r, C] = [r, T]·[T, C]
            gradient = piece.float()
            if check is not None:
                check[part].add_(gradient)
            if not done and (example, start) not in tiles:
                self._add(name, part, gradient)
                tiles.add((example, start))

    def _add(self, name: str, part: slice, gradient: Tensor) -> None:
        """Add |g| and g² of one example; overwrites `gradient`."""
        kinds = sorted(EACH & self.wanted)
        # All memory is asked for before the first sum changes, so that running out of it leaves
        # either all of them changed or none.
        here = gradient.to(self.totals[kinds[0]][name].device)
        if "square" in kinds:
            self.totals["square"][name][part].addcmul_(here, here)
        if "absolute" in kinds:
            self.totals["absolute"][name][part].add_(here.abs_())

    def _tile(self, like: Tensor, columns: int) -> Tensor:
        """Return a reused buffer: reserving one for each product would cost page faults."""
        key = (like.dtype, like.device)
        size = max(columns, GPU_TILE if like.is_cuda else CPU_TILE)
        if key not in self._tiles or self._tiles[key].numel() < size:
            self._tiles[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._tiles[key]
