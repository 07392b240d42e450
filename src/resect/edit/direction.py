"""Take one direction out of what a model's blocks write: the rank-one edit of direction ablation.

    d_l   mean of x_l over one set less its mean over another, made a unit vector [h]; x_l is the
          residual stream after block l, where the scored tokens are predicted. Tokens of an example
          are averaged first, so that each example counts alike.
    W'    W - s d (d . W), for every W that writes to the stream, by the direction of its own block
          or by that of one block; s is the strength. At 1 nothing is written along d any more.

This is the edit of Arditi et al. 2024 (arXiv 2406.11717) and of the tools after them. Embeddings
are left alone, as those tools do: they are the output head too where the two are tied. Where a
norm stands between W and the stream, d is multiplied by its gain first (`resect.edit.writers`).

The edit is held as a vector for each parameter, and undone by the values that stood there.

Legend: L blocks, h the width of the stream, T tokens of a batch.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from resect import files
from resect.edit.swap import swapped
from resect.edit.writers import Writer, at_ends, find_writers
from resect.errors import CoverageError, InputError, MismatchError, not_finite
from resect.model.prunable import out_of_reach
from resect.records import CausalModel, Encoded
from resect.weights.change import where_exact
from resect.weights.mask import load_artefact

Model = TypeVar("Model", bound=CausalModel)
KIND = "resect.direction"
# Tokens of a batch, padding included.
BATCH_TOKENS = 2048
# Of what a block still writes, how much may lie along a direction that was taken out.
LEFT = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}


class Line(NamedTuple):
    """What is taken out of one parameter: a unit vector [h], fp32, along one of its axes."""

    axis: int
    vector: Tensor


@dataclass(frozen=True)
class Ablation:
    """An edit that takes directions out of parameters.

    Attributes:
        lines: Name of a parameter in memory to what is taken out of it.
        strength: Which share of it; 1 leaves nothing along the direction, 2 mirrors it.
        meta: Origin: model, data, which block's direction.
    """

    lines: Mapping[str, Line]
    strength: float = 1.0
    meta: Mapping[str, Any] | None = None

    def at(self, strength: float) -> Ablation:
        """Return the same edit at another strength."""
        return replace(self, strength=strength)

    def save(self, path: str | Path) -> None:
        """Write the edit as safetensors, whole or not at all; the strength is part of it."""
        blobs = {name: line.vector.cpu().clone() for name, line in self.lines.items()}
        header = {
            "kind": KIND,
            "axes": {name: line.axis for name, line in self.lines.items()},
            "strength": self.strength,
            "meta": dict(self.meta or {}),
        }
        files.write_tensors(path, blobs, header | files.provenance())

    @staticmethod
    def load(path: str | Path) -> Ablation:
        """Read an edit.

        Raises:
            InputError: The file is missing, broken or not an edit of this kind.
        """
        blobs, header = load_artefact(path, KIND)
        try:
            lines = {name: Line(int(axis), blobs[name]) for name, axis in header["axes"].items()}
            strength, meta = float(header["strength"]), dict(header["meta"])
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a whole direction", got=str(error)) from error
        for name, (axis, vector) in lines.items():
            if axis < 0 or vector.dim() != 1 or not bool(vector.isfinite().all()):
                raise InputError(
                    f"{path} has no direction for {name}",
                    got=f"{tuple(vector.shape)} along axis {axis}",
                    allowed="a vector of finite numbers along an axis from 0 on",
                )
        if not math.isfinite(strength):
            raise InputError(f"{path} has no strength", got=f"{strength}", allowed="a number")
        return Ablation(lines, strength, meta)


@dataclass(frozen=True)
class Directions:
    """Where two sets of activations lie apart.

    Attributes:
        vectors: [L, h] unit vectors, fp32, on the CPU; 0 where the means are the same.
        lengths: [L] distances between the means.
    """

    vectors: Tensor
    lengths: Tensor

    def ablation(
        self,
        writers: Sequence[Writer],
        *,
        depth: float | None = None,
        strength: float = 1.0,
        meta: Mapping[str, Any] | None = None,
    ) -> Ablation:
        """Return the edit that takes these directions out of what writers write.

        Args:
            writers: From `find_writers` on the same model.
            depth: Use the direction of the block at this depth (0 the first, 1 the last) in all
                blocks; None takes that of each block out of its own weights.
            strength: Which share is taken out.
            meta: Origin, to be kept with it.

        Raises:
            InputError: The block at this depth does not tell the two sets apart.
        """
        last = len(self.vectors) - 1
        if depth is not None and not bool(self.lengths[round(depth * last)]):
            apart = [block for block, length in enumerate(self.lengths.tolist()) if length]
            raise InputError(
                "the block at this depth does not tell the two sets apart, so that nothing would "
                "be taken out",
                got=f"depth {depth:g}, block {round(depth * last)} of {last + 1}",
                allowed=f"a depth from {apart[0] / max(last, 1):.3g} on"
                if apart
                else "sets that some block tells apart",
                fix="choose another depth, or leave it out for each block's own direction",
            )
        lines = {}
        for writer in writers:
            source = writer.block if depth is None else round(depth * last)
            vector = self.vectors[source]
            if writer.gain is not None:
                vector = vector * writer.gain.cpu()
                vector = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
            lines[writer.name] = Line(writer.axis, vector)
        return Ablation(lines, strength, meta)


def measure_directions(
    model: CausalModel, target: Sequence[Encoded], against: Sequence[Encoded]
) -> Directions:
    """Return the difference of the mean activations of two sets, block by block.

    Args:
        model: A Hugging Face causal LM that is wholly in memory.
        target: Examples; what is read are the tokens from which their scored tokens are predicted.
            With the first response token alone scored, that is the end of the prompt.
        against: What they are compared with.

    Raises:
        InputError: A set is empty, activations are not finite, or no block tells the sets apart.
    """
    if not target or not against:
        raise InputError(
            "a direction needs two sets of examples",
            got=f"{len(target)} and {len(against)} examples",
            fix="name a contrast or a preserve set with calibration rows",
        )
    _refuse_out_of_reach(model)
    difference = _mean_after_blocks(model, target) - _mean_after_blocks(model, against)
    if not bool(difference.isfinite().all()):
        raise not_finite("the activations of the examples are")
    lengths = difference.norm(dim=-1)
    if not bool(lengths.any()):
        raise InputError(
            "the model is in the same state before both sets, so that no direction tells them "
            "apart",
            got="prompts that are the same, of which the first response token alone is scored",
            allowed="other prompts, or later tokens of answers that differ",
            fix="score more of the answers (`tokens`, `skip`), or compare with another set",
        )
    vectors = difference / lengths.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(-1)
    return Directions(vectors.float(), lengths.float())


def find_ablation(
    model: CausalModel,
    target: Sequence[Encoded],
    against: Sequence[Encoded],
    *,
    depth: float | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Ablation:
    """Return the edit, at strength 1, that takes the difference of two sets out of a model.

    It is tried before it is returned: what each block then adds to the stream is measured on some
    of the examples.

    Args:
        model: A Hugging Face causal LM that is wholly in memory; as before when this returns.
        target: As for `measure_directions`.
        against: Likewise.
        depth: As for `Directions.ablation`.
        meta: Origin, to be kept with the edit.

    Raises:
        InputError: As `measure_directions`; weights are sharded or offloaded.
        CoverageError: A block still writes along the direction, by a part that is not known.
    """
    directions = measure_directions(model, target, against)
    some = next(iter(_batches(model, [*target[:8], *against[:8]]))).inputs
    ablation = directions.ablation(find_writers(model, some), depth=depth, meta=meta)
    vectors = directions.vectors
    if depth is not None:
        vectors = vectors[round(depth * (len(vectors) - 1))].expand_as(vectors)
    with ablated(model, ablation):
        _refuse_missed(model, vectors, some)
    return ablation


@contextlib.contextmanager
def ablated(model: Model, ablation: Ablation) -> Iterator[Model]:
    """Take directions out of a model while the block runs; restore every bit after it.

    Copies of the parameters that are edited are held meanwhile.

    Args:
        model: A Hugging Face causal LM that is wholly in memory.
        ablation: The edit.

    Yields:
        The model.

    Raises:
        MismatchError: The model has no such parameter of that width; nothing was changed.
        InputError: Weights are sharded or offloaded.
    """
    parameters = dict(model.named_parameters())
    for name, line in ablation.lines.items():
        _refuse_other_model(name, line, parameters.get(name))
    _refuse_out_of_reach(model, ablation.lines)
    edited = {
        name: without(parameters[name].detach(), line, ablation.strength)
        for name, line in ablation.lines.items()
    }
    with swapped(model, edited):
        yield model


def without(weight: Tensor, line: Line, strength: float) -> Tensor:
    """Return a weight [*] less its part along a line, computed in fp32 at least."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    rows = weight.to(exact).movedim(line.axis, -1)  # [*, h]
    unit = line.vector.to(weight.device, exact)
    inside = (rows @ unit).unsqueeze(-1)  # [*, 1]
    return (rows - strength * inside * unit).movedim(-1, line.axis).to(weight.dtype)


