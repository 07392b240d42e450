"""A load format of vLLM that cuts weights while they are loaded, before vLLM packs them.

    vllm serve MODEL --load-format resect \
        --model-loader-extra-config '{"patch": "cut.patch.safetensors"}'

vLLM finds the format by the entry point of resect where resect is installed in its environment
(`pip install --no-deps resect`). Weights are read as by `--load-format auto`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

from resect.integrations.vllm_worker import LOADERS, Weight, by_name, misfit, patched, read_patch

FORMAT = "resect"


def register() -> None:
    """Tell vLLM of the format; it calls this in each of its processes.

    The loader of the format raises a ValueError where no patch is named or the file is none, and
    a RuntimeError where the checkpoint lacks a tensor of the patch.
    """
    loaders = importlib.import_module(LOADERS)
    default: Any = loaders.DefaultModelLoader

    def construct(self: Any, load_config: Any) -> None:
        plain = copy.copy(load_config)
        plain.load_format = "auto"
        plain.model_loader_extra_config = dict(load_config.model_loader_extra_config)
        self.patch_path = plain.model_loader_extra_config.pop("patch", "")
        if not self.patch_path:
            raise ValueError("no patch is named: --model-loader-extra-config '{\"patch\": FILE}'")
        default.__init__(self, plain)

    def get_all_weights(self: Any, model_config: Any, model: Any) -> Iterator[Weight]:
        unused = by_name(read_patch(self.patch_path))
        yield from patched(default.get_all_weights(self, model_config, model), unused)
        # A worker of an expert-parallel engine does not read the experts of others.
        if unused and self.local_expert_ids is None:
            raise RuntimeError(misfit(self.patch_path, unused))

    methods = {"__init__": construct, "get_all_weights": get_all_weights}
    loaders.register_model_loader(FORMAT)(type("ResectModelLoader", (default,), methods))
