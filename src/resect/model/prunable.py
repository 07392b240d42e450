"""Which weights can be cut: found by structure, never by a list of architecture names.

Prunable are, inside the blocks of the decoder, the matrices of `nn.Linear` and `Conv1D` modules and
the 3-D parameters that hold the matrices of all experts. What a block is, and what of it is left
alone on purpose (routers, norms, biases, ...), is said in `resect.model.blocks`; embeddings, the
output head and tied weights are left alone too. A block weight that is neither is an error, because
a cut that silently misses a part of the model would make every later number wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from resect.errors import CoverageError, InputError
from resect.machine.processes import is_sharded, sharded_modules
from resect.model.blocks import Decoder, left_alone
from resect.model.decoded import method_of, plain_weights
from resect.model.places import Place, checkpoint_places
from resect.records import CausalModel

Layout = Literal["out_in", "in_out", "expert_out_in", "expert_in_out"]

KINDS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "out_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "gate_up_proj": "gate_up",
    "qkv_proj": "qkv",
    "c_attn": "qkv",
    "query_key_value": "qkv",
}

# What TransformerLens puts between a module and its parameters, in the model itself.
WRAPPED_PART = "_original_component"
# What gradients can be taken of; integers and 8-bit floats are quantised weights.
USABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class PrunableWeight:
    """One parameter that can be cut.

    Attributes:
        name: Its name in memory.
        places: The checkpoint tensors that it holds: itself, or a matrix for each expert.
        layer: Position of its block.
        kind: Part of the block for tables: `q`, `down`, `expert gate_up`, or the module's own name.
        shape: Its shape in memory.
        layout: `out_in` (nn.Linear), `in_out` (Conv1D); 3-D experts with `expert_` before it.
    """

    name: str
    places: tuple[Place, ...]
    layer: int
    kind: str
    shape: tuple[int, ...]
    layout: Layout

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def module(self) -> str:
        """Name of the module that holds it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Skipped:
    """A parameter of more than one dimension that is left alone, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What is prunable in a model and what is not.

    Attributes:
        weights: Prunable parameters in model order.
        skipped: Parameters of more than one dimension that are left alone.
        unknown: Block weights that are neither, with their class, or that several blocks share;
            empty unless they were allowed.
        total: Number of prunable weights.
        share: `total` as a fraction of all parameters but the embeddings and the output head.
    """

    weights: tuple[PrunableWeight, ...]
    skipped: tuple[Skipped, ...]
    unknown: tuple[Skipped, ...]
    total: int
    share: float

    def rows(self) -> list[dict[str, object]]:
        """Return a row for each kind of weight, for tables."""
        kinds: dict[str, list[PrunableWeight]] = {}
        for weight in self.weights:
            kinds.setdefault(weight.kind, []).append(weight)
        return [
            {
                "kind": name,
                "matrices": sum(len(weight.places) for weight in weights),
                "layers": len({weight.layer for weight in weights}),
                "weights": sum(weight.size for weight in weights),
                "percent": 100 * sum(weight.size for weight in weights) / self.total,
            }
            for name, weights in kinds.items()
        ]


class _Located(NamedTuple):
    """A parameter that can be cut, before its places in a checkpoint are looked up."""

    name: str
    layer: int
    layout: Layout
    kind: str


