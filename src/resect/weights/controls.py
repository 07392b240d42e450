"""Sets to hold a mask against: of its size, random or matched in magnitude, or of its damage.

A random set of the size of a mask often does nothing to a model, so that any mask that does
something looks special beside it. `damage_matched` grows the random set until it does as much.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resect.errors import MismatchError
from resect.stats import rng
from resect.weights.mask import Mask, MaskTensor
from resect.weights.select import Draw
from resect.weights.units import Family, places_of

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def _control(
    mask: Mask, weights: Mapping[str, Tensor], control: str, draw: Draw, label: str, seed: int
) -> Mask:
    def places(name: str) -> Tensor:
        generator = rng(f"control/{label}/{name}", seed)
        return draw(mask.tensors[name], weights[name].reshape(-1), generator)

    return _placed(mask, weights, control, places, label, seed)


def _placed(
    mask: Mask,
    weights: Mapping[str, Tensor],
    control: str,
    places: Callable[[str], Tensor],
    label: str,
    seed: int,
) -> Mask:
    """Return the control that takes from each tensor what lies at `places` of its name."""
    tensors = {}
    for name, tensor in mask.tensors.items():
        mask.check(name, weights.get(name))
        flat = weights[name].reshape(-1)
        index = places(name).sort().values
        value = flat[index.to(flat.device)].detach().cpu().clone()
        tensors[name] = MaskTensor(
            tensor.shape, index, value, torch.zeros(index.numel(), dtype=torch.uint8)
        )
    return Mask(tensors, {**mask.meta, "control": control, "label": label, "control_seed": seed})


def random_mask(
    mask: Mask, weights: Mapping[str, Tensor], *, label: str = "random", seed: int = 0
) -> Mask:
    """Draw as many weights of every tensor at random, none of them in `mask`.

    Args:
        mask: The mask to match.
        weights: Checkpoint tensors of its model by name.
        label: Name of the draw.
        seed: Seed of the draw.

    Raises:
        MismatchError: The mask belongs to another model.
    """

    def draw(tensor: MaskTensor, _: Tensor, generator: np.random.Generator) -> Tensor:
        count, free = tensor.index.numel(), tensor.size - tensor.index.numel()
        return _outside(tensor, generator.choice(free, size=min(count, free), replace=False))

    return _control(mask, weights, "random", draw, label, seed)


def random_units(
    mask: Mask,
    weights: Mapping[str, Tensor],
    families: Sequence[Family],
    *,
    label: str = "random",
    seed: int = 0,
) -> Mask:
    """Draw as many whole units of every family at random, none of them in `mask`.

    Single weights all over a model would be no control of a mask that takes whole units out of it.

    Args:
        mask: The mask to match, of whole units (`meta["unit"]`).
        weights: Checkpoint tensors of its model by name.
        families: Where the units of its kind lie.
        label: Name of the draw.
        seed: Seed of the draw.

    Raises:
        MismatchError: The mask belongs to another model, or holds parts of units.
    """
    shapes = {name: tensor.shape for name, tensor in mask.tensors.items()}
    removed = {name: tensor.index for name, tensor in mask.tensors.items()}
    whole = [family.inside(removed, shapes) for family in families]
    in_units = places_of(families, [units.nonzero().squeeze(1) for units in whole], shapes)
    if any(not torch.equal(index, in_units[name]) for name, index in removed.items()):
        raise MismatchError(
            f"the mask is said to hold whole {mask.meta.get('unit')}s, and holds parts of some",
            fix="draw the control for the mask as it was selected, before it was combined",
        )
    drawn = []
    for family, units in zip(families, whole, strict=True):
        free = (~units).nonzero().squeeze(1).numpy()
        generator = rng(f"control/{label}/{family.name}", seed)
        count = min(int(units.sum()), len(free))
        drawn.append(torch.from_numpy(generator.choice(free, size=count, replace=False)))
    places = places_of(families, drawn, shapes)
    return _placed(mask, weights, "random", places.__getitem__, label, seed)


def _outside(tensor: MaskTensor, ranks: Ints) -> Tensor:
    """Return flat indices [r] of weights outside of a mask, given their ranks among those."""
    ranks = np.sort(ranks)
    # The r-th weight outside of the mask: each removed weight before it shifts it by one.
    gaps = tensor.index.numpy() - np.arange(tensor.index.numel())
    return torch.from_numpy(ranks + np.searchsorted(gaps, ranks, side="right"))


def magnitude_matched(
    mask: Mask, weights: Mapping[str, Tensor], *, label: str = "magnitude", seed: int = 0
) -> Mask:
    """Draw for every removed weight another one of the same tensor with nearly its magnitude.

    The weights outside of the mask are sorted by |w|; each removed weight draws one of the 16
    nearest places that are still free, so the two sets agree in every quantile of |w|.

    Args:
        mask: The mask to match.
        weights: Checkpoint tensors of its model by name.
        label: Name of the draw.
        seed: Seed of the draw.

    Raises:
        MismatchError: The mask belongs to another model.
    """

    def draw(tensor: MaskTensor, flat: Tensor, generator: np.random.Generator) -> Tensor:
        magnitude = flat.detach().abs().float().cpu().numpy()
        inside = np.zeros(tensor.size, dtype=bool)
        inside[tensor.index.numpy()] = True
        free = np.flatnonzero(~inside)
        free = free[np.argsort(magnitude[free], kind="stable")]
        return torch.from_numpy(
            _nearest(magnitude[free], magnitude[tensor.index.numpy()], free, generator)
        )

    return _control(mask, weights, "magnitude", draw, label, seed)


NEIGHBOURS = 16


def _nearest(
    sorted_magnitudes: Floats, magnitudes: Floats, free: Ints, generator: np.random.Generator
) -> Ints:
    """Draw for each magnitude a free index of nearly that magnitude, no index twice.

    Args:
        sorted_magnitudes: [f] rising magnitudes of the weights that may be drawn.
        magnitudes: [k] what is to be matched.
        free: [f] flat indices of the weights that may be drawn.
        generator: Where chance comes from.
    """
    used: set[int] = set()
    chosen = []
    for magnitude in magnitudes[generator.permutation(len(magnitudes))]:
        centre = int(np.searchsorted(sorted_magnitudes, magnitude))
        width = NEIGHBOURS // 2
        near: list[int] = []
        while not near and width < 2 * len(free):
            ranks = range(max(0, centre - width), min(len(free), centre + width))
            near = [rank for rank in ranks if rank not in used]
            width *= 2
        if not near:
            break
        rank = near[int(generator.integers(len(near)))]
        used.add(rank)
        chosen.append(int(free[rank]))
    return np.array(chosen, dtype=np.int64)


MOST_TIMES = 50.0
MOST_MEASURED = 12
# Damage above what is wanted, as a share of it, with which the search ends.
NEAR = 0.02


def damage_matched(
    mask: Mask,
    weights: Mapping[str, Tensor],
    damage: Callable[[Mask], float],
    *,
    label: str = "damage",
    seed: int = 0,
    most_times: float = MOST_TIMES,
) -> Mask:
    """Grow a random set until cutting it does as much damage as cutting `mask`.

    Every tensor has a random order of its weights outside of `mask`, and a set of t times the size
    takes the first t * k of it, so that each size holds all smaller ones. The size is doubled from
    that of the mask until the damage is reached, then halved in on by its logarithm, with at most
    `MOST_MEASURED` measurements. The smallest size that reached the damage is returned; if none
    did, the largest.

    Args:
        mask: The mask to match; its shares of the tensors are kept until one has no weight left.
        weights: Checkpoint tensors of its model by name.
        damage: Measures what cutting a mask does, for instance in nats of KL divergence; higher is
            worse. What is not a number counts as more than any damage.
        label: Name of the draw.
        seed: Seed of the draw.
        most_times: Largest size as a multiple of the mask's, at least 1.

    Returns:
        The control. `meta["damage"]` holds `wanted` and `reached`, in the unit of `damage` and None
        where they are not finite; `times`, its size as a multiple of the mask's; `measured`, how
        often damage was measured; `capped`, whether even the largest size does less than wanted.

    Raises:
        MismatchError: The mask belongs to another model.
    """
    control = functools.partial(_grown, mask, weights, most_times, label, seed)

    def measure(candidate: Mask) -> float:
        value = damage(candidate)
        return math.inf if math.isnan(value) else value

    wanted, tried = measure(mask), {0.0: 0.0}
    low, high = 0.0, 1.0 if mask.count else 0.0
    while high not in tried and len(tried) < MOST_MEASURED:
        tried[high] = measure(control(high))
        if tried[high] < wanted and high < most_times:
            low, high = high, min(2 * high, most_times)
    capped = tried[high] < wanted
    while not capped and tried[high] > (1 + NEAR) * wanted and len(tried) < MOST_MEASURED:
        # Below the size of the mask there is no lower end to take a logarithm of.
        middle = math.sqrt(low * high) if low else high / 2
        tried[middle] = measure(control(middle))
        low, high = (low, middle) if tried[middle] >= wanted else (middle, high)
    numbers = {
        "wanted": wanted if math.isfinite(wanted) else None,
        "reached": tried[high] if math.isfinite(tried[high]) else None,
        "times": high,
        "measured": len(tried),
        "capped": capped,
    }
    return Mask((matched := control(high)).tensors, {**matched.meta, "damage": numbers})


def _grown(
    mask: Mask,
    weights: Mapping[str, Tensor],
    most_times: float,
    label: str,
    seed: int,
    times: float,
) -> Mask:
    """Draw a random set of so many times the size of a mask; larger ones hold it."""

    def draw(tensor: MaskTensor, _: Tensor, generator: np.random.Generator) -> Tensor:
        count, free = tensor.index.numel(), tensor.size - tensor.index.numel()
        most = min(math.ceil(most_times * count), free)
        # Of one size always, so that the order is one for all sizes.
        order = generator.choice(free, size=most, replace=False)
        # Rounded by a chance that is a tensor's own, or small tensors would all grow at once.
        return _outside(tensor, order[: math.floor(times * count + generator.random())])

    return _control(mask, weights, "damage", draw, label, seed)
