"""GGUF files as checkpoint folders, made once by transformers' own reader.

Weights in blocks become the values that the blocks decode to, in float32, which holds them exactly.
The precision from before the quantisation is gone: scores and masks are of these values, and fit
the original checkpoint only by force. A file without blocks keeps its dtype if every value has it.

A folder in the cache bears the hash of its file and the version of the reader, since another one
may read the same file otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from resect import files
from resect.errors import InputError
from resect.machine.memory import is_out_of_memory
from resect.model.adapter import is_adapter, merged_folder
from resect.model.faults import LOAD_FAULTS, first_line, quiet, refuse_encoder, refuse_holes
from resect.model.gguf import (
    READ_FAULTS,
    SUFFIX,
    GgufFile,
    is_gguf,
    read_by_nobody,
    read_gguf,
)
from resect.model.ollama import model_file, name_of_ollama
from resect.records import CausalModel, Tokenizer

RECORD = "gguf.json"
# In a file that `resect prune` wrote: what a cut folder has in the file of the second name.
CUT_FACT, CUT_RECORD = "resect.cut", "resect.json"
# Tokens that end a turn or a text, in files whose facts name one end alone. llama.cpp goes by such
# names, too; here they count if the chat template writes them.
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>",
    "<|endoftext|>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "<turn|>",
)  # fmt: skip
_END_FACTS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_NAME = f"model{SUFFIX}"
_BLOCKS_OF_27B = 62
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """What was imported, as `gguf.json` in the folder says it.

    Attributes:
        source: The files, in order.
        hash: 16 hex digits of their content's SHA-256.
        architecture: What the file calls its architecture.
        types: The types of its tensors.
        dtype: Dtype of the folder.
        meaning: What its weights are, in a sentence.
        notes: What a reader has to know, in sentences.
    """

    source: tuple[str, ...]
    hash: str
    architecture: str
    types: tuple[str, ...]
    dtype: str
    meaning: str
    notes: tuple[str, ...]


def checkpoint_of(place: str | Path) -> str:
    """Return a checkpoint folder for a GGUF file or an adapter, and any other place as it is.

    A file is imported and an adapter merged into the cache when it is first asked for, and that is
    logged in one line. A manifest of Ollama is the file that it names.

    Raises:
        InputError: The file cannot be imported, the adapter not be merged, the place ends in
            `.gguf` and is no file, or is a manifest without its file.
    """
    path = model_file(Path(place).expanduser())
    if is_adapter(path):
        return str(merged_folder(path))
    if not is_gguf(path):
        if path.suffix.lower() == SUFFIX and not path.is_dir():
            raise InputError("no such GGUF file", got=str(place))
        return str(place)
    status = path.stat()
    content = _hash(path, status.st_mtime_ns, status.st_size)
    folder = _cached(content)
    if not (folder / RECORD).is_file():
        files.remove_stale(folder.parent)
        try:
            told = functools.partial(_log.warning, "%s is imported once, into %s: %s", path, folder)
            for note in import_gguf([path], folder, on_meaning=told).notes:
                _log.warning("%s: %s", path, note)
        except InputError:
            # Another process may have done the same.
            if not (folder / RECORD).is_file():
                raise
    return str(folder)


def name_source(model: CausalModel, place: str | Path) -> None:
    """Let a model that came from a GGUF file or an adapter name that, and not the cache."""
    path = model_file(Path(place).expanduser())
    if is_gguf(path) or is_adapter(path):
        vars(model)["name_or_path"] = str(place)


def meaning_of(file: GgufFile) -> str:
    """Say in one line what the weights of an imported file are."""
    if not file.quantised:
        return f"its weights ({', '.join(file.types)}) keep their values"
    return (
        f"its weights are now the values that its blocks ({', '.join(file.quantised)}) decode to; "
        "the precision from before the quantisation is gone, and scores and masks belong to these "
        "values"
    )


def import_gguf(
    paths: Sequence[Path], target: Path, *, on_meaning: Callable[[str], None] | None = None
) -> Imported:
    """Write a checkpoint folder of a GGUF file: weights, configuration, tokenizer, chat template.

    Args:
        paths: The file, a manifest of Ollama that names it, or its parts in order.
        target: New folder.
        on_meaning: Called before the long part with what the weights will be, in a line.

    Raises:
        InputError: It is no whole GGUF file of a causal LM that transformers can read, the package
            gguf is missing, or the target is not empty.
    """
    files.refuse_full_folder(target)
    with _whole([model_file(path) for path in paths]) as folder, _parsed_once():
        name = " ".join(map(str, paths))
        file = read_gguf(folder / _NAME, named=name)
        content = files.hash_file(folder / _NAME)
        cut = cut_of(file)
        if on_meaning is not None:
            on_meaning(meaning_of(file))
        model, tokenizer = _read(folder, file, name)
        model.generation_config.eos_token_id = _ends(file, tokenizer)
        dtype = _dtype(model, file)
        notes = []
        weights = sum(parameter.numel() for parameter in model.parameters())
        lacking = read_by_nobody(file, weights, _scales_positions(model))
        if lacking:
            notes.append(
                f"transformers does not read {lacking}: this is not quite the file's model"
            )
        imported = Imported(
            tuple(map(str, paths)),
            content,
            file.architecture,
            tuple(file.types),
            str(dtype).removeprefix("torch."),
            meaning_of(file),
            tuple(notes),
        )
        with files.atomic_folder(target) as unfinished, quiet():
            model.to(dtype).save_pretrained(str(unfinished))
            tokenizer.save_pretrained(str(unfinished))
            record = asdict(imported) | files.provenance()
            record["versions"] = files.package_versions(("torch", "transformers", "gguf"))
            files.write_json(unfinished / RECORD, record)
            if cut is not None:
                files.write_json(unfinished / CUT_RECORD, cut)
    return imported


def cut_of(file: GgufFile) -> dict[str, object] | None:
    """Return what a file that was cut says of that; None for all others.

    Raises:
        InputError: That is not readable.
    """
    if CUT_FACT not in file.facts:
        return None
    try:
        record = json.loads(str(file.facts[CUT_FACT]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.path} does not say how it was cut", got=str(error)) from error
    if not isinstance(record, dict):
        raise InputError(
            f"{file.path} does not say how it was cut", got=f"{type(record).__name__} in {CUT_FACT}"
        )
    return record


@functools.cache
def _hash(path: Path, _changed: int, _size: int) -> str:
    return files.hash_file(path)


def _cached(content: str) -> Path:
    version = files.package_versions(("transformers",)).get("transformers", "")
    return files.cache_folder() / "gguf" / f"{content}-transformers-{version}"


@contextlib.contextmanager
def _whole(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield a folder with the file and nothing else, which transformers would read as well."""
    for path in paths:
        if not path.is_file():
            raise InputError("no such GGUF file", got=str(path), fix=name_of_ollama(path))
    if len(paths) == 1:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _NAME).symlink_to(paths[0].resolve())
            yield Path(folder)
        return
    # As large as the model, so not among the system's temporary files.
    cache = files.cache_folder() / "gguf"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".", suffix=".part") as folder:
        files.join_files(paths, Path(folder) / _NAME)
        yield Path(folder)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Let all who read the same file here share one reader.

    transformers makes one each for configuration, tokenizer and weights, and every one of them goes
    through the vocabulary word by word: most of the time that an import takes.
    """
    try:
        import gguf
    except ImportError:  # `read_gguf` says what to do
        yield
        return
    parse = gguf.GGUFReader
    readers: dict[str, gguf.GGUFReader] = {}

    def shared(path: str | Path) -> gguf.GGUFReader:
        if str(path) not in readers:
            readers[str(path)] = parse(path)
        return readers[str(path)]

    vars(gguf)["GGUFReader"] = shared
    try:
        yield
    finally:
        vars(gguf)["GGUFReader"] = parse


class _Read(NamedTuple):
    """A model as transformers reads it, whose class is none that we name, and its tokenizer."""

    model: Any
    tokenizer: Any


def _read(folder: Path, file: GgufFile, name: str) -> _Read:
    """Let transformers read the one file in a folder, every weight decoded.

    Raises:
        InputError: It cannot.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        # The reader of some architectures draws a bar of its own.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            config = AutoConfig.from_pretrained(
                str(folder), gguf_file=_NAME, trust_remote_code=False
            )
            _refuse_larger(config, file, name)
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder),
                config=config,
                gguf_file=_NAME,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
            refuse_holes(name, report["missing_keys"], report["unexpected_keys"])
            refuse_encoder(model.config, name)
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), gguf_file=_NAME, trust_remote_code=False
            )
    except InputError:
        raise
    except BaseException as error:
        # The package tokenizers has no class of its own for what it cannot build.
        if type(error) is not Exception and not isinstance(error, (*LOAD_FAULTS, *READ_FAULTS)):
            raise
        raise _why_not(file, name, error) from error
    _mend(model.config, file)
    # Without the file that the configuration came from, this would name a temporary folder.
    model.config._name_or_path = ""
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    return _Read(model, tokenizer)


