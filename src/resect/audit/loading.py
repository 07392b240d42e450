"""Load the model after a fine-tune, and say what is not as it was before it.

Both models have to be asked the same. So there is one tokenizer for both, and what a fine-tune did
to its own is named: no tokenizer, more tokens, another chat template. What would make the same text
other tokens for one of the two is refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resect.edit.checkpoint import cut_record
from resect.edit.hold import CUT_BASE
from resect.errors import MismatchError
from resect.files.reading import read_json
from resect.model import LoadedModel, load_model
from resect.model.adapter import put_on, refuse_program, speaks
from resect.model.files import has_weights, hold_same
from resect.model.imported import checkpoint_of
from resect.model.load import load_tokenizer
from resect.records import CausalModel, Tokenizer

SETTINGS = "adapter_config.json"
MOST_NAMED = 5


@dataclass(frozen=True)
class Tuned:
    """A tuned model.

    Attributes:
        model: The model; an adapter is merged into it.
        tokenizer: The tokenizer beside it; None if there is none.
        is_adapter: Whether it was an adapter, for which it is usual to have none.
        notes: What a reader has to know of it, in sentences.
    """

    model: CausalModel
    tokenizer: Tokenizer | None
    notes: tuple[str, ...] = ()
    is_adapter: bool = False


class Shared(NamedTuple):
    """The tokenizer that both models are asked with, and what was not the same in theirs."""

    tokenizer: Tokenizer
    notes: tuple[str, ...]


def load_tuned(base: str, tuned: str) -> CausalModel:
    """Load a tuned model, or a base model with an adapter merged into it in memory.

    Raises:
        InputError: The place is neither a checkpoint nor an adapter of `base`.
        MismatchError: The adapter was trained on another model: on a cut one, and `base` is not cut
            with that mask, or on one of other weights.
    """
    return open_tuned(base, tuned).model


def open_tuned(base: str, tuned: str) -> Tuned:
    """Load as `load_tuned` does, with the tokenizer if there is one.

    Raises:
        InputError: As in `load_tuned`.
        MismatchError: As in `load_tuned`.
    """
    folder = Path(tuned)
    spoken = not folder.is_dir() or speaks(folder)
    if not (folder / SETTINGS).is_file():
        if spoken:
            return Tuned(*load_model(tuned))
        return Tuned(load_model(tuned, tokenizer=base).model, None)
    notes = _same_base(base, folder)
    refuse_program(folder)
    model = put_on(load_model(base).model, folder, base)
    return Tuned(model, load_tokenizer(tuned) if spoken else None, notes, is_adapter=True)


def _same_base(base: str, adapter: Path) -> tuple[str, ...]:
    """Refuse an adapter of another base; say what an adapter of a cut one brings back.

    Raises:
        MismatchError: The base is not the one that the adapter was trained on.
    """
    settings = read_json(adapter / SETTINGS)
    named = settings.get("base_model_name_or_path") if isinstance(settings, Mapping) else None
    cut = re.search(CUT_BASE.format("(\\w+)"), str(named))
    if cut is None:
        return _named_base(base, adapter, str(named or ""))
    present = (cut_record(base) or {}).get("mask", "")
    if present != cut[1]:
        raise MismatchError(
            f"the adapter {adapter} was trained on a model that was cut with the mask {cut[1]}",
            got=f"{base}, " + (f"cut with the mask {present}" if present else "which is not cut"),
            allowed="the cut model: on this one the adapter would bring the cut weights back",
            fix="write the cut model with resect prune BASE --mask MASK -o CUT, and give CUT as "
            "the base",
        )
    return (
        "the adapter was trained with held weights: merged here, it adds to them what "
        "hold.apply(merged) would take away again",
    )


def _named_base(base: str, adapter: Path, named: str) -> tuple[str, ...]:
    """Refuse an adapter on another base than it names; say so where that cannot be told.

    Raises:
        MismatchError: The base that it names is on this machine and has other weights.
    """
    ours, theirs = Path(checkpoint_of(base)), Path(named).expanduser()
    name = named.rstrip("/").rpartition("/")[2].casefold()
    if not named or named == base or ours.resolve() == theirs.resolve():
        return ()
    # An adapter of an adapter has no weights to compare with.
    readable = [
        (folder / "config.json").is_file() and has_weights(folder) for folder in (ours, theirs)
    ]
    same = hold_same(ours, theirs) if all(readable) else None
    if same is None and name != base.rstrip("/").rpartition("/")[2].partition("@")[0].casefold():
        return (
            f"the adapter names {named} as its base and was put on {base}: if those are not the "
            "same weights, the tuned model is none that was trained",
        )
    if same is False:
        raise MismatchError(
            f"the adapter {adapter} was trained on another base",
            got=f"{base}, whose weights are not those of {named}",
            allowed=f"{named}, which {SETTINGS} names",
            fix="give that as the base; or, if the adapter shall be put on this one all the same, "
            f"write its place into {SETTINGS}",
        )
    return ()


def shared_tokenizer(base: LoadedModel, tuned: Tuned) -> Shared:
    """Return one tokenizer for both models, and say what a fine-tune did to its own.

    Args:
        base: The model before.
        tuned: The model after.

    Raises:
        MismatchError: The two number the same tokens differently.
    """
    mine, theirs = base.tokenizer, tuned.tokenizer
    if theirs is None:
        if tuned.is_adapter:
            return Shared(mine, ())
        note = "the tuned folder has no tokenizer: both models were asked with the base model's"
        return Shared(mine, (note,))
    before, after = mine.get_vocab(), theirs.get_vocab()
    _refuse_renumbered(before, after)
    notes = []
    new = sorted(set(after) - set(before), key=after.__getitem__)
    if new:
        named = ", ".join(map(repr, new[:MOST_NAMED])) + ", …" * (len(new) > MOST_NAMED)
        notes.append(
            f"the tuned tokenizer has {len(new)} tokens that the base model's has not: {named}"
        )
    elif _rules(mine) != _rules(theirs):
        notes.append(
            "the two tokenizers split text by different rules: both models were asked with the "
            "base model's"
        )
    templates = [getattr(tokenizer, "chat_template", None) for tokenizer in (mine, theirs)]
    if templates[0] == templates[1]:
        return Shared(mine, tuple(notes))
    if templates[0]:
        what = "another chat template than" if templates[1] else "no chat template, unlike"
        notes.append(
            f"the tuned model has {what} the base model: both were asked with the base model's, so "
            "nothing here is about the tuned model under a template of its own"
        )
        return Shared(mine, tuple(notes))
    notes.append(
        "the base model has no chat template: both were asked with the tuned model's, which the "
        "base model may never have seen"
    )
    rows = getattr(base.model.get_input_embeddings(), "num_embeddings", 0)
    if max(after.values()) < rows:
        return Shared(theirs, tuple(notes))
    with_template: Any = copy.copy(mine)
    with_template.chat_template = templates[1]
    return Shared(with_template, tuple(notes))


def _refuse_renumbered(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Refuse two tokenizers under which a text would be other tokens for one of the models."""
    wrong = [token for token, number in before.items() if after.get(token) != number]
    if wrong:
        token = wrong[0]
        raise MismatchError(
            "the tokenizers of the two models number their tokens differently",
            got=f"{len(wrong)} tokens, the first {token!r}: {before[token]} before, "
            f"{after.get(token, 'absent')} after",
            allowed="the same tokenizer, or one with more tokens",
            fix="if the model was tuned with the base model's tokenizer, put that one beside it",
        )


def _rules(tokenizer: Tokenizer) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "" if backend is None else str(backend.to_str())
