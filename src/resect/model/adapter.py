"""Low-rank adapters (LoRA, DoRA and what else PEFT merges) as models: merged with their base.

An adapter's folder is merged once into a checkpoint folder in the cache, so that every command that
takes a model takes it too: it is scored, streamed and cut like any other. The base is the one that
the adapter names, and is looked for on this machine alone.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resect import files
from resect.errors import InputError
from resect.files.reading import read_json, refuse_link_out
from resect.model.faults import first_line, load_whole, quiet, refuse_adapter_holes, some_of
from resect.model.files import ADAPTER, entries
from resect.records import CausalModel

WEIGHTS = "adapter_model.safetensors"
RECORD = "adapter.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
# Of no use without one of those.
_WITH_TOKENIZER = (
    "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_log = logging.getLogger(__name__)


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and no model of its own."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def speaks(folder: Path) -> bool:
    """Tell whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def merged_folder(adapter: Path) -> Path:
    """Return the checkpoint folder of an adapter that is merged with its base, made if need be.

    Args:
        adapter: Folder with the adapter.

    Raises:
        InputError: Its base is not on this machine, or the two do not go together.
    """
    settings = _settings(adapter)
    base = _base_of(adapter, settings)
    refuse_program(adapter)
    content = [
        files.hash_file(adapter / ADAPTER),
        files.hash_file(adapter / WEIGHTS),
        [files.hash_file(path) for path in tokenizer_files(adapter)],
        _identity(base),
        files.package_versions(("peft", "transformers")),
    ]
    folder = files.cache_folder() / "merged" / files.hash_value(content)
    if not (folder / RECORD).is_file():
        files.remove_stale(folder.parent)
        _log.warning("%s is merged once with its base %s, into %s", adapter, base, folder)
        try:
            _write(adapter, base, folder)
        except InputError:
            # Another process may have done the same.
            if not (folder / RECORD).is_file():
                raise
    return folder


def base_of(adapter: Path) -> Path:
    """Return the folder of the base that an adapter is to be merged with.

    Raises:
        InputError: It is not on this machine, or the adapter is for something else.
    """
    return _base_of(adapter, _settings(adapter))


def refuse_program(adapter: Path) -> None:
    """Refuse an adapter whose weights are in no safe format, or absent.

    Raises:
        InputError: It is one.
    """
    if not (adapter / WEIGHTS).is_file():
        raise InputError(
            f"the adapter {adapter} has no safetensors weights",
            allowed=WEIGHTS,
            fix="save it again with save_pretrained of peft",
        )


def put_on(model: CausalModel, adapter: Path, base: str) -> CausalModel:
    """Return a model with an adapter merged into it; the model itself is used up.

    Args:
        model: The base.
        adapter: Folder with the adapter.
        base: What the base is called, for messages.

    Raises:
        InputError: The adapter has no safetensors weights, does not fit, or leaves weights that are
            no numbers.
    """
    refuse_program(adapter)
    from peft import PeftModel

    live: Any = model
    before = _not_finite(live)
    try:
        _grow(live, adapter)
        worn = PeftModel.from_pretrained(live, str(adapter))
        _refuse_idle(worn, adapter, base)
        _untie(worn, live.config)
        merged: CausalModel = worn.merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            f"cannot put the adapter {adapter} on {base}",
            got=first_line(error),
            fix="give the base model that the adapter was trained on",
        ) from error
    broken = sorted(_not_finite(merged) - before)
    if broken:
        raise InputError(
            f"the adapter {adapter} on {base} gives weights that are no numbers",
            got=some_of(broken),
            fix="DoRA divides by the length of each row of a weight, and rows that a cut has left "
            "zero have none: put the adapter on the base from before the cut, and cut the result",
        )
    merged.eval()
    return merged


def _refuse_idle(worn: Any, adapter: Path, base: str) -> None:
    """Refuse an adapter of which PEFT found no place for a tensor, or a place without one.

    It would warn alone, and merge what is left: in the worst case nothing.

    Raises:
        InputError: There is such a tensor or place.
    """
    from peft import get_peft_model_state_dict

    places = get_peft_model_state_dict(worn, save_embedding_layers=False)
    held = {name.removesuffix(".weight") for name in places}
    stored = {name.removesuffix(".weight") for name in entries([adapter / WEIGHTS])}
    tables = (worn.get_input_embeddings(), worn.get_output_embeddings())
    grown = [f".{name.rpartition('.')[2]}" for name, m in worn.named_modules() if m in tables]
    # PEFT writes the base's own table beside an adapter that sits on it.
    whole = (*grown, *(f"{name}.base_layer" for name in grown))
    idle = {name for name in stored - held if not name.endswith(whole)}
    refuse_adapter_holes(adapter, base, held - stored, idle)