class _Batch(NamedTuple):
    """Examples, and their token ids and attention mask [B, T], padded on the right."""

    examples: tuple[Encoded, ...]
    inputs: dict[str, Tensor]


def _batches(model: CausalModel, encoded: Sequence[Encoded]) -> Iterator[_Batch]:
    """Yield examples of similar lengths together, the longest first."""
    device = next(model.get_input_embeddings().parameters()).device
    order = sorted(encoded, key=lambda example: (-len(example.input_ids), example.id))
    done = 0
    while done < len(order):
        width = len(order[done].input_ids)
        batch = tuple(order[done : done + max(1, BATCH_TOKENS // width)])
        done += len(batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        attention = torch.zeros_like(ids)
        for row, example in enumerate(batch):
            ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
            attention[row, : len(example.input_ids)] = 1
        inputs = {"input_ids": ids.to(device), "attention_mask": attention.to(device)}
        yield _Batch(batch, inputs)


def _mean_after_blocks(model: CausalModel, encoded: Sequence[Encoded]) -> Tensor:
    """Return the mean activation after each block [L, h], in fp64 on the CPU."""
    sums: dict[int, Tensor] = {}
    batch: tuple[Encoded, ...] = ()

    def on_end(position: int, _given: Tensor, stream: Tensor) -> None:
        for row, example in enumerate(batch):
            # Token t is predicted from position t - 1.
            read = stream[row, example.first_scored - 1 : len(example.input_ids) - 1]
            mean = where_exact(read.detach()).double().mean(dim=0).cpu()
            sums[position] = sums.get(position, torch.zeros_like(mean)) + mean

    with at_ends(model, on_end), torch.no_grad(), _evaluating(model):
        for examples, inputs in _batches(model, encoded):
            batch = examples
            _run(model, inputs)
    return torch.stack([sums[position] for position in sorted(sums)]) / len(encoded)


def _run(model: CausalModel, inputs: Mapping[str, Tensor]) -> None:
    """Run a model for what its blocks give; its logits are not needed."""
    forward = inspect.signature(dict(model.named_modules())[""].forward)
    few = {"logits_to_keep": 1} if "logits_to_keep" in forward.parameters else {}
    model(**inputs, use_cache=False, **few)


@contextlib.contextmanager
def _evaluating(model: CausalModel) -> Iterator[None]:
    """Turn dropout off while the block runs."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _refuse_missed(model: CausalModel, vectors: Tensor, inputs: Mapping[str, Tensor]) -> None:
    """Refuse an edit after which a block still writes along its direction.

    Raises:
        CoverageError: There is such a block.
    """
    missed: list[int] = []

    def on_end(position: int, given: Tensor, stream: Tensor) -> None:
        written = (stream.float() - given.float())[inputs["attention_mask"].bool()]  # [T, h]
        left = (written @ vectors[position].to(written.device)).norm()
        # The stream rounds what is added to it.
        rounding = torch.finfo(stream.dtype).eps * float(stream.float().norm())
        if float(left) > LEFT[stream.dtype] * float(written.norm()) + rounding:
            missed.append(position)

    with at_ends(model, on_end), torch.no_grad(), _evaluating(model):
        _run(model, inputs)
    if missed:
        raise CoverageError(
            "a direction cannot be taken out of this model: blocks write along it by parts that "
            "resect does not know",
            got=f"{type(model).__name__}, blocks {', '.join(map(str, missed[:5]))}",
            allowed="blocks that add what matrices give to one stream, directly or after a norm",
            fix="compare with cuts of single weights, which need no such parts",
        )


def _refuse_other_model(name: str, line: Line, weight: Tensor | None) -> None:
    width = line.vector.numel()
    if weight is None or line.axis >= weight.dim() or weight.shape[line.axis] != width:
        raise MismatchError(
            "the direction belongs to another model",
            got="no such parameter" if weight is None else f"{tuple(weight.shape)}",
            allowed=f"{name} with {width} numbers along axis {line.axis}",
            fix="measure it on this model",
        )


def _refuse_out_of_reach(model: CausalModel, names: Mapping[str, object] | None = None) -> None:
    """Refuse weights of which this process holds a part or nothing.

    Raises:
        InputError: There is one.
    """
    for name, parameter in model.named_parameters():
        where = out_of_reach(parameter, model) if names is None or name in names else ""
        if where:
            raise InputError(
                "a direction cannot be measured in or taken out of a model that is not wholly in "
                "memory",
                got=f"{name}, {where}",
                allowed="weights that are whole on a CPU or GPU",
                fix="load the model whole",
            )
