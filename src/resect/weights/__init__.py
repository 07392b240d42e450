"""Scores, sets of weights and their controls: tensors and plain values, no model."""
