"""Checkpoints: loading them, and finding their prunable weights; nothing here changes a weight."""

from resect.model.context import context_of
from resect.model.faults import quiet
from resect.model.load import (
    LoadedModel,
    load_model,
    model_fingerprint,
    tokenizer_fingerprint,
)
from resect.model.places import Place
from resect.model.products import take_path
from resect.model.prunable import Coverage, PrunableWeight, Skipped, find_prunable, prunable_tensors

__all__ = [
    "Coverage",
    "LoadedModel",
    "Place",
    "PrunableWeight",
    "Skipped",
    "context_of",
    "find_prunable",
    "load_model",
    "model_fingerprint",
    "prunable_tensors",
    "quiet",
    "take_path",
    "tokenizer_fingerprint",
]
