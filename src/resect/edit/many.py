"""Several cuts of one model in force at once: the rows of a batch are cut differently.

A batch is made of V stretches of rows, one for each variant, all of the same length. What most of
the variants lack is taken out of the weights for the pass. What a variant has beyond that, or
lacks beyond that, is a sparse correction of its own stretch: the weights multiply all rows, and

    y_rows += x_rows · D_variantᵀ,    D = weights of the variant - weights during the pass

follows, of all variants in one sparse product. So nested cuts of one ranking share what they have
in common, and a batch of one variant is that variant bit for bit. What is not a plain matrix (the
experts of a layer in one parameter) has no such sum; its module is called for each stretch in turn,
with the variant's own values in place.

Which input vectors of a module belong to which row is known from a trial (`resect.edit.trial`), and
checked in each call. Where that does not hold, `NotTogether` is raised, never a number returned.

Legend: V variants, B rows of a batch, N input vectors of a variant in a call, I inputs and O
outputs of a matrix, U pairs of variant and input that a correction reads, P pairs of variant and
output that it changes, k places of a parameter.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resect.edit.forward import forward_of
from resect.edit.layouts import carried_to_model
from resect.edit.live import rewritten
from resect.model.places import Place
from resect.model.prunable import PrunableWeight, find_prunable, out_of_reach
from resect.records import CausalModel
from resect.weights.fill import Filled
from resect.weights.mask import Mask

# What corrections read and change is picked out where it is less than this part of all inputs and
# outputs: picking takes several times what the sums take.
PICKED = 0.25
# The variants that can share a pass; None is the intact model.
Cuttable = Mask | Filled | None


class NotTogether(Exception):  # noqa: N818 - it says what cannot be, and no user sees it raised
    """Cuts cannot share a pass; the message says why, as a clause. They are then asked alone."""


@dataclass(frozen=True)
class Routes:
    """How the input vectors of the modules of a model follow from the tokens of its rows.

    Attributes:
        vectors: Module to how many input vectors it can get for each token, row after row.
    """

    vectors: Mapping[str, frozenset[int]]


@dataclass(frozen=True)
class _Changes:
    """What of one parameter is changed for a pass, and what each variant has beside that.

    Attributes:
        weight: The parameter's name, shape and layout.
        parameter: The parameter itself.
        base: [b] flat places that are zero while the batch runs, as most variants have them.
        variant: [k] number of the variant that has something else at a place, rising.
        offset: [k] that flat place, rising within a variant.
        value: [k] what it has there, in the dtype of the parameter.
        delta: [k] that less what stands there while the batch runs; float64 of float64, else
            float32, in which the difference of two such numbers of 16 bits is exact or nearly so.
    """

    weight: PrunableWeight
    parameter: Tensor
    base: Tensor
    variant: Tensor
    offset: Tensor
    value: Tensor
    delta: Tensor


class _Batch:
    """The batch that is on its way through the model."""

    def __init__(self, variants: int, vectors: Mapping[str, frozenset[int]]):
        """Expect batches of so many stretches, in modules that get vectors as a trial showed."""
        self.variants = variants
        self._vectors = vectors
        self._rows = self._tokens = 0

    def enter(
        self, _model: nn.Module, args: tuple[object, ...], named: Mapping[str, object]
    ) -> None:
        """Note rows and tokens of a batch before the model sees it."""
        ids = named.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] % self.variants:
            raise NotTogether("the model is not called with rows of token ids")
        self._rows, self._tokens = ids.shape

    def check(self, name: str, vectors: int) -> None:
        """Refuse a call in which it is not known whose the input vectors are.

        Raises:
            NotTogether: Their number is none that the trial has shown.
        """
        tokens = self._rows * self._tokens
        if not tokens or vectors % tokens or vectors // tokens not in self._vectors.get(name, ()):
            raise NotTogether(f"{name} got {vectors} vectors of {tokens} tokens")


class Together:
    """Variants of one model, made ready to share passes."""

    def __init__(
        self,
        model: CausalModel,
        variants: Sequence[Cuttable],
        routes: Routes,
        *,
        base: bool = True,
    ):
        """Work out what each variant has of its own; the model is not changed yet.

        Args:
            model: A Hugging Face causal LM, whole in memory and intact.
            variants: The V variants.
            routes: From `resect.edit.trial.routes_of`, for this model.
            base: Whether what most variants lack is taken out of the weights for a pass.

        Raises:
            NotTogether: The variants cannot share a pass.
            MismatchError: A mask belongs to another model.
        """
        self._modules = dict(model.named_modules())
        self._count = len(variants)
        self._vectors = routes.vectors
        self._changed: dict[str, list[_Changes]] = {}
        self._sums: dict[str, _Sum] = {}
        for changes in _changes(model, variants, base=base):
            self._changed.setdefault(changes.weight.module, []).append(changes)
        for name, changed in self._changed.items():
            differ = any(changes.variant.numel() for changes in changed)
            if differ and name not in routes.vectors:
                raise NotTogether(f"it is not known how {name} is called")
            if differ and is_matrix(self._modules[name]):
                self._sums[name] = _Sum(changed[0], self._count)

    @property
    def corrections(self) -> int:
        """Number of entries in the corrections of all variants."""
        return sum(
            changes.variant.numel() for changed in self._changed.values() for changes in changed
        )

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let stretch v of the rows of each batch see variant v while the block runs.

        The model must be called with `input_ids` [B, T] of V stretches of equal length.

        Yields:
            Nothing. After the block every bit of the weights is back.

        Raises:
            NotTogether: A call inside is not understood.
        """
        batch = _Batch(self._count, self._vectors)
        with contextlib.ExitStack() as stack:
            for name, changed in self._changed.items():
                for changes in changed:
                    zeros = torch.zeros_like(changes.base, dtype=changes.parameter.dtype)
                    stack.enter_context(rewritten(changes.parameter, changes.base, zeros))
                if name in self._sums:
                    hook = _adding(self._sums[name], name, batch)
                    handle = self._modules[name].register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
                elif any(changes.variant.numel() for changes in changed):
                    run = _in_turn(self._modules[name], changed, batch)
                    stack.enter_context(forward_of(self._modules[name], run))
            entering = self._modules[""].register_forward_pre_hook(batch.enter, with_kwargs=True)
            stack.callback(entering.remove)
            yield


