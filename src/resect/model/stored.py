"""A model in another dtype than its files have, and what the files hold all the same.

A mask belongs to a checkpoint, so it takes its values from the files, and its fingerprint is that
of the model as the files would be loaded. Loading bfloat16 or float16 as float32 loses nothing;
where a dtype rounds, that is logged and the values are read again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resect.model.files import DTYPES, Entry, entries, has_weights, read_into, weight_files
from resect.model.places import Layouts, Place
from resect.records import CausalModel, ModelConfig

# Where a model keeps what is said here of it.
NOTE = "_resect_stored"
_log = logging.getLogger(__name__)


class Named(NamedTuple):
    """A parameter, and its name."""

    name: str
    tensor: Tensor


Fingerprint = Callable[[Iterable[Named]], str]


@dataclass(frozen=True)
class Stored:
    """Files in other dtypes than the model that was read from them.

    Attributes:
        files: What the files hold, by name.
        inside: For each parameter where tensors of the files lie in it.
        loaded: Fingerprint of the model as it was loaded.
        fingerprint: That of the same files, loaded in the dtype that they ask for.
    """

    files: Mapping[str, Entry]
    inside: Mapping[str, list[Place]]
    loaded: str
    fingerprint: str

    def values(self, place: Place, index: Tensor, loaded: Tensor) -> Tensor:
        """Return weights [k] as the files hold them.

        Args:
            place: Their tensor.
            index: Flat indices [k] in it.
            loaded: What stands there in memory; this is returned if it is not what was loaded.
        """
        offsets = place.offsets(index)
        values = loaded
        for part in self.inside.get(place.parameter, []):
            entry = self.files[part.name]
            # Hundreds of experts lie in one parameter, and a tensor meets one or two of them.
            if entry.dtype == loaded.dtype or not part.meets(place):
                continue
            within = part.indices(offsets)
            here = within >= 0
            if not here.any():
                continue
            tensor = torch.empty(entry.shape, dtype=entry.dtype)
            read_into(entry, tensor)
            if values.dtype != entry.dtype:
                values = loaded.to(entry.dtype)
            values[here] = tensor.view(-1)[within[here]]
        # Weights that were cut in memory are candidates that no mask takes.
        as_loaded = (values.to(loaded.dtype) == loaded) | (loaded == 0) | loaded.isnan()
        return values if bool(as_loaded.all()) else loaded


def stored_of(model: object) -> Stored | None:
    """Return what is known of a model's files, if they are in other dtypes than the model."""
    note: Stored | None = vars(model).get(NOTE)
    return note


def note_files(
    model: CausalModel, folder: Path, fingerprint: Fingerprint, *, chosen: torch.dtype | None
) -> None:
    """Note the files of a model that was loaded in another dtype than they have.

    Args:
        model: The model, as it was loaded.
        folder: Its checkpoint folder.
        fingerprint: Returns the fingerprint of parameters.
        chosen: The dtype that the user asked for; None for that of the files.
    """
    if not has_weights(folder):
        return
    # Of integers, as quantised weights are, no mask is made.
    files = {n: entry for n, entry in entries(weight_files(folder)).items() if entry.code in DTYPES}
    asked = dtype_asked_for(folder, files)
    parameters = dict(model.named_parameters())
    dtypes = {parameter.dtype for parameter in parameters.values()}
    names = {dtype_name(entry) for entry in files.values()}
    if len(dtypes) == 1 and names == {str(dtype) for dtype in dtypes}:
        return
    inside = places_of_files(dict(model.named_modules())[""], files)
    if any(
        sum(place.size for place in inside.get(name, [])) != parameter.numel()
        for name, parameter in parameters.items()
    ):
        return
    loaded = expected = fingerprint(Named(*item) for item in parameters.items())
    if chosen is not None and chosen != asked:
        name_rounding(files, chosen)
    # A class may leave some parameters in float32 whatever is asked for.
    if chosen not in (None, asked) or len(dtypes) > 1:
        expected = fingerprint(_read(parameters, files, inside, asked))
    vars(model)[NOTE] = Stored(files, inside, loaded, expected)


def dtype_name(entry: Entry) -> str:
    """Return the dtype of a tensor in a file as torch prints it, else the code of the file."""
    return str(DTYPES.get(entry.code, entry.code))


def dtype_asked_for(folder: Path, files: Mapping[str, Entry]) -> torch.dtype:
    """Return the dtype in which a folder is loaded if nobody asks for another.

    The configuration of a loaded model says the dtype of the model, so the file is read again.
    """
    from transformers import AutoConfig

    return dtype_of(AutoConfig.from_pretrained(folder, trust_remote_code=False), files)


def dtype_of(config: ModelConfig, files: Mapping[str, Entry]) -> torch.dtype:
    """Return the dtype that loading would choose: of the configuration, else of the weights."""
    named = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(named, torch.dtype) or not files:
        return named or torch.float32
    # Tables of integers, as of some routers, say nothing of it.
    weights = [entry for entry in files.values() if entry.code in DTYPES]
    return (weights or list(files.values()))[0].dtype


def places_of_files(model: nn.Module, files: Mapping[str, Entry]) -> dict[str, list[Place]]:
    """Return for each parameter where the tensors of some files lie in it, under their names there.

    Args:
        model: The model; one on the meta device will do.
        files: What the files hold, by name.
    """
    layouts = Layouts(model)
    # A file may name a tied parameter as the embeddings where the model has it as the head first.
    by_id: dict[int, str] = {}
    first_names = {
        name: by_id.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    inside: dict[str, dict[int, Place]] = {}
    for name, entry in files.items():
        place = layouts.find(name, entry.shape)
        if place is not None:
            parameter = first_names.get(place.parameter, place.parameter)
            inside.setdefault(parameter, {})[place.offset] = replace(place, parameter=parameter)
    return {name: list(places.values()) for name, places in inside.items()}


def name_rounding(files: Mapping[str, Entry], chosen: torch.dtype) -> None:
    """Log a warning if a dtype does not hold what the files do.

    Args:
        files: What the files hold, by name.
        chosen: The dtype that the model is loaded in.
    """
    lost = sorted(
        {
            dtype_name(entry)
            for entry in files.values()
            if entry.code in DTYPES and torch.promote_types(entry.dtype, chosen) != chosen
        }
    )
    if lost:
        _log.warning(
            "the files hold %s and are rounded to %s: scores and losses are those of the rounded "
            "model; masks keep the values of the files",
            " and ".join(lost).replace("torch.", ""),
            str(chosen).removeprefix("torch."),
        )


def _read(
    parameters: Mapping[str, Tensor],
    files: Mapping[str, Entry],
    inside: Mapping[str, list[Place]],
    dtype: torch.dtype,
) -> Iterator[Named]:
    """Yield parameters from their files, one at a time."""
    for name, parameter in parameters.items():
        tensor = torch.empty(parameter.shape, dtype=dtype)
        for place in inside[name]:
            read_into(files[place.name], place.view(tensor))
        yield Named(name, tensor)
