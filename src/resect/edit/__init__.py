"""Every way to change a model: cut in memory or on disk, held, swapped, tuned, and undone."""

from resect.edit.checkpoint import cut_record, forced_of, prune_checkpoint, restore_checkpoint
from resect.edit.live import apply, removed, shrunk, transplanted

__all__ = [
    "apply",
    "cut_record",
    "forced_of",
    "prune_checkpoint",
    "removed",
    "restore_checkpoint",
    "shrunk",
    "transplanted",
]