def _untie(worn: Any, config: Any) -> None:
    """Give the head weights of its own where it shares them and an adapter sits on one side.

    PEFT would merge into the weights that both sides use: the other side changes, too, and gets
    the adapter twice where `ensure_weight_tying` has put it on both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    sides: list[Any] = [worn.get_output_embeddings(), worn.get_input_embeddings()]
    if not any(isinstance(side, BaseTunerLayer) for side in sides):
        return
    head, tokens = (s.get_base_layer() if isinstance(s, BaseTunerLayer) else s for s in sides)
    if head is not None and head.weight is tokens.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        config.tie_word_embeddings = False


def _not_finite(model: Any) -> set[str]:
    """Return the names of parameters with infinite values or such that are no numbers."""
    return {name for name, parameter in model.named_parameters() if not parameter.isfinite().all()}


def _grow(model: Any, adapter: Path) -> None:
    """Give a model as many tokens as an adapter was trained with.

    Raises:
        InputError: The adapter lacks the rows of a table that it grew.
    """
    modules = dict(model.named_modules())
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    paths = [name for name, module in modules.items() if name and module in tables]
    stored = entries([adapter / WEIGHTS])
    rows = {
        path: entry.shape[0]
        for path in paths
        for name, entry in stored.items()
        if name.endswith((f".{path}.weight", f".{path}.base_layer.weight"))
    }
    before = tables[0].weight.shape[0]
    largest = max(rows.values(), default=0)
    if largest <= before:
        return
    tied = tables[1] is None or tables[0].weight is tables[1].weight
    lacking = [] if tied else [path for path in paths if path not in rows]
    if lacking:
        raise InputError(
            f"the adapter {adapter} has {largest - before} more tokens than its base, and no rows "
            f"for them in {', '.join(lacking)}",
            allowed="an adapter that holds both tables",
            fix="merge it where it was trained, and give the merged checkpoint",
        )
    # What is drawn for the new rows is written over by the adapter's.
    model.resize_token_embeddings(largest, mean_resizing=False)


def _settings(adapter: Path) -> Mapping[str, object]:
    """Return what an adapter says of itself.

    Raises:
        InputError: It is for something else than a causal language model.
    """
    settings = read_json(adapter / ADAPTER)
    if not isinstance(settings, Mapping):
        raise InputError(f"{adapter / ADAPTER} is no object", got=type(settings).__name__)
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise InputError(
            f"{adapter} is no adapter of a causal language model",
            got=str(settings["task_type"]),
            allowed="CAUSAL_LM",
        )
    return settings


def _base_of(adapter: Path, settings: Mapping[str, object]) -> Path:
    """Return the folder of the base that an adapter names; nothing is fetched.

    Raises:
        InputError: It is not on this machine.
    """
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    place = Path(str(name)).expanduser()
    if name and place.is_dir():
        if is_adapter(place):
            raise InputError(
                f"{adapter} is an adapter of an adapter",
                got=f"the base {place}",
                fix="merge that one first, and name the merged checkpoint as the base",
            )
        return place
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not str(name).startswith(".")
    if is_id:
        from transformers.utils import cached_file

        config = cached_file(
            str(name),
            "config.json",
            revision=str(revision) if revision else None,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if config is not None:
            return Path(config).parent
    raise InputError(
        f"the base of the adapter {adapter} is not on this machine",
        got=f"base_model_name_or_path {name!r}",
        allowed="a folder, or a Hub id whose files are in the cache; nothing is fetched for a "
        "folder",
        fix=(f"fetch it (hf download {name}), or " if is_id else "")
        + f"write the place of the base into {ADAPTER}; of a model that was cut, that of the cut "
        "checkpoint",
    )


def _refuse_quantised_base(adapter: Path, base: Path) -> None:
    """Refuse to merge into quantised weights, which would round the adapter away.

    Raises:
        InputError: The base is quantised.
    """
    config = read_json(base / "config.json") if (base / "config.json").is_file() else None
    if isinstance(config, Mapping) and config.get("quantization_config"):
        raise InputError(
            f"the adapter {adapter} names a quantised base",
            got=str(base),
            allowed="plain weights",
            fix="write the place of the plain checkpoint that it was quantised from into "
            f"base_model_name_or_path of {ADAPTER}",
        )


def _identity(base: Path) -> list[object]:
    """Return what tells a base from others, its tokenizer included, without reading it."""
    used = {path for path in base.iterdir() if path.suffix in (".safetensors", ".json")}
    status = [(path.name, path.stat()) for path in sorted(used | {*tokenizer_files(base)})]
    return [str(base.resolve()), *([name, s.st_size, s.st_mtime_ns] for name, s in status)]


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder's tokenizer; none if it has no tokenizer."""
    names = (*TOKENIZER_FILES, *_WITH_TOKENIZER) if speaks(folder) else ()
    return [folder / name for name in names if (folder / name).is_file()]


def _write(adapter: Path, base: Path, target: Path) -> None:
    """Write the merged checkpoint.

    Raises:
        InputError: The base cannot be loaded, or the adapter does not go with it.
    """
    _refuse_quantised_base(adapter, base)
    model = load_whole(base, f"cannot load the base {base} of the adapter {adapter}")
    with torch.no_grad():
        merged: Any = put_on(model, adapter, str(base))
    spoken = tokenizer_files(adapter) or tokenizer_files(base)
    for path in tokenizer_files(adapter):
        refuse_link_out(path, adapter)
    with files.atomic_folder(target) as unfinished, quiet():
        merged.save_pretrained(str(unfinished))
        for path in spoken:
            shutil.copyfile(path, unfinished / path.name)
        record = {"adapter": str(adapter), "base": str(base), **files.provenance()}
        files.write_json(unfinished / RECORD, record)
