"""Load a checkpoint, and name it by its content."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import torch

from resect.errors import InputError
from resect.machine.devices import check_device, usual_device
from resect.machine.memory import is_out_of_memory
from resect.model.adapter import speaks
from resect.model.decoded import plain_weights, quantised_folder
from resect.model.faults import LOAD_FAULTS, first_line, quiet, refuse_encoder, refuse_holes
from resect.model.files import ADAPTER, adapter_instead, refuse_adapter
from resect.model.imported import checkpoint_of, name_source
from resect.model.ollama import name_of_ollama
from resect.model.prints import fingerprint_of
from resect.model.products import take_path
from resect.model.stored import note_files, stored_of
from resect.records import CausalModel, Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """A causal LM in evaluation mode and its tokenizer."""

    model: CausalModel
    tokenizer: Tokenizer


class _Source(NamedTuple):
    """A folder, or an id on the Hub at a revision, as transformers takes them."""

    name: str
    revision: str | None


class Loading(NamedTuple):
    """A model as it was loaded, and what of its files went nowhere.

    Attributes:
        loaded: The model and its tokenizer.
        unplaced: Tensors of the files for which the model's class has no place, sorted.
    """

    loaded: LoadedModel
    unplaced: tuple[str, ...]


def load_model(
    place: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    tokenizer: str | Path | None = None,
) -> LoadedModel:
    """Load a causal LM and its tokenizer.

    Args:
        place: A checkpoint folder, a GGUF file, which is imported into the cache when it is first
            asked for, or a Hub id, `id@revision` for a fixed revision.
        dtype: Dtype of the weights; None keeps the one on disk.
        device: Device to move the model to; None for what RESECT_DEVICE names, else a CUDA GPU if
            there is one, else the CPU; "auto" spreads one large model over all GPUs.
        tokenizer: Where its tokenizer is, if not beside its weights.

    Raises:
        InputError: The place does not exist or is no checkpoint, lacks a weight of its model, or
            the tokenizer does not work.
    """
    return load_reported(place, dtype=dtype, device=device, tokenizer=tokenizer).loaded


def load_reported(
    checkpoint: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    tokenizer: str | Path | None = None,
) -> Loading:
    """Load as `load_model` does, and say which tensors of the files the model does not use.

    A weight that the files lack would be filled with random numbers by transformers, with a warning
    alone; here that is an error.

    Args:
        checkpoint: As in `load_model`.
        dtype: As in `load_model`.
        device: As in `load_model`.
        tokenizer: As in `load_model`.

    Raises:
        InputError: As in `load_model`.
    """
    take_path()
    source, revision = _source(str(checkpoint))
    words_from = _source(str(checkpoint if tokenizer is None else tokenizer), words=True)
    chosen = find_dtype(dtype)
    device = find_device(device)
    # Only now: a place that does not exist is told without the seconds that this takes.
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                revision=revision,
                dtype=chosen,
                device_map="auto" if device == "auto" else None,
                trust_remote_code=False,
                # Older formats are programs; torch refuses what they must not do with a traceback.
                use_safetensors=True,
                output_loading_info=True,
            )
        # A Hub id may name an adapter, which transformers puts on its base unasked.
        if getattr(model, "_hf_peft_config_loaded", False):
            raise adapter_instead(checkpoint, f"{ADAPTER} on the Hub")
        refuse_holes(checkpoint, report["missing_keys"], report["unexpected_keys"])
        speaker = _read_tokenizer(words_from)
    except LOAD_FAULTS as error:
        raise _why_not(checkpoint, error) from error
    _refuse_mute(speaker, tokenizer or checkpoint)
    refuse_encoder(model.config, str(checkpoint))
    leave_weights(model)
    name_source(model, checkpoint)
    folder = _folder_of(source, revision)
    if folder is not None:
        _tell_of_decoding(model, folder)
        wanted = chosen if isinstance(chosen, torch.dtype) else None
        note_files(model, folder, fingerprint_of, chosen=wanted)
    if device != "auto":
        model = model.to(device)
    return Loading(LoadedModel(model.eval(), speaker), tuple(sorted(report["unexpected_keys"])))


def _tell_of_decoding(model: CausalModel, folder: Path) -> None:
    """Log that weights were decoded on loading, as transformers does with FP8 without a GPU."""
    method = quantised_folder(folder)
    if method and {parameter.dtype for parameter in model.parameters()} <= set(DTYPES.values()):
        _log.warning(
            "%s holds quantised weights (%s), and here are the values that they decode to: they "
            "can be scored; to cut them, %s",
            folder,
            method,
            plain_weights(method),
        )


def leave_weights(model: CausalModel) -> None:
    """Keep a model from changing its weights when it is run, which RWKV does outside of training.

    It halves those of every few blocks and what they give, so that float16 does not overflow; what
    it computes is the same without.
    """
    if getattr(model.config, "rescale_every", 0):
        vars(model.config)["rescale_every"] = 0


def _read_tokenizer(source: _Source) -> Tokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        source.name, revision=source.revision, trust_remote_code=False
    )
    if not _speaks(tokenizer):
        # Beside the config of some families (Qwen2) any tokenizer loads as that family's class,
        # which has no use for a vocabulary of words; the file itself knows better.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source.name, revision=source.revision)
    return tokenizer


def _refuse_mute(speaker: Tokenizer, place: str | Path) -> None:
    """Raise `InputError` for a tokenizer that finds no tokens in a text."""
    if not _speaks(speaker):
        raise InputError(
            f"the tokenizer of {place} returns no tokens",
            got=type(speaker).__name__,
            fix="save the tokenizer with its class named in tokenizer_config.json",
        )


def folder_of(checkpoint: str | Path) -> Path | None:
    """Return the checkpoint folder of a place on this machine; None for a Hub id without one.

    Raises:
        InputError: The place is a path, and no checkpoint is there.
    """
    return _folder_of(*_source(str(checkpoint)))


def _folder_of(source: str, revision: str | None) -> Path | None:
    """Return the folder that a model was loaded from, None if there is none on this machine."""
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils import cached_file

    config = cached_file(
        source,
        "config.json",
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if config is None else Path(config).parent


def _why_not(checkpoint: str | Path, error: BaseException) -> InputError:
    """Return the message for a checkpoint that could not be loaded."""
    if is_out_of_memory(error):
        return InputError(
            f"the model of {checkpoint} does not fit into memory",
            got=first_line(error),
            fix="resect score reads it block by block with --stream; or load it with --dtype "
            "bfloat16, or over several GPUs with --device auto",
        )
    unsafe = _unsafe_weights(Path(checkpoint))
    if unsafe:
        return InputError(
            f"the weights of {checkpoint} are in a format that can run code when it is read",
            got=unsafe[0],
            allowed="safetensors",
            fix="if you trust them: AutoModelForCausalLM.from_pretrained(folder, "
            "use_safetensors=False).save_pretrained(new), and the tokenizer beside it",
        )
    if "trust_remote_code" in str(error):
        return InputError(
            f"{checkpoint} needs Python code of its own to load, and resect runs none",
            got="auto_map in config.json, which names code in the checkpoint",
            allowed="architectures that transformers has itself",
            fix="read that code and convert the checkpoint to a class of transformers",
        )
    method = quantised_folder(Path(checkpoint))
    if method:
        return InputError(
            f"the quantised weights of {checkpoint} cannot be loaded here",
            got=f"{method}: {first_line(error)}",
            allowed="plain weights in float32, bfloat16 or float16",
            fix=plain_weights(method),
        )
    return InputError(
        f"cannot load a causal language model from {checkpoint}",
        got=first_line(error),
        fix="check the folder or id; a folder needs config.json, weights and a tokenizer",
    )


def _unsafe_weights(folder: Path) -> list[str]:
    """Return the weights of a folder in formats that are programs, if it has no others."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return []
    patterns = ("pytorch_model*.bin", "model*.bin", "consolidated*.pth", "*.ckpt")
    return sorted(path.name for pattern in patterns for path in folder.glob(pattern))


