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
        value, order = flat[index].sort(descending=True, stable=True)
        index = index[order]
        weights = torch.empty(0) if weight is None else weight.new_empty(0)
        if weight is not None:
            weights = weight[torch.unravel_index(index, weight.shape)]
        value = value.cpu()
        self._found[name] = TensorScores(tuple(scores.shape), index.cpu(), value, weights.cpu())
        self._held += index.numel()
        self._raise_edge(value)
        if self._edge is not None and self._held > 4 * self.count:
            self._cut([int((tensor.value >= self._edge).sum()) for tensor in self._found.values()])

    def finish(self) -> dict[str, TensorScores]:
        """Return the candidates of all tensors, in the order in which they were added."""
        edge = float("inf")
        if self.count:
            edge = float(self._best.topk(min(self.count, self._best.numel())).values[-1])
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
            self._best = self._best.topk(self.count).values
            self._edge = float(self._best[-1])

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
    if scores.device.type != "cpu":
        edge = float(scores.topk(count).values[-1])
    else:
        edge = float(np.partition(scores.numpy(), -count)[-count])
    above = (scores > edge).nonzero().squeeze(1)
    # Five times as quick as topk, which, too, does not say which of equal scores it takes.
    level = (scores == edge).nonzero().squeeze(1)[: count - above.numel()]
    return torch.cat([above, level])
