"""The candidates of one tensor: what some selection could take, found as scores come."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resect.weights.scores import TensorScores


class Candidates:
    """Takes scores tensor by tensor and keeps what some selection up to `keep` could take.

    Of each tensor these are its own top ⌊keep·n⌋ and those of its weights that are among the top
    ⌊keep·N⌋ of the model; ties go to the earlier tensor and then to the lower flat index, exactly.
    Both are heads of the tensor's ranking, and so is the longer of the two. A tensor's dense scores
    can be freed as soon as they were added: what is held beside them is about 4·keep·N candidates.
    """

    def __init__(self, keep: float, total: int):
        """Start without candidates.

        Args:
            keep: Fraction in (0, 1].
            total: Number of weights of all tensors together, N.
        """
        self.keep = keep
        self.count = int(keep * total)
        # Highest scores so far, and a score that is surely below the ⌊keep·N⌋-th of the model or
        # is it. Once there is one, later weights of that very score lose to earlier tensors.
        self._best = torch.empty(0)
        self._edge: float | None = None
        self._found: dict[str, TensorScores] = {}
        self._held = 0

    def add(self, name: str, scores: Tensor, weight: Tensor | None = None) -> None:
        """Rank one tensor.

        Args:
            name: The checkpoint tensor.
            scores: Its scores [*], fp32, finite.
            weight: Its weights [*]; None if masks are never made of these scores.
        """
        flat = scores.reshape(-1)
        quota = int(self.keep * flat.numel())
        if self._edge is None:
            index = _top(flat, max(quota, min(self.count, flat.numel())))
        else:
            index = (flat > self._edge).nonzero().squeeze(1)
            if index.numel() < quota:
                index = _top(flat, quota)
        value = flat[index]
        order = descending(value)
        index, value = index[order], value[order].cpu()
        weights = torch.empty(0) if weight is None else weight.new_empty(0)
        if weight is not None and weight.is_contiguous():
            weights = weight.view(-1)[index]
        elif weight is not None:
            weights = weight[torch.unravel_index(index, weight.shape)]
        self._found[name] = TensorScores(tuple(scores.shape), index.cpu(), value, weights.cpu())
        self._held += index.numel()
        self._raise_edge(value)
        if self._edge is not None and self._held > 4 * self.count:
            self._cut([int((tensor.value >= self._edge).sum()) for tensor in self._found.values()])

    def finish(self) -> dict[str, TensorScores]:
        """Return the candidates of all tensors, in the order in which they were added."""
        edge = float("inf")
        if self.count:
            edge = _edge_of(self._best, min(self.count, self._best.numel()))
        above = [int((tensor.value > edge).sum()) for tensor in self._found.values()]
        level = [int((tensor.value == edge).sum()) for tensor in self._found.values()]
        room = self.count - sum(above)
        heads = []
        for higher, equal in zip(above, level, strict=True):
            heads.append(higher + min(equal, room))
            room -= min(equal, room)
        self._cut(heads)
        return self._found

    def _raise_edge(self, value: Tensor) -> None:
        """Note the sorted values of one more tensor."""
        candidates = value if self._edge is None else value[value > self._edge]
        self._best = torch.cat([self._best, candidates[: self.count]])
        # Sorting them out at every tensor would cost more than ranking the tensors.
        if self.count and self._best.numel() >= self.count * (1 if self._edge is None else 2):
            # The highest in any order: only their number and the lowest of them count.
            ranked = np.partition(self._best.numpy(), -self.count)[-self.count :]
            self._best, self._edge = torch.from_numpy(ranked.copy()), float(ranked[0])

    def _cut(self, heads: list[int]) -> None:
        """Shorten each tensor's list to a head, or to its own top fraction if that is longer."""
        for (name, tensor), head in zip(self._found.items(), heads, strict=True):
            end = max(head, int(self.keep * tensor.size))
            if end < tensor.index.numel():
                # Copies, because a slice keeps the memory of the whole.
                self._found[name] = TensorScores(
                    tensor.shape,
                    tensor.index[:end].clone(),
                    tensor.value[:end].clone(),
                    tensor.weight[:end].clone(),
                )
        self._held = sum(tensor.index.numel() for tensor in self._found.values())


def _top(scores: Tensor, count: int) -> Tensor:
    """Return indices [count] of the highest scores; ties go to the lower index."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    if count == scores.numel():
        return torch.arange(count, device=scores.device)
    edge = _edge_of(scores, count)
    above = (scores > edge).nonzero().squeeze(1)
    # Five times as quick as topk, which, too, does not say which of equal scores it takes.
    level = (scores == edge).nonzero().squeeze(1)[: count - above.numel()]
    return torch.cat([above, level])


def _edge_of(scores: Tensor, count: int) -> float:
    """Return the `count`-th highest score."""
    if scores.device.type != "cpu":
        return float(scores.topk(count).values[-1])
    return float(np.partition(scores.numpy(), -count)[-count])


def descending(scores: Tensor) -> Tensor:
    """Return the order [n] of scores [n], fp32 and finite: high ones first, ties as they stand.

    On a CPU each score and its place make one integer, which NumPy sorts several times as quick as
    torch sorts floats stably. The slow twin is `scores.sort(descending=True, stable=True)`.
    """
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or len(scores) >= 2**32:
        return scores.sort(descending=True, stable=True).indices
    # Adding 0 makes -0 and 0 the same bits. Those of negative numbers grow with their size.
    bits = (scores.detach().numpy() + np.float32(0)).view(np.uint32)
    negative = bits >> np.uint32(31) == 1
    falling = np.where(negative, bits, ~(bits | np.uint32(2**31)))
    keys = falling.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    keys &= np.uint64(2**32 - 1)
    return torch.from_numpy(keys.view(np.int64))
