"""resect: causal weight surgery on language models."""
