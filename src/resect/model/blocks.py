"""Where the blocks of a language model are, and which of their weights are knowingly left alone.

A block is what stands in a `ModuleList` under the decoder, unless it is a single layer there. Parts
that read no text are none of the decoder's: encoders of images and sounds say so themselves, by the
`input_modalities` of their class.

Left alone are embeddings, convolutions, norms, biases, vectors that are stored with more axes, the
decays and skips of state spaces, scales, and all that chooses between experts, streams or tokens:

    router   what has the word `router` in its name or class; a module called `gate` beside experts;
             layers that give one number, as the gates of shared experts do; and, beside a router
             without experts (Gemma 3n's AltUp), the layers that read what it gives
    experts  a `ModuleList`, or parameters with three axes, of which the first counts experts
    choice   what has a word of `CHOICES` in its name or class. No gradient reaches what chooses
             tokens, so it cannot be scored, and a control must not cut what scores never can
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from resect.records import CausalModel

Modules = Mapping[str, nn.Module]
# Parameters of state spaces that are multiplied number by number, and are no matrices.
STATE_SPACE = ("A_log", "D")
# Words in the name of a module, or without the line in that of its class -> why it is left alone.
CHOICES = {
    "hyper_connection": "hyper-connection, which mixes streams",
    "attention_residual": "choice between the outputs of blocks",
    "indexer": "indexer, which chooses tokens",
    "patcher": "patcher, which chooses where tokens end",
    "relative_logits": "table of relative positions",
}


class Step(NamedTuple):
    """One step from a module to what it holds: `model.layers`, `3`."""

    parent: str
    child: str


def ancestors(name: str) -> Iterator[Step]:
    """Yield the steps from the model to a parameter, outermost first."""
    words = name.split(".")
    for depth in range(1, len(words)):
        yield Step(".".join(words[:depth]), words[depth])


class Decoder:
    """The language model inside a model, which may be a wrapper of it.

    Attributes:
        name: Its name in the model; "" for the model itself.
    """

    def __init__(self, model: CausalModel, modules: Modules) -> None:
        """Find it.

        Args:
            model: A Hugging Face causal LM, or a multi-modal model around one.
            modules: Its modules by name.
        """
        self._modules = modules
        get = getattr(model, "get_decoder", None)
        decoder = None if get is None else get()
        # Some classes return their head, in which no block stands.
        rows = [] if decoder is None else [m for m in decoder.modules() if _is_row(m)]
        self.name = next((name for name, m in modules.items() if rows and m is decoder), "")
        self._deaf = tuple(f"{name}." for name, m in modules.items() if name and not _reads_text(m))

    def layer(self, name: str) -> int | None:
        """Return the position of the block that a parameter is in, None outside of the decoder."""
        step = self.block(name)
        return None if step is None else int(step.child)

    def block(self, name: str) -> Step | None:
        """Return the step to the outermost block that a parameter is in, None if there is none."""
        if name.startswith(self._deaf) or (self.name and not name.startswith(f"{self.name}.")):
            return None
        for step in ancestors(name):
            parent = self._modules.get(step.parent)
            if parent is not None and _is_row(parent) and step.child.isdigit():
                return step
        return None


def _is_row(module: nn.Module) -> bool:
    """Tell whether blocks stand in a module: a list of modules that have parts themselves."""
    if not isinstance(module, nn.ModuleList):
        return False
    return any(True for child in module for _ in child.children())


def _reads_text(module: nn.Module) -> bool:
    modalities = getattr(module, "input_modalities", "text")
    return "text" in ([modalities] if isinstance(modalities, str) else modalities)


def left_alone(name: str, parameter: Tensor, modules: Modules) -> str:
    """Return why a block weight is knowingly left alone, or "" if it is not.

    Args:
        name: Name of the parameter.
        parameter: It, with two axes or more.
        modules: The modules of its model by name.
    """
    parent, _, last = name.rpartition(".")
    owner = modules[parent]
    if sum(side > 1 for side in parameter.shape) < 2 and not isinstance(owner, nn.Linear):
        return "vector"
    if isinstance(owner, nn.Embedding | nn.Conv1d):
        return type(owner).__name__
    if type(owner).__name__.endswith("Convolution"):
        return "convolution"
    if "Norm" in type(owner).__name__ or any(
        _is_norm(modules[step.parent]) for step in ancestors(name)
    ):
        return "norm"
    if "bias" in last:
        return "bias"
    if "embed" in last:
        return "embedding"
    if last in STATE_SPACE:
        return "decay or skip of a state space"
    if last == "scale":
        return "scale"
    if is_router(name, modules):
        return "router or gate of a shared expert"
    return _choice(name, modules)


def _is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm, and not a part around an attention (DBRX's)."""
    if not type(module).__name__.endswith("Norm"):
        return False
    return not any("Attention" in type(inner).__name__ for inner in module.modules())


def _choice(name: str, modules: Modules) -> str:
    """Return what a parameter chooses or tells apart, or "" if it belongs to no such part."""
    for parent, child in ancestors(name):
        part = modules.get(f"{parent}.{child}")
        class_name = "" if part is None else type(part).__name__.lower()
        for word, reason in CHOICES.items():
            if part is not None and (word in child or word.replace("_", "") in class_name):
                return reason
    return ""


def is_router(name: str, modules: Modules) -> bool:
    """Tell whether a parameter belongs to what chooses between experts or streams.

    Args:
        name: Name of the parameter.
        modules: The modules of its model by name.
    """
    for parent, child in ancestors(name):
        part = modules.get(f"{parent}.{child}")
        if "router" in child.split("_") or "Router" in type(part).__name__:
            return True
        if part is not None and child == "gate" and _counts_experts(modules[parent]):
            return True
    owner_name = name.rpartition(".")[0]
    owner = modules[owner_name]
    if not isinstance(owner, nn.Linear):
        return False
    return owner.out_features == 1 or _reads_router(owner, modules[owner_name.rpartition(".")[0]])


def _counts_experts(module: nn.Module) -> bool:
    """Tell whether experts stand in a module."""
    children = list(module.children())
    return any(
        isinstance(child, nn.ModuleList)
        or any(parameter.dim() == 3 for parameter in child.parameters(recurse=False))
        for child in children
    )


def _reads_router(layer: nn.Linear, parent: nn.Module) -> bool:
    """Tell whether a layer mixes by what a router beside it gives, where no expert is."""
    if _counts_experts(parent) or any(isinstance(c, nn.Embedding) for c in parent.children()):
        return False
    routers = [
        child
        for name, child in parent.named_children()
        if "router" in name.split("_") and isinstance(child, nn.Linear)
    ]
    return any(layer.in_features == router.out_features for router in routers)