def find_prunable(model: CausalModel, *, allow_partial: bool = False) -> Coverage:
    """Find the prunable weights of a causal LM; one on the meta device will do.

    Args:
        model: A Hugging Face causal LM, or a multi-modal model around one.
        allow_partial: Go on if a block weight is neither prunable nor knowingly left alone.

    Raises:
        CoverageError: There is such a weight; all are listed.
        InputError: There is nothing to prune, the weights are quantised or computed from others
            in each call, or another library has wrapped the model.
    """
    modules = _modules_of(model)
    decoder = Decoder(model, modules)
    tied = _tied(modules[""], decoder)
    located: list[_Located] = []
    skipped: list[Skipped] = []
    unknown: list[Skipped] = []
    size = 0
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        owner = modules[name.rpartition(".")[0]]
        layer = decoder.layer(name)
        if not _is_embedding(model, owner):
            size += parameter.numel()
        if len(shape) < 2:
            continue
        reason = "outside of the blocks of the language model"
        if layer is not None:
            reason = "tied to another weight" if tied.get(id(parameter)) == "outside" else ""
            reason = reason or left_alone(name, parameter, modules)
        if layer is None or reason:
            skipped.append(Skipped(name, shape, reason))
            continue
        layout = _layout(owner, parameter)
        if id(parameter) in tied:
            unknown.append(Skipped(name, shape, "shared by several blocks"))
        elif layout is None:
            unknown.append(Skipped(name, shape, f"in {type(owner).__name__}"))
        else:
            _refuse_quantised(name, parameter, model)
            located.append(_Located(name, layer, layout, _kind(name, layout, owner)))
    _refuse_packed(model, modules[""], decoder)
    _refuse(located, unknown, allow_partial=allow_partial)
    places = checkpoint_places(modules[""], [name for name, _, _, _ in located])
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    weights = tuple(
        PrunableWeight(name, places[name], layer, kind, shapes[name], layout)
        for name, layer, layout, kind in located
    )
    total = sum(weight.size for weight in weights)
    return Coverage(weights, tuple(skipped), tuple(unknown), total, total / size)


def prunable_tensors(model: CausalModel) -> dict[str, Tensor]:
    """Return the prunable checkpoint tensors of a model by name; they share its memory."""
    parameters = dict(model.named_parameters())
    return {
        place.name: place.view(parameters[weight.name].detach())
        for weight in find_prunable(model).weights
        for place in weight.places
    }


def blocks(model: CausalModel) -> list[nn.Module]:
    """Return the outermost blocks of the decoder that hold prunable weights, in order."""
    modules = dict(model.named_modules())
    decoder = Decoder(model, modules)
    by_name = {}
    for weight in find_prunable(model, allow_partial=True).weights:
        step = decoder.block(weight.name)
        if step is not None:
            name = ".".join(step)
            by_name[name] = modules[name]
    return list(by_name.values())


def _modules_of(model: CausalModel) -> dict[str, nn.Module]:
    """Return the modules of a model by name, of one whose parameters have their usual names.

    Raises:
        InputError: Another library has wrapped the model, or put parts of its own into it.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name in ("", *(name for name, _ in model.named_parameters())):
        renamed = WRAPPED_PART in name.split(".")
        if renamed or not isinstance(modules.get(name.rpartition(".")[0]), nn.Module):
            raise InputError(
                "another library has wrapped the model, and its weights have other names there",
                got=f"{type(model).__module__}.{type(model).__name__}"
                + (f" with {name}" if name else ""),
                allowed="a model as transformers loads it",
                fix="give the model that is inside, if it is as it was; else cut first, with "
                "resect.apply or resect prune, and wrap what is cut",
            )
    _refuse_computed(modules)
    return modules


def _refuse_computed(modules: Mapping[str, nn.Module]) -> None:
    """Refuse weights that are no parameters, but made of others whenever their module is called.

    `torch.nn.utils.prune` keeps the parameter under another name and puts its product with a mask
    there; `weight_norm` makes it of two parameters. A cut of what is computed from would stand
    under names that no checkpoint has.
    """
    for name, module in modules.items():
        weight = vars(module).get("weight")
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        made_of = [own for own, _ in module.named_parameters(recurse=False)]
        if made_of:
            raise InputError(
                "a weight is computed from others in each call, as torch.nn.utils.prune does it",
                got=f"{name}.weight, from {', '.join(made_of)}",
                allowed="weights that are parameters",
                fix="make it one first, with torch.nn.utils.prune.remove(module, 'weight') or "
                "torch.nn.utils.remove_weight_norm(module)",
            )


def _kind(name: str, layout: Layout, owner: nn.Module) -> str:
    parts = name.split(".")
    if not layout.startswith("expert"):
        return KINDS.get(parts[-2], parts[-2])
    kind = KINDS.get(parts[-1], parts[-1])
    # Three axes have the heads of some recurrences and attentions, too.
    of_experts = "experts" in parts or "Expert" in type(owner).__name__
    return f"expert {kind}" if of_experts else kind


def _layout(owner: nn.Module, parameter: Tensor) -> Layout | None:
    """Tell how a parameter's axes lie, or None if its kind is not known."""
    from transformers.pytorch_utils import Conv1D

    if parameter.dim() == 2 and isinstance(owner, Conv1D):
        return "in_out"
    if parameter.dim() == 2 and isinstance(owner, nn.Linear):
        return "out_in"
    if parameter.dim() == 3:
        # Only documentation: scores and cuts work element by element, whatever the axes mean.
        return "expert_in_out" if getattr(owner, "is_transposed", False) else "expert_out_in"
    return None