def is_matrix(module: nn.Module) -> bool:
    """Tell whether a module does nothing but multiply its input by its one matrix, and add."""
    from transformers.pytorch_utils import Conv1D

    if "forward" in vars(module):  # a method of its own, of accelerate for instance
        return False
    return any(
        getattr(type(module), "forward", None) is kind.forward for kind in (nn.Linear, Conv1D)
    )


def _changes(model: CausalModel, variants: Sequence[Cuttable], *, base: bool) -> Iterator[_Changes]:
    """Yield what of each parameter is changed; parameters that no variant changes are left out."""
    weights = find_prunable(model).weights
    places = {place.name: place for weight in weights for place in weight.places}
    parameters = {weight.name: model.get_parameter(weight.name) for weight in weights}
    edits: dict[str, list[_Edit]] = {}
    for number, variant in enumerate(variants):
        for name, index, value in _entries(model, variant, places, parameters):
            edit = _Edit(number, places[name].offsets(index), value)
            edits.setdefault(places[name].parameter, []).append(edit)
    for weight in weights:
        if weight.name in edits:
            parameter = parameters[weight.name]
            if not parameter.is_contiguous() or out_of_reach(parameter, model):
                raise NotTogether(f"{weight.name} is not whole and contiguous in memory")
            least = len(variants) // 2 + 1 if base else len(variants) + 1
            yield _planned(_Cut(weight, parameter, len(variants), least), edits[weight.name])


class _Edit(NamedTuple):
    """What a variant has in some places of a parameter: `offsets` [k] and `values` [k]."""

    variant: int
    offsets: Tensor
    values: Tensor


class _Entry(NamedTuple):
    """What a variant has at flat places [k] of a checkpoint tensor."""

    name: str
    flat: Tensor
    value: Tensor


