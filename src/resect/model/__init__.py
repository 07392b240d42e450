"""Checkpoints: loading them, finding their prunable weights, cutting and restoring them on disk."""

from resect.model.checkpoint import cut_record, forced_of, prune_checkpoint, restore_checkpoint
from resect.model.load import (
    LoadedModel,
    load_model,
    model_fingerprint,
    quiet,
    tokenizer_fingerprint,
)
from resect.model.names import Place
from resect.model.prunable import Coverage, PrunableWeight, Skipped, find_prunable, prunable_tensors

__all__ = [
    "Coverage",
    "LoadedModel",
    "Place",
    "PrunableWeight",
    "Skipped",
    "cut_record",
    "find_prunable",
    "forced_of",
    "load_model",
    "model_fingerprint",
    "prunable_tensors",
    "prune_checkpoint",
    "quiet",
    "restore_checkpoint",
    "tokenizer_fingerprint",
]
