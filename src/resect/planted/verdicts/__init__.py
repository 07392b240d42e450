"""Studies on records of which the truth is known: how often a claim is supported, and when."""
