"""Rows of different lengths as one batch.

Legend: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Padded(NamedTuple):
    """A batch of rows of one length.

    Attributes:
        ids: [B, T] token ids, int64.
        mask: [B, T] 1 where a row has a token, 0 where it is filled up, int64.
    """

    ids: Tensor
    mask: Tensor

    @property
    def seen(self) -> Tensor | None:
        """The mask, or None if no row is filled up."""
        return None if bool(self.mask.all()) else self.mask

    def to(self, device: torch.device) -> Padded:
        """Return the batch on a device."""
        return Padded(self.ids.to(device), self.mask.to(device))


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool) -> Padded:
    """Fill rows up to the length of the longest one."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for position, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        ids[position, columns] = torch.tensor(row, dtype=torch.long)
        mask[position, columns] = 1
    return Padded(ids, mask)