def find_device(device: str | None) -> str:
    """Return the device to use; refuse one that is not there before anything is loaded."""
    device = usual_device() if device is None else device
    return device if device == "auto" else check_device(device)


def _speaks(tokenizer: Tokenizer) -> bool:
    return bool(tokenizer("a b c", add_special_tokens=False)["input_ids"])


def _source(text: str, *, words: bool = False) -> _Source:
    """Tell a folder from a Hub id; nothing is fetched for what looks like a path.

    A GGUF file is the folder that it is imported into, an adapter the one that it is merged into.
    An adapter's folder may have a tokenizer (`words`).
    """
    # The tokenizer of an adapter needs no merging, where it has one.
    own_words = words and (Path(text).expanduser() / ADAPTER).is_file() and speaks(Path(text))
    text = text if own_words else checkpoint_of(text)
    folder = Path(text).expanduser()
    if folder.is_dir():
        # Beside a config.json too: transformers would put it on the base that it names.
        if own_words:
            return _Source(str(folder), None)
        refuse_adapter(folder)
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{text} is not a checkpoint folder",
                got="no config.json in it",
                allowed="a folder that save_pretrained wrote, or a Hub id",
            )
        return _Source(str(folder), None)
    name, _, revision = text.partition("@")
    # No id of the Hub has a colon.
    path = text.startswith((".", "/", "~")) or ":" in name
    if path or name.count("/") != 1 or folder.exists():
        raise InputError(
            "no such checkpoint folder",
            got=text,
            allowed="a folder, a GGUF file, or a Hub id owner/name",
            fix=name_of_ollama(text),
        )
    return _Source(name, revision or None)


def find_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    """Return the dtype to load in; refuse an unknown one before anything is loaded."""
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InputError("unknown dtype", got=dtype, allowed=", ".join(DTYPES))
    return DTYPES[dtype]


def model_fingerprint(model: CausalModel) -> str:
    """Return 32 hex digits over names, shapes, dtypes and all values of all parameters.

    How they are made is in `resect.model.prints`; one changed weight changes them. A model that was
    loaded in another dtype than its files ask for, and is as it was loaded, has the fingerprint of
    its files.
    """
    here = fingerprint_of(
        (name, parameter.detach()) for name, parameter in model.named_parameters()
    )
    stored = stored_of(model)
    return stored.fingerprint if stored is not None and stored.loaded == here else here


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Return 16 hex digits over a tokenizer's rules, vocabulary and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    template = str(getattr(tokenizer, "chat_template", None))
    return hashlib.sha256(f"{rules}\0{template}".encode()).hexdigest()[:16]


def load_tokenizer(checkpoint: str | Path) -> Tokenizer:
    """Load a checkpoint's tokenizer without its weights.

    Args:
        checkpoint: A folder, or a Hub id, `id@revision` for a fixed revision.

    Raises:
        InputError: It does not exist or has no tokenizer that returns tokens.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = _source(str(checkpoint), words=True)
    # The second reading is for vocabularies of words, see load_model.
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        try:
            tokenizer: Tokenizer = loader.from_pretrained(
                source.name, revision=source.revision, trust_remote_code=False
            )
        except LOAD_FAULTS as error:
            raise InputError(
                f"cannot load a tokenizer from {checkpoint}", got=first_line(error)
            ) from error
        if _speaks(tokenizer):
            return tokenizer
    raise InputError(
        f"the tokenizer of {checkpoint} returns no tokens", got=type(tokenizer).__name__
    )
