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
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from resect.attribution import kernel
from resect.machine.devices import is_accelerator
from resect.records import Encoded

Item = TypeVar("Item")
# What is summed over examples; `noise` is no sum but the draw of the method `random`.
Statistic = Literal["gradient", "absolute", "square", "inputs", "noise"]

EACH: frozenset[Statistic] = frozenset({"absolute", "square"})

# A tile of 2¹⁸ fp32 numbers is 1 MB, half of a core's cache; a GPU wants fewer, larger products.
CPU_TILE = 2**18
GPU_TILE = 2**24


class _Factors(NamedTuple):
    """The two factors of one example's gradient leftᵀ·right, [T, R] and [T, C]."""

    left: Tensor
    right: Tensor


class _Tile(NamedTuple):
    """A part of one example's gradient.

    Attributes:
        example: Identity of the example.
        start: First row of the weight.
    """

    example: int
    start: int


class Sums:
    """The sums of one pass; filled by hooks during forward and backward passes."""

    def __init__(self, weights: Mapping[str, Tensor], needs: Iterable[Statistic], device: str = ""):
        """Reserve zeros.

        Args:
            weights: Weights by name, of any shape.
            needs: Which sums to keep.
            device: Device of the sums; "" for that of each weight.
        """
        # The shape of a layer's summed inputs is known when its first inputs come.
        self.inputs: dict[str, Tensor] = {}
        self.needs = frozenset(needs)
        self.totals: dict[Statistic, dict[str, Tensor]] = {
            statistic: {
                # Sums of sharded weights are sharded likewise.
                name: torch.zeros_like(
                    weight.detach(),
                    dtype=torch.float32,
                    device=device or weight.device,
                    memory_format=torch.contiguous_format,
                )
                for name, weight in weights.items()
            }
            for statistic in self.needs - {"inputs"}
        }
        # Weights whose examples cannot be told apart within a batch.
        self.mixed: set[str] = set()
        self.batch: Sequence[Encoded] = ()
        # Signed sums of a batch, to be compared with what autograd says; None when not checking.
        self.check: dict[str, Tensor] | None = None
        # Examples, by their identity, that a step has added to the sums of a weight.
        self._done: dict[tuple[str, str], set[int]] = {}
        self._tiles_done: dict[str, set[_Tile]] = {}
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def width(self) -> int:
        """Padded length T of the current batch."""
        return max(len(example.input_ids) for example in self.batch)

    def begin(self, batch: Sequence[Encoded], *, again: bool = False) -> None:
        """Say which examples the next pass has; `again` if they are part of a failed batch."""
        self.batch = batch
        if not again:
            self._done.clear()
            self._tiles_done.clear()

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
            squares = seen.square().mean(dim=0) * abs(example.weight)
            self.inputs[name] = self.inputs[name] + squares if name in self.inputs else squares

    def add_products(
        self, name: str, left_rows: Sequence[Tensor], right_rows: Sequence[Tensor]
    ) -> None:
        """Add the gradients leftᵀ·right of single examples.

        Args:
            name: The weight, of shape [R, C].
            left_rows: [T, R] an example: output gradients for nn.Linear, inputs for Conv1D.
            right_rows: [T, C] an example: the other of the two.
        """
        done = self._done.setdefault(("each", name), set())
        pairs = [_Factors(*pair) for pair in zip(left_rows, right_rows, strict=True)]
        checking = self.check is not None and name in self.check
        if pairs and kernel.usable(pairs[0].left) and not checking:
            self._add_at_once(name, pairs)
        # Without the kernel these are all; otherwise those that a failed batch had begun by tiles.
        for example, pair in zip(self.batch, pairs, strict=True):
            self._add_product(name, id(example), pair)
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
        for statistic in EACH & self.needs:
            self.totals[statistic][name].zero_()

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
            return [rows.reshape(-1, last) for rows in tensor]
        else:
            return None
        return [
            rows[: len(example.input_ids)] for example, rows in zip(self.batch, apart, strict=True)
        ]

    def _new(self, step: str, name: str, rows: Sequence[Item]) -> Iterator[tuple[Encoded, Item]]:
        """Yield the examples of the batch that have not been added yet."""
        done = self._done.setdefault((step, name), set())
        for example, row in zip(self.batch, rows, strict=True):
            if id(example) not in done:
                yield example, row
                done.add(id(example))

    def _add_at_once(self, name: str, pairs: Sequence[_Factors]) -> None:
        """Add the products of all examples of which nothing has been added yet, by the kernel."""
        done = self._done.setdefault(("each", name), set())
        begun = {tile.example for tile in self._tiles_done.get(name, set())}
        fresh = [row for row, example in enumerate(self.batch) if id(example) not in done | begun]
        if not fresh:
            return
        device = pairs[0].left.device
        totals = {statistic: self.totals[statistic][name] for statistic in EACH & self.needs}
        # Where sums are on another device, what a batch adds crosses over once.
        buffers = {
            statistic: total if total.device == device else torch.zeros_like(total, device=device)
            for statistic, total in totals.items()
        }
        # It asks for all its memory before it changes anything.
        kernel.add_sums(
            [pairs[row].left for row in fresh],
            [pairs[row].right for row in fresh],
            absolute=buffers.get("absolute"),
            square=buffers.get("square"),
        )
        # Likewise: either all sums change or none.
        crossed = {
            statistic: buffers[statistic].to(total.device)
            for statistic, total in totals.items()
            if buffers[statistic] is not total
        }
        for statistic, addend in crossed.items():
            totals[statistic].add_(addend)
        done.update(id(self.batch[row]) for row in fresh)

    def _add_product(self, name: str, example: int, pair: _Factors) -> None:
        """Add leftᵀ·right of an example by tiles; what a failed batch has added is checked only."""
        done = example in self._done["each", name]
        tiles = self._tiles_done.setdefault(name, set())
        check = None if self.check is None else self.check.get(name)
        if done and check is None:
            return
        rows, columns = pair.left.shape[1], pair.right.shape[1]
        buffer = self._buffer(pair.right, columns)
        step = max(1, buffer.numel() // columns)
        for start in range(0, rows, step):
            span = slice(start, min(start + step, rows))
            product = buffer[: (span.stop - start) * columns].view(-1, columns)
            torch.mm(pair.left[:, span].T, pair.right, out=product)  # [r, C] = [r, T]·[T, C]
            gradient = product.float()
            if check is not None:
                check[span].add_(gradient)
            if not done and _Tile(example, start) not in tiles:
                self._add(name, span, gradient)
                tiles.add(_Tile(example, start))

    def _add(self, name: str, rows: slice, gradient: Tensor) -> None:
        """Add |g| and g² of one example; overwrites `gradient`."""
        statistics = sorted(EACH & self.needs)
        # All memory is asked for before the first sum changes, so that running out of it leaves
        # either all of them changed or none.
        moved = gradient.to(self.totals[statistics[0]][name].device)
        if "square" in statistics:
            self.totals["square"][name][rows].addcmul_(moved, moved)
        if "absolute" in statistics:
            self.totals["absolute"][name][rows].add_(moved.abs_())

    def _buffer(self, like: Tensor, columns: int) -> Tensor:
        """Return a reused buffer: reserving one for each product would cost page faults."""
        key = (like.dtype, like.device)
        size = max(columns, GPU_TILE if is_accelerator(like.device) else CPU_TILE)
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._buffers[key]