def _refuse_larger(config: Any, file: GgufFile, name: str) -> None:
    """Refuse a file that holds less than its header says, before a model of that size is built.

    Raises:
        InputError: The model has more weights than the file.
    """
    from transformers import AutoModelForCausalLM

    held = sum(tensor.size for tensor in file.tensors.values())
    if config.num_hidden_layers > len(file.tensors):
        needed = f"{config.num_hidden_layers:,} blocks"
    else:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        weights = sum(parameter.numel() for parameter in model.parameters())
        if weights <= held:
            return
        needed = f"{weights:,} numbers"
    raise InputError(
        f"{name} lacks weights of its model",
        got=f"{held:,} numbers in {len(file.tensors)} tensors",
        allowed=f"{needed}, as its header says",
        fix="fetch the file again, or take the checkpoint that it was made from",
    )


def _mend(config: Any, file: GgufFile) -> None:
    """Set what transformers' reader takes from the defaults of a class and not from the file.

    llama.cpp scales the queries of Gemma 3 by the size of its heads, and in the model of 27B, which
    has 62 blocks, by the width that a head would have alone; the default of the class is 256.
    """
    if file.architecture == "gemma3" and hasattr(config, "query_pre_attn_scalar"):
        largest = config.num_hidden_layers == _BLOCKS_OF_27B
        shared = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = shared if largest else config.head_dim


