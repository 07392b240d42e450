"""What a fitted judge reads of an intact model: its last hidden layer, mean over the reply.

The model reads prompt and reply as it would have them in a conversation (`chat`, or `raw` for a
tokenizer without a template). Of a long reply the first `MOST_TOKENS` are read, of a long prompt
the first `MOST_OF_PROMPT` characters, and of what is still too long for the model the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resect.errors import MismatchError
from resect.evaluation.judges.fitted_ngrams import MOST_OF_PROMPT
from resect.files.origin import same_print
from resect.records import Encoded, Example, Format

if TYPE_CHECKING:
    from resect.model import LoadedModel

MOST_TOKENS = 512
BATCH = 8


@dataclass(frozen=True)
class States:
    """A linear judge of hidden states; a column for each of the last three, of one length.

    Attributes:
        model: Folder or Hub id of the model.
        fingerprint: Of its weights; with others the states mean something else.
        format: `raw` or `chat`.
        centre: Mean of each dimension over the labelled replies.
        scale: Their standard deviation.
        weights: Weight of (state - centre) / scale.
    """

    model: str
    fingerprint: str
    format: Format
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths, and a scale that divides by nothing."""
        if not len(self.centre) == len(self.scale) == len(self.weights):
            raise ValueError("centre, scale and weights differ in length")
        if any(not width > 0 for width in self.scale):
            raise ValueError("a scale is not above 0")

    def margins(
        self, loaded: LoadedModel, prompts: Sequence[str], texts: Sequence[str]
    ) -> list[float]:
        """Return the weighted sum over the dimensions for each reply."""
        import numpy as np

        states = np.array(hidden_states(loaded, prompts, texts, self.format), dtype=np.float64)
        standard = (states - np.array(self.centre)) / np.array(self.scale)
        margins: list[float] = (standard @ np.array(self.weights)).tolist()
        return margins

    def load(self, place: str = "") -> LoadedModel:
        """Load the model.

        Args:
            place: Where it lies now; "" for where it lay when the judge was fitted.

        Raises:
            InputError: It cannot be loaded.
            MismatchError: It is another model.
        """
        from resect.model import load_model, model_fingerprint

        loaded = load_model(place or self.model)
        fingerprint = model_fingerprint(loaded.model)
        if not same_print(fingerprint, self.fingerprint):
            raise MismatchError(
                "the judge was fitted on the hidden states of another model",
                got=f"{place or self.model} with the fingerprint {fingerprint}",
                allowed=f"{self.model} with the fingerprint {self.fingerprint}",
                fix="say where that model lies: --judge fitted:FILE,MODEL",
            )
        return loaded


def format_of(loaded: LoadedModel) -> Format:
    """Return how the model is talked to."""
    return "chat" if getattr(loaded.tokenizer, "chat_template", None) else "raw"


def hidden_states(
    loaded: LoadedModel, prompts: Sequence[str], texts: Sequence[str], format: Format
) -> list[list[float]]:
    """Return the mean of the last hidden layer over each reply [replies, width], fp32.

    Args:
        loaded: The intact model.
        prompts: What was asked; a reply to nothing is read as one to a blank.
        texts: What was answered; none is empty.
        format: How the model is talked to.
    """
    import torch

    from resect.data.encode import encode
    from resect.evaluation.decode import by_length
    from resect.model import context_of

    model, tokenizer = loaded
    examples = [
        Example(str(at), prompt[:MOST_OF_PROMPT] or " ", text)
        for at, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    encoded = encode(examples, tokenizer, format=format, tokens=MOST_TOKENS)
    encoded = [_within(example, context_of(model)) for example in encoded]
    states: list[list[float]] = [[] for _ in encoded]
    with torch.inference_mode():
        for places in by_length([example.input_ids for example in encoded], BATCH):
            batch = [encoded[place] for place in places]
            width = max(len(example.input_ids) for example in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, example in enumerate(batch):
                ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
                mask[row, : len(example.input_ids)] = 1
            last = model(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                output_hidden_states=True,
            ).hidden_states[-1]
            for row, (place, example) in enumerate(zip(places, batch, strict=True)):
                reply = last[row, example.first_scored : len(example.input_ids)]
                states[place] = reply.float().mean(dim=0).tolist()
    return states


def _within(example: Encoded, context: int | None) -> Encoded:
    """Return an example without the tokens in front that the model's context has no room for."""
    over = 0 if context is None else max(0, len(example.input_ids) - context)
    return Encoded(example.id, example.input_ids[over:], max(1, example.first_scored - over))
