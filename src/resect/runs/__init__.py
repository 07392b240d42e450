"""From a configuration to a folder with verdicts."""
