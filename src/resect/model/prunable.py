"""Which weights can be cut: found by structure, never by a list of architecture names.

Prunable are the matrices of `nn.Linear` and `Conv1D` modules inside the blocks of the decoder. A
block is what stands in a `ModuleList` under the decoder. Left alone on purpose: embeddings and the
output head, tied weights, 1-D parameters (norms, biases), convolutions, embeddings inside blocks,
routers and the one-row gates of shared experts. A block weight that is neither is an error, because
a cut that silently misses a part of the model would make every later number wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from resect.errors import CoverageError, InputError

KINDS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "gate_up_proj": "gate_up",
    "qkv_proj": "qkv",
    "c_attn": "qkv",
    "query_key_value": "qkv",
}


@dataclass(frozen=True)
class PrunableWeight:
    """One matrix that can be cut.

    Attributes:
        name: Its name, in memory and on disk.
        layer: Position of its block.
        kind: Part of the block for tables: `q`, `down`, `gate_up`, or the module's own name.
        shape: Its shape.
        layout: `out_in` (nn.Linear) or `in_out` (Conv1D).
    """

    name: str
    layer: int
    kind: str
    shape: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]


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
        weights: Prunable matrices in model order.
        skipped: Parameters of more than one dimension that are left alone.
        unknown: Block weights that are neither; empty unless they were allowed.
        total: Number of prunable weights.
        share: `total` as a fraction of all parameters but the embeddings and the output head.
    """

    weights: tuple[PrunableWeight, ...]
    skipped: tuple[Skipped, ...]
    unknown: tuple[Skipped, ...]
    total: int
    share: float

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each kind of weight, for tables."""
        matrices = Counter(weight.kind for weight in self.weights)
        sizes: Counter[str] = Counter()
        for weight in self.weights:
            sizes[weight.kind] += weight.size
        return [
            {
                "kind": kind,
                "matrices": count,
                "layers": len({w.layer for w in self.weights if w.kind == kind}),
                "weights": sizes[kind],
                "percent": 100 * sizes[kind] / self.total,
            }
            for kind, count in matrices.items()
        ]


def find_prunable(model: Any, *, allow_partial: bool = False) -> Coverage:
    """Find the prunable weights of a causal LM.

    Args:
        model: A Hugging Face causal LM.
        allow_partial: Go on if a block weight is neither prunable nor knowingly left alone.

    Raises:
        CoverageError: There is such a weight; all are listed.
        InputError: There is nothing to prune, or the weights are quantised.
    """
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    tied = _tied(model)
    decoder = _decoder_name(model, modules)
    weights: list[PrunableWeight] = []
    skipped: list[Skipped] = []
    unknown: list[Skipped] = []
    other = 0
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        owner = modules[name.rpartition(".")[0]]
        layer = _layer(name, modules, decoder)
        if not _is_embedding(model, owner):
            other += parameter.numel()
        if len(shape) < 2:
            continue
        if layer is None:
            skipped.append(Skipped(name, shape, "outside of the blocks"))
        elif id(parameter) in tied:
            skipped.append(Skipped(name, shape, "tied to another weight"))
        elif _is_router(name, owner):
            skipped.append(Skipped(name, shape, "router or gate of a shared expert"))
        elif isinstance(owner, nn.Embedding | nn.Conv1d):
            skipped.append(Skipped(name, shape, type(owner).__name__))
        elif isinstance(owner, nn.Linear | Conv1D) and parameter.is_floating_point():
            layout = "in_out" if isinstance(owner, Conv1D) else "out_in"
            part = name.split(".")[-2]
            weights.append(PrunableWeight(name, layer, KINDS.get(part, part), shape, layout))
        else:
            unknown.append(Skipped(name, shape, type(owner).__name__))
    _refuse(weights, unknown, allow_partial=allow_partial)
    total = sum(weight.size for weight in weights)
    return Coverage(tuple(weights), tuple(skipped), tuple(unknown), total, total / other)


def prunable_tensors(model: Any) -> dict[str, Tensor]:
    """Return the prunable weights of a model by checkpoint name; they share its memory."""
    parameters = dict(model.named_parameters())
    return {weight.name: parameters[weight.name] for weight in find_prunable(model).weights}


def _refuse(weights: list[Any], unknown: list[Skipped], *, allow_partial: bool) -> None:
    if unknown and not allow_partial:
        shown = [f"{one.name} {one.shape} in {one.reason}" for one in unknown[:5]]
        raise CoverageError(
            f"{len(unknown)} block weights are of a kind that resect does not know",
            got="; ".join(shown) + ("; …" if len(unknown) > len(shown) else ""),
            fix="pass --allow-partial to leave them alone, knowing that the cut will miss them",
        )
    if not weights:
        raise InputError(
            "the model has no prunable weight",
            allowed="floating-point nn.Linear or Conv1D weights inside blocks",
            fix="load quantised models in bf16 first",
        )


def _tied(model: Any) -> set[int]:
    """Return ids of parameters that stand in the model under two names."""
    counts = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {one for one, count in counts.items() if count > 1}


def _decoder_name(model: Any, modules: dict[str, nn.Module]) -> str:
    """Return the name of the language model inside a wrapper, "" for the model itself."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return next((name for name, module in modules.items() if module is decoder), "")


def _ancestors(name: str) -> Iterator[tuple[str, str]]:
    parts = name.split(".")
    for at in range(1, len(parts)):
        yield ".".join(parts[:at]), parts[at]


def _layer(name: str, modules: dict[str, nn.Module], decoder: str) -> int | None:
    """Return the position of the block that a parameter is in, None outside of the decoder."""
    if decoder and not name.startswith(f"{decoder}."):
        return None
    for parent, child in _ancestors(name):
        if isinstance(modules.get(parent), nn.ModuleList) and child.isdigit():
            return int(child)
    return None


def _is_embedding(model: Any, owner: nn.Module) -> bool:
    return owner is model.get_input_embeddings() or owner is model.get_output_embeddings()


def _is_router(name: str, owner: nn.Module) -> bool:
    """Tell routers by their class, and one-row gates of shared experts by their shape."""
    if "Router" in type(owner).__name__:
        return True
    one_row = isinstance(owner, nn.Linear) and owner.out_features == 1
    return one_row or name.split(".")[-2] == "router"