def _refuse_packed(model: CausalModel, module: nn.Module, decoder: Decoder) -> None:
    """Refuse weights that are packed into buffers (GPTQ, AWQ): a cut would silently miss them."""
    if getattr(model.config, "quantization_config", None) is None:
        return
    for name, buffer in module.named_buffers():
        integers = not (buffer.is_floating_point() or buffer.dtype == torch.bool)
        if buffer.dim() > 1 and decoder.layer(name) is not None and integers:
            _refuse_quantised(name, buffer, model)


def _refuse_quantised(name: str, parameter: Tensor, model: CausalModel) -> None:
    # Tensors of a quantisation package (torchao) say that they have the dtype they stand for.
    packed = type(parameter) not in (Tensor, nn.Parameter) and not is_sharded(parameter)
    if packed or parameter.dtype not in USABLE:
        dtype = str(parameter.dtype).removeprefix("torch.")
        method = method_of(getattr(model.config, "quantization_config", None))
        raise InputError(
            "the model is quantised, and quantised weights have no gradient",
            got=f"{name} in {type(parameter).__name__ if packed else dtype}",
            allowed="float32, bfloat16 or float16 weights",
            fix=plain_weights(method),
        )


def _refuse(located: list[_Located], unknown: list[Skipped], *, allow_partial: bool) -> None:
    if unknown and not allow_partial:
        shown = [f"{weight.name} {weight.shape} {weight.reason}" for weight in unknown[:5]]
        raise CoverageError(
            f"{len(unknown)} block weights are of a kind that resect cannot cut",
            got="; ".join(shown) + ("; …" if len(unknown) > len(shown) else ""),
            fix="pass --allow-partial to leave them alone, knowing that the cut will miss them",
        )
    if not located:
        raise InputError(
            "the model has no prunable weight",
            allowed="nn.Linear, Conv1D or 3-D expert weights inside blocks",
            fix="check that the checkpoint is a decoder with a language model",
        )


def out_of_reach(parameter: Tensor, model: CausalModel) -> str:
    """Return where a parameter of a model is if this process does not hold it whole, else ""."""
    if is_sharded(parameter) or sharded_modules(module for _, module in model.named_modules()):
        return "a part in each process (FSDP2 or tensor parallelism)"
    return "on the meta device, which is offloaded" if parameter.is_meta else ""


def _tied(model: nn.Module, decoder: Decoder) -> dict[int, str]:
    """Return by id the parameters that stand in the model under several names, and where.

    Returns:
        `inside` where all of these names are of blocks, `outside` where the embeddings or the head
        are the same parameter.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {
        parameter: "outside" if None in map(decoder.layer, every) else "inside"
        for parameter, every in names.items()
        if len(every) > 1
    }


def _is_embedding(model: CausalModel, owner: nn.Module) -> bool:
    return isinstance(owner, nn.Embedding) or owner is model.get_output_embeddings()
