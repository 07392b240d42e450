"""Whether cuts of a model can share a pass: found out by trying it, never by a list of names.

Three short rows of tokens go through the model, each under a cut of its own, together and one after
the other. From that it is read

- how many input vectors each module with prunable weights gets for a token of a row, in the order
  of the rows (`Routes`);
- that nothing but these modules uses their weights: each operation of the pass is looked at;
- that the logits are those of the cuts one by one, also where a row goes on from a cache.

A model that fails in one of these is asked cut by cut. What the trial cannot see is a model that
sorts its rows otherwise only in batches of another shape; there the numbers of vectors differ, and
`resect.edit.many` refuses the call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resect.edit.live import removed
from resect.edit.many import NotTogether, Routes, Together
from resect.errors import ResectError
from resect.model.prunable import PrunableWeight, find_prunable, out_of_reach
from resect.records import CausalModel
from resect.stats import rng
from resect.weights.mask import Mask, MaskTensor

# Rows and tokens of the trial; of sizes that hidden sizes and numbers of heads seldom are.
ROWS, TOKENS = 3, 7
# Share of the weights of a tensor that a trial cuts, and a number from which on a thousandth more
# will do: of billions of weights, lists of places have to stay small.
SHARE, MANY = 0.02, 2000
# Largest difference between the two ways, as a part of what the cuts change: numbers of 16 bits are
# rounded as coarsely as a small cut changes them.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.5}


def routes_of(model: CausalModel, words: Sequence[int]) -> Routes:
    """Return how the modules of a model are called, once it has passed the trial.

    Args:
        model: A Hugging Face causal LM, intact.
        words: Token ids of which rows are drawn, as the model will be given them.

    Raises:
        NotTogether: Its cuts cannot share a pass; the message says why.
    """
    try:
        weights = find_prunable(model).weights
    except ResectError as error:
        raise NotTogether(error.what) from error
    for weight in weights:
        where = out_of_reach(model.get_parameter(weight.name), model)
        if where:
            raise NotTogether(f"{weight.name} is {where}")
    choices = sorted(set(words))
    if len(choices) < 2:
        raise NotTogether("there are too few different tokens to try it with")
    draw = rng("together/rows", 0).choice(choices, size=(ROWS, TOKENS + 1))
    ids = torch.from_numpy(draw).to(model.device)
    variants = [_drawn(model, weights, 1), _drawn(model, weights, 2), None]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return _tried(model, weights, ids, variants)
    finally:
        model.train(training)


def _tried(
    model: CausalModel,
    weights: Sequence[PrunableWeight],
    ids: Tensor,
    variants: Sequence[Mask | None],
) -> Routes:
    """Return the routes of a model that gives the same numbers either way.

    Raises:
        NotTogether: It does not.
    """
    intact = _logits(model, ids)
    alone = torch.cat(
        [_alone(model, ids[row : row + 1], variant) for row, variant in enumerate(variants)]
    )
    watch = _Watch(model, weights)
    with watch.installed():
        _logits(model, ids)
    routes = watch.routes()
    with Together(model, variants, routes).applied():
        joint = _logits(model, ids)
    _compare(intact, alone, joint)
    return routes


def _alone(model: CausalModel, ids: Tensor, variant: Mask | None) -> Tensor:
    with contextlib.nullcontext() if variant is None else removed(model, variant):
        return _logits(model, ids)


def _logits(model: CausalModel, ids: Tensor) -> Tensor:
    """Return the logits [B, T, V] of rows [B, T], the last token behind a cache if there is one."""
    from transformers.cache_utils import DynamicCache

    seen = torch.ones_like(ids)
    output = model(input_ids=ids[:, :-1], attention_mask=seen[:, :-1], use_cache=True)
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, DynamicCache):
        whole: Tensor = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
        return torch.cat([output.logits, whole[:, -1:]], dim=1)
    last = model(input_ids=ids[:, -1:], attention_mask=seen, past_key_values=cache, use_cache=True)
    return torch.cat([output.logits, last.logits], dim=1)


def _drawn(model: CausalModel, weights: Sequence[PrunableWeight], seed: int) -> Mask:
    """Return a mask of some weights of each tensor, one at least."""
    tensors = {}
    for weight in weights:
        parameter = model.get_parameter(weight.name).detach()
        for place in weight.places:
            count = max(1, min(int(SHARE * place.size), MANY + place.size // 1000))
            draw = rng(f"together/{place.name}", seed).integers(place.size, size=count)
            index = torch.unique(torch.from_numpy(draw))
            value = place.view(parameter).flatten()[index.to(parameter.device)].cpu()
            rounds = torch.zeros(len(index), dtype=torch.uint8)
            tensors[place.name] = MaskTensor(place.shape, index, value, rounds)
    return Mask(tensors, {})


def _compare(intact: Tensor, alone: Tensor, joint: Tensor) -> None:
    """Refuse a model whose numbers depend on whether cuts share a pass.

    Args:
        intact: [B, T, V] logits of the rows without a cut.
        alone: Logits of each row under its cut, one after the other.
        joint: The same, together.

    Raises:
        NotTogether: They differ by more than rounding, or the cuts change nothing.
    """
    for row, cut in enumerate((True, True, False)):
        change = float((alone[row] - intact[row]).float().norm())
        off = float((joint[row] - alone[row]).float().norm())
        reach = change if cut else float(intact[row].float().norm())
        # Not the other way round: what is not a number is refused, too.
        if not (reach > 0 and off <= TOLERANCE[joint.dtype] * reach):
            raise NotTogether(
                f"logits of cuts that share a pass are off by {off:.2g} where cuts change "
                f"{change:.2g}"
            )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks on while a model runs: who gets how many vectors, and who uses whose weights."""

    def __init__(self, model: CausalModel, weights: Sequence[PrunableWeight]):
        """Prepare to watch the modules that hold these weights; install nothing yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._modules = {weight.module: model.get_submodule(weight.module) for weight in weights}
        self._owners: dict[int, str] = {}
        for weight in weights:
            storage = model.get_parameter(weight.name).untyped_storage()
            self._owners[storage.data_ptr()] = weight.module
        self._inside: list[str] = []
        self._strays: list[str] = []
        self._tokens = 0
        self._vectors: dict[str, set[int]] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Watch while the block runs."""
        with contextlib.ExitStack() as stack:
            module = dict(self._model.named_modules())[""]
            handles = [module.register_forward_pre_hook(self._enter, with_kwargs=True)]
            for name, watched in self._modules.items():
                handles += [
                    watched.register_forward_pre_hook(
                        partial(self._entered, name), with_kwargs=True
                    ),
                    watched.register_forward_hook(self._left),
                ]
            for handle in handles:
                stack.callback(handle.remove)
            stack.enter_context(self)
            yield

    def routes(self) -> Routes:
        """Return what was seen.

        Raises:
            NotTogether: A weight was used outside of its module.
        """
        if self._strays:
            raise NotTogether(f"the weights of {self._strays[0]} are used outside of their module")
        return Routes({name: frozenset(counts) for name, counts in self._vectors.items()})

    def _enter(self, _model: nn.Module, _args: object, named: Mapping[str, Tensor]) -> None:
        self._tokens = named["input_ids"].numel()

    def _entered(
        self,
        name: str,
        _module: nn.Module,
        args: tuple[object, ...],
        named: Mapping[str, object],
    ) -> None:
        """Note with how many vectors a module is called; its first tensor holds them.

        Raises:
            NotTogether: It does not get the same number of vectors for each token.
        """
        tensors = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
        vectors = tensors[0].shape[:-1].numel() if tensors else 0
        if not vectors or vectors % self._tokens:
            raise NotTogether(f"{name} gets {vectors} vectors of {self._tokens} tokens")
        self._vectors.setdefault(name, set()).add(vectors // self._tokens)
        self._inside.append(name)

    def _left(self, _module: nn.Module, _args: object, _output: object) -> None:
        self._inside.pop()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Carry out an operation, and note whose weights it uses where it should not."""
        result = func(*args, **(kwargs or {}))
        inputs = set(_storages((*args, *(kwargs or {}).values())))
        # A view uses nothing yet; what is done with it is looked at in its turn.
        for pointer in inputs - set(_storages((result,))):
            name = self._owners.get(pointer)
            if name is not None and name not in self._inside:
                self._strays.append(name)
        return result


def _storages(values: Iterable[object]) -> Iterator[int]:
    """Yield where the memory of all dense tensors among values begins."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _storages(value)
        elif isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            yield value.untyped_storage().data_ptr()
