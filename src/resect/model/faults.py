"""What goes wrong when other packages read a checkpoint, and how they are kept quiet meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from resect.errors import InputError
from resect.records import ModelConfig

# Types that see the tokens after the one that they predict, though transformers has no masked
# language model of them: found by changing the last token of a text (benchmarks/model_trials.py).
BOTH_WAYS = ("bert-generation", "cpmant", "xlnet")
# Tensors that a message names.
MOST_NAMED = 5
# What transformers, tokenizers and safetensors raise for broken folders; ImportError is a quantised
# checkpoint without the package that reads it.
LOAD_FAULTS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RecursionError,
    RuntimeError,
    SafetensorError,
    MemoryError,
)


def load_whole(folder: Path, message: str, *, fix: str = "", **options: object) -> Any:
    """Let transformers load a causal LM of which no weight is missing, in the dtype of its files.

    Args:
        folder: Checkpoint folder with safetensors weights.
        message: What to say where it cannot be loaded.
        fix: The next step to say then.
        options: More for `from_pretrained`.

    Raises:
        InputError: It cannot be loaded, or lacks weights.
    """
    import transformers

    try:
        with quiet():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype="auto",
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except LOAD_FAULTS as error:
        raise InputError(message, got=first_line(error), fix=fix) from error
    refuse_holes(folder, report["missing_keys"], report["unexpected_keys"])
    return model


def refuse_holes(checkpoint: str | Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks weights of its model: they would be random numbers.

    Raises:
        InputError: There is one.
    """
    absent, unplaced = sorted(missing), sorted(unexpected)
    if not absent:
        return
    prefixed = [name for name in unplaced if name.endswith(tuple(f".{key}" for key in absent))]
    got = f"no {some_of(absent)}"
    if unplaced:
        got += f"; and {some_of(unplaced)}, for which the model has no place"
    raise InputError(
        f"{checkpoint} lacks {len(absent)} weight{'s' * (len(absent) > 1)} of its model",
        got=got,
        allowed="files that hold every weight, so that none is filled with random numbers",
        fix="take the prefix of a training wrapper off its names, or save the unwrapped model with "
        "save_pretrained"
        if prefixed
        else "save the model again with save_pretrained, or fetch the missing shard",
    )


def refuse_adapter_holes(
    adapter: str | Path, base: str | Path, missing: Iterable[str], unexpected: Iterable[str]
) -> None:
    """Refuse an adapter that was put on its base in part: peft warns, and leaves the rest alone.

    Args:
        adapter: Where it is from, for the message.
        base: Likewise.
        missing: Places in the model that its file has nothing for.
        unexpected: Tensors of the file that the model has no place for.

    Raises:
        InputError: There is one of either.
    """
    absent, unplaced = sorted(missing), sorted(unexpected)
    if not absent and not unplaced:
        return
    gaps = [f"no place for {some_of(unplaced)}"] if unplaced else []
    gaps += [f"nothing for {some_of(absent)}"] if absent else []
    raise InputError(
        f"the adapter {adapter} does not fit {base}",
        got="; and ".join(gaps),
        allowed="an adapter whose tensors all have a place in the base, and all places a tensor",
        fix="give the base model that the adapter was trained on; if a training wrapper put a "
        "prefix in front of its names, save the unwrapped model with save_pretrained",
    )


def some_of(names: list[str]) -> str:
    """Return the first names of a list, and how many follow."""
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"


def refuse_encoder(config: ModelConfig, checkpoint: str) -> None:
    """Refuse a family that reads in both directions, though it can be loaded as a causal LM.

    Args:
        config: Configuration of the model.
        checkpoint: Where it is from, for the message.

    Raises:
        InputError: The configuration is of such a family, and does not say that it is a decoder.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    both_ways = config.model_type in {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, *BOTH_WAYS}
    one_way = getattr(config, "is_decoder", False)
    # The router of Doge's experts lays the numbers of one token out over others.
    mixes_tokens = config.model_type == "doge" and getattr(config, "is_moe", False)
    if (both_ways and not one_way) or mixes_tokens:
        raise InputError(
            f"{checkpoint} is no causal language model",
            got=f"model type {config.model_type}, which reads in both directions",
            allowed="models that predict the next token",
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from its own bars and its table of missing weights while the block runs."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