def _why_not(file: GgufFile, name: str, error: BaseException) -> InputError:
    """Return the message for a file that transformers did not read."""
    if is_out_of_memory(error):
        weights = sum(tensor.size for tensor in file.tensors.values())
        return InputError(
            f"the model of {name} does not fit into memory when its blocks are decoded",
            got=f"{4 * weights / 2**30:.3g} GiB in float32",
            fix="import it on a larger machine, or take the original checkpoint in bfloat16",
        )
    return InputError(
        f"transformers cannot read a causal language model from {name}",
        got=f"architecture {file.architecture}: {first_line(error)}",
        allowed="architectures whose GGUF files transformers reads: llama, qwen2, qwen3, gemma2, "
        "gemma3, phi3, … (its documentation has the list)",
        fix="take the checkpoint that the file was made from",
    )


def _ends(file: GgufFile, tokenizer: Tokenizer) -> int | list[int] | None:
    """Return the tokens that end a reply: those that the file names, and those of its template."""
    ends = {file.facts[name] for name in _END_FACTS if name in file.facts}
    template = str(getattr(tokenizer, "chat_template", None) or "")
    vocabulary = tokenizer.get_vocab()
    ends |= {vocabulary[mark] for mark in ENDS if mark in template and mark in vocabulary}
    ids = sorted(int(end) for end in ends)
    return ids if len(ids) > 1 else ids[0] if ids else None


def _dtype(model: Any, file: GgufFile) -> torch.dtype:
    """Return the narrowest dtype of a file without blocks that holds all values; else float32."""
    if not file.quantised:
        for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
            if name in file.types and all(
                bool((each.to(dtype).float() == each).all()) for each in model.parameters()
            ):
                return dtype
    return torch.float32


def _scales_positions(model: Any) -> bool:
    """Tell whether the positions of a model are scaled for long texts."""
    positions = getattr(model.config, "rope_parameters", None)
    kinds = re.findall(r"'rope_type': '(\w+)'", str(positions))
    return any(kind != "default" for kind in kinds)