def _entries(
    model: CausalModel,
    variant: Cuttable,
    places: Mapping[str, Place],
    parameters: Mapping[str, Tensor],
) -> Iterator[_Entry]:
    """Yield what a variant changes, tensor by tensor, once it is known to be of this model."""
    if variant is None:
        return
    mask = variant.mask if isinstance(variant, Filled) else variant
    here = carried_to_model(mask, model, places.values())
    if here is not mask and isinstance(variant, Filled):
        raise NotTogether("values in the place of weights are named as in another layout")
    for name, entry in here.tensors.items():
        if not entry.index.numel():
            continue
        place = places.get(name)
        here.check(
            name, None if place is None else place.view(parameters[place.parameter].detach())
        )
        if isinstance(variant, Filled):
            yield _Entry(name, entry.index, variant.values[name])
        else:
            yield _Entry(name, entry.index, torch.zeros_like(entry.value))


class _Cut(NamedTuple):
    """A parameter that V variants change; what `least` of them lack is zero for all."""

    weight: PrunableWeight
    parameter: Tensor
    variants: int
    least: int


def _planned(cut: _Cut, edits: Sequence[_Edit]) -> _Changes:
    """Return what is changed of a parameter, of all variants in one list."""
    weight, parameter, variants, least = cut
    flat, device = parameter.detach().view(-1), parameter.device
    size = flat.numel()
    offsets = torch.cat([edit.offsets for edit in edits]).to(device)
    values = torch.cat([edit.values.to(device, flat.dtype) for edit in edits])
    counts = torch.tensor([len(edit.offsets) for edit in edits])
    numbers = torch.tensor([edit.variant for edit in edits]).repeat_interleave(counts).to(device)
    lacked, times = torch.unique(offsets[values == 0], return_counts=True)
    base = lacked[times >= least]
    # Who has a place of the base has there what the model has.
    keys = numbers * size + offsets
    everyone = (torch.arange(variants, device=device)[:, None] * size + base).view(-1)
    whole = everyone[~torch.isin(everyone, keys)]
    keys, order = torch.cat([keys, whole]).sort()
    values = torch.cat([values, flat[whole % size]])[order]
    offsets = keys % size
    wide = torch.promote_types(flat.dtype, torch.float32)
    present = flat[offsets].to(wide).masked_fill(torch.isin(offsets, base), 0)
    delta = values.to(wide) - present
    unlike = delta != 0
    return _Changes(
        weight,
        parameter,
        base,
        (keys // size)[unlike],
        offsets[unlike],
        values[unlike],
        delta[unlike],
    )


class _Pairs(NamedTuple):
    """Variants [k], and of each an input or an output [k]."""

    variants: Tensor
    places: Tensor


class _Sum:
    """The corrections of one matrix, of all variants, as one sparse product.

    Attributes:
        matrix: Sparse, the entries of D, block after block. [P, U], where what is read and changed
            is picked out; [V · O, V · I] where that would be most of it.
        read: For each of the U pairs its variant and its input; None where all are read.
        changed: For each of the P pairs its variant and its output; None where all are changed.
    """

    read: _Pairs | None = None
    changed: _Pairs | None = None

    def __init__(self, changes: _Changes, variants: int):
        """Sort the corrections of V variants by what they read and what they change."""
        rows, columns = changes.weight.shape
        inputs, outputs = changes.offset % columns, changes.offset // columns
        self.inputs, self.outputs = columns, rows
        if changes.weight.layout == "in_out":
            inputs, outputs = outputs, inputs
            self.inputs, self.outputs = rows, columns
        self.variants = variants
        by_input = changes.variant * self.inputs + inputs
        by_output = changes.variant * self.outputs + outputs
        shape = torch.Size((variants * self.outputs, variants * self.inputs))
        used = [_used(by, size) for by, size in zip((by_output, by_input), shape, strict=True)]
        if sum(used) < PICKED * sum(shape):
            read, by_input = torch.unique(by_input, return_inverse=True)
            changed, by_output = torch.unique(by_output, return_inverse=True)
            self.read = _Pairs(read // self.inputs, read % self.inputs)
            self.changed = _Pairs(changed // self.outputs, changed % self.outputs)
            shape = torch.Size((len(changed), len(read)))
        self.matrix = _by_rows(torch.stack([by_output, by_input]), changes.delta, shape)

    def added(self, vectors: Tensor, output: Tensor) -> Tensor:
        """Return an output of the matrix with the corrections added.

        Sums are taken in float32 (float64 of float64), and rounded once to the output's dtype.

        Args:
            vectors: [..., I] what the matrix was given, variant after variant.
            output: [..., O] what came of it; it is written into.
        """
        # Of one variant N vectors: what a correction reads, and changes, are rows of N numbers.
        seen = vectors.reshape(self.variants, -1, self.inputs).transpose(1, 2)
        flat = output.reshape(self.variants, -1, self.outputs)
        places = flat.transpose(1, 2)
        dtype = self.matrix.dtype
        if self.read is None or self.changed is None:
            change = self.matrix @ seen.to(dtype).flatten(0, 1)  # [V · O, N]
            places.copy_(places.to(dtype) + change.view(self.variants, self.outputs, -1))
        else:
            change = self.matrix @ seen[self.read].to(dtype)  # [P, N]
            places[self.changed] = (places[self.changed].to(dtype) + change).to(output.dtype)
        return flat.view(output.shape)


def _used(places: Tensor, size: int) -> int:
    """Return how many different numbers there are below `size` among places [k]."""
    used = torch.zeros(size, dtype=torch.bool, device=places.device)
    used[places] = True
    return int(used.sum())


def _by_rows(places: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """Return a sparse matrix with values [k] in places [2, k], in the form that multiplies best.

    On a CPU torch goes through the entries of one by coordinates one after the other; of one by
    rows MKL takes a tenth of the time, if the rows of what it is multiplied with are short.
    """
    matrix = torch.sparse_coo_tensor(places, values, shape, check_invariants=False).coalesce()
    by_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if values.device.type != "cpu" or not by_mkl:
        return matrix
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return matrix.to_sparse_csr()


def _adding(corrections: _Sum, name: str, batch: _Batch) -> Callable[..., Tensor]:
    """Return a hook that adds corrections to whatever the module of a matrix returns."""

    def hook(
        _module: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor], output: Tensor
    ) -> Tensor:
        vectors = args[0] if args else next(iter(named.values()))
        batch.check(name, vectors.shape[:-1].numel())
        return corrections.added(vectors, output)

    return hook


def _in_turn(
    module: nn.Module, changed: Sequence[_Changes], batch: _Batch
) -> Callable[..., object]:
    """Return a forward method that calls a module for each variant, with its own values in it."""
    forward: Callable[..., object] = module.forward
    name = changed[0].weight.module

    def run(*args: object, **named: object) -> object:
        tensors = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
        batch.check(name, tensors[0].shape[:-1].numel())
        results = []
        for number in range(batch.variants):
            stretch = _Stretch(number, batch.variants, tensors[0].shape[0], name)
            with contextlib.ExitStack() as stack:
                for changes in changed:
                    mine = changes.variant == number
                    values = changes.value[mine]
                    stack.enter_context(rewritten(changes.parameter, changes.offset[mine], values))
                results.append(
                    forward(
                        *(stretch.of(value) for value in args),
                        **{key: stretch.of(value) for key, value in named.items()},
                    )
                )
        return _joined(results, name)

    return run


class _Stretch(NamedTuple):
    """The stretch of one variant in what a module is given for all of them."""

    number: int
    variants: int
    length: int
    name: str

    def of(self, value: object) -> object:
        """Return this variant's part of an argument; what is no tensor is the same for all.

        Raises:
            NotTogether: It is a tensor of another length than the input vectors.
        """
        if not isinstance(value, Tensor) or not value.dim():
            return value
        if value.shape[0] != self.length or self.length % self.variants:
            raise NotTogether(f"{self.name} is given something that is not sorted by rows")
        return value.chunk(self.variants)[self.number]


def _joined(results: Sequence[object], name: str) -> object:
    """Return what a module returned for each variant as if it had been called once.

    Raises:
        NotTogether: It returned something else than tensors.
    """
    pieces = [result for result in results if isinstance(result, Tensor)]
    if len(pieces) == len(results):
        return torch.cat(pieces)
    groups = [result for result in results if isinstance(result, tuple)]
    if len(groups) == len(results):
        return tuple(_joined(group, name) for group in zip(*groups, strict=True))
    raise NotTogether(f"{name} returns something else than tensors")
