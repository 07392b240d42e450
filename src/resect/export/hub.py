"""Masks by path or Hub id: load one, load a model with one in force, push one with its card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from resect import files
from resect.edit.live import apply
from resect.errors import InputError
from resect.export.card import mask_card
from resect.export.gate import Gate, gate_of
from resect.files.reading import refuse_link_out
from resect.model import LoadedModel, load_model
from resect.weights.mask import Mask

# The file that a mask repository holds.
FILE = "resect.mask.safetensors"
SUFFIX = ".mask.safetensors"


def load_mask(place: str | Path) -> Mask:
    """Load a mask from a file, a folder that holds one, or the Hub.

    Args:
        place: A file, a folder, or `id[@revision]` of a model repository that `push_mask` made.

    Raises:
        InputError: There is no mask there, or more than one.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return Mask.load(path)
    if path.is_dir():
        masks = sorted(path.glob(f"*{SUFFIX}"))
        if len(masks) != 1:
            raise InputError(
                f"{path} holds {len(masks)} masks",
                got=", ".join(file.name for file in masks[:5]) or "none",
                allowed=f"one file *{SUFFIX}",
                fix="name the file itself",
            )
        refuse_link_out(masks[0], path)
        return Mask.load(masks[0])
    repository, _, revision = str(place).partition("@")
    if not _is_id(repository) or str(place).endswith(".safetensors"):
        raise InputError("no such mask", got=str(place), allowed="a file, a folder, or a Hub id")
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(repository, FILE, revision=revision or None)
    except _hub_errors() as error:
        raise InputError(
            f"cannot get {FILE} from {place}",
            got=_first_line(error),
            fix="check the id, the revision and the connection, or give a local file",
        ) from error
    return Mask.load(file)


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return what the Hub's client raises; without a connection that is its HTTP library's error.

    Which library that is changes between its versions; its own error is a subclass.
    """
    from huggingface_hub.errors import HfHubHTTPError

    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (*bases, OSError, ValueError)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_id(text: str) -> bool:
    owner, slash, name = text.partition("/")
    return bool(slash and owner and name) and "/" not in name and not text.startswith((".", "~"))


def from_pretrained(
    model: str | Path,
    mask: Mask | str | Path,
    *,
    alpha: float = 0.0,
    dtype: str | None = None,
    device: str | None = None,
) -> LoadedModel:
    """Load a model with a mask in force, as PEFT loads one with an adapter.

    Args:
        model: A checkpoint folder, or a Hub id, `id@revision` for a fixed revision.
        mask: A mask, or a place that `load_mask` takes.
        alpha: Factor of the masked weights; 0 removes.
        dtype: Dtype of the weights; None takes that of the mask's values.
        device: Where to, see `load_model`.

    Returns:
        The cut model and its tokenizer.

    Raises:
        InputError: Model or mask cannot be loaded.
        MismatchError: The mask belongs to another model.
    """
    cut = mask if isinstance(mask, Mask) else load_mask(mask)
    if dtype is None:
        of_values = next((tensor.value.dtype for tensor in cut.tensors.values()), None)
        dtype = None if of_values is None else str(of_values).removeprefix("torch.")
    loaded = load_model(model, dtype=dtype, device=device)
    apply(loaded.model, cut, alpha=alpha)
    return loaded


def push_mask(
    mask: Mask | str | Path,
    repository: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    run: Path | Gate | None = None,
) -> str:
    """Put a mask and its card into a model repository on the Hub; nothing else is sent.

    Args:
        mask: A mask, or a place that `load_mask` takes.
        repository: `owner/name`; made if it is not there.
        private: Whether a new repository is private.
        revision: Branch; None for the main one.
        token: Of the Hub; None for the one that `hf auth login` stored.
        run: Folder of a run that measured this mask, whose claims the card repeats; or what
            `pass_gate` returned of it.

    Returns:
        The address of the commit.

    Raises:
        InputError: The mask is empty, the name is no id, the Hub refused, or what the
            configuration of the run requires does not hold.
        MismatchError: The run is not one of this mask.
    """
    pushed = mask if isinstance(mask, Mask) else load_mask(mask)
    if not pushed.count:
        raise InputError("the mask removes nothing", fix="push a mask with at least one weight")
    if not _is_id(repository):
        raise InputError("no repository id", got=repository, allowed="owner/name")
    gate = gate_of(pushed, run)
    card = mask_card(pushed, repository, FILE, run=gate.run, gate=gate)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        pushed.save(Path(folder) / FILE)
        files.write_text(Path(folder) / "README.md", card)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message=f"Add a mask of {pushed.count} weights ({pushed.hash})",
            )
        except _hub_errors() as error:
            raise InputError(
                f"the Hub did not take the mask for {repository}",
                got=_first_line(error),
                fix="log in with `hf auth login` and check that you may write there",
            ) from error
    return str(commit)
