"""How likely a variant finds references, and how far it is from the intact model on them.

    NLL = -(1/|T|) Σ_t log q_t(token t)          KL = (1/|T|) Σ_t Σ_w p_t(w) log(p_t(w) / q_t(w))

over the scored tokens T of a reference, with the next-token distributions p of the intact model and
q of the variant; both in nats per token.

What the intact model says is computed once for all variants. Where its logits are a small table
they are kept as they are. Where they are a large one, the states are kept of which its head makes
them, which are smaller by vocabulary over width, and the head makes them again, a few places at a
time, beside those of the variant (`resect.attribution.head`). That asks for a head that the variant
leaves alone: it has to bring the logits of one place again bit for bit. With one that does not,
both tables are made whole, for one reference at a time.

Legend: B references, T tokens, S scored places of all of them, H width of states, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from resect.attribution.head import Head, Places, Top, at_once, opened, pieces
from resect.data.encode import Written
from resect.errors import not_finite
from resect.evaluation.decode import (
    Likelihood,
    batches_for,
    evaluating,
    kl_at,
    likelihood,
    mean_of,
    places_of,
    scored_logits,
)
from resect.evaluation.padding import padded
from resect.records import CausalModel, Encoded

# Bytes that may be kept of what the intact model said.
KEPT_BYTES = 2**28
Form = Literal["logits", "states"]
InForce = Callable[[], contextlib.AbstractContextManager[object]]


class Intact:
    """What all variants of a model have in common, kept from one to the next.

    What the intact model said of references: beyond `KEPT_BYTES` nothing more is kept, and is
    computed again.

    Attributes:
        written: Prompts as its tokenizer has encoded them, for `attack_prompt`.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.written: Written = {}
        self._kept: dict[tuple[object, ...], list[Tensor]] = {}
        self._room = KEPT_BYTES

    def of(
        self,
        batch: Sequence[Encoded],
        compute: Callable[[], list[Tensor]],
        form: Form = "logits",
    ) -> list[Tensor]:
        """Return what `compute` does, for the references of a batch.

        Args:
            batch: The references.
            compute: Returns tensors of the intact model, in the order of the batch.
            form: What these are.
        """
        name = (form, *((example.input_ids, example.first_scored) for example in batch))
        if name in self._kept:
            return self._kept[name]
        tensors = [tensor.clone() for tensor in compute()]
        size = sum(tensor.nbytes for tensor in tensors)
        if size <= self._room:
            self._room -= size
            self._kept[name] = tensors
        return tensors


class Name(NamedTuple):
    """Which reference, read under which of the variants that share a pass."""

    copy: int
    example_id: str


@dataclass(frozen=True)
class Comparison:
    """A model whose variants are compared with it.

    Attributes:
        model: The model; outside of `in_force` it is intact.
        in_force: Opens a block in which the model is the variant, or several of them side by side.
        intact: Where what the intact model says is kept; None keeps nothing.
        copies: How many variants there are in a pass.
    """

    model: CausalModel
    in_force: InForce
    intact: Intact | None = None
    copies: int = 1

    def likelihoods(self, encoded: Sequence[Encoded], batch_size: int) -> dict[Name, Likelihood]:
        """Return NLL and KL of each reference under each variant.

        Args:
            encoded: The references.
            batch_size: Most references of a pass, of each variant.

        Raises:
            InputError: Logits are not finite.
        """
        head = Head()
        rows = [example.input_ids for example in encoded]
        measured: dict[Name, Likelihood] = {}
        for positions in batches_for(self.model, rows, batch_size, self.copies, head):
            batch = [encoded[position] for position in positions]
            places = len(batch) * max(len(example.input_ids) for example in batch) * self.copies
            large = places > at_once(self.model) and not head.whole
            measured |= self._in_pieces(batch, head) if large else self._whole(batch)
        return measured

    def _whole(self, batch: Sequence[Encoded]) -> dict[Name, Likelihood]:
        """Measure one batch from the logits of all its tokens."""
        rows, starts = _rows(batch)

        def ask_intact() -> list[Tensor]:
            return scored_logits(self.model, rows, starts)

        # Both models see the same batch, and of what is not kept only one batch exists at a time.
        before = self._seen(batch, ask_intact, "logits")
        with self.in_force():
            after = scored_logits(self.model, rows * self.copies, starts * self.copies)
        pairs = zip(before * self.copies, after, _words(batch) * self.copies, strict=True)
        return dict(zip(self._names(batch), (likelihood(*pair) for pair in pairs), strict=True))

    def _in_pieces(self, batch: Sequence[Encoded], head: Head) -> dict[Name, Likelihood]:
        """Measure one batch from the logits of a few places at a time."""

        def look() -> list[Tensor]:
            with evaluating(self.model):
                top = opened(self.model, *_inputs(self.model, batch), head)
                return [] if top is None else [top.states, top.witness]

        seen = self._seen(batch, look, "states")
        if seen:
            states, witness = seen
            with self.in_force(), evaluating(self.model):
                batches = list(batch) * self.copies
                top = opened(self.model, *_inputs(self.model, batches), head)
                if top is not None and torch.equal(top.logits(states[:1]), witness):
                    return self._compared(batch, states, top)
        # Its head cannot be run in pieces, or the variant has another one.
        measured: dict[Name, Likelihood] = {}
        for example in batch:
            measured |= self._whole([example])
        return measured

    def _compared(
        self, batch: Sequence[Encoded], states: Tensor, top: Top
    ) -> dict[Name, Likelihood]:
        """Return the likelihoods of a batch; the variant is in force.

        Args:
            batch: The references.
            states: [S, H] what the head makes the intact model's logits of.
            top: What is above the variants' trunk, with states of each of them, [copies · S, H].
        """
        words = torch.tensor([word for of_row in _words(batch) for word in of_row])
        log_probs: list[list[Tensor]] = [[] for _ in range(self.copies)]
        divergences: list[list[Tensor]] = [[] for _ in range(self.copies)]
        for piece in pieces(self.model, len(words)):
            usual = torch.log_softmax(top.logits(states[piece]).float(), dim=-1)  # [s, V]
            if bool(usual.isnan().any()):
                raise not_finite("the logits of a response are")
            targets = words[piece].to(usual.device)[:, None]
            for copy in range(self.copies):
                start = copy * len(words)
                after = top.logits(top.states[start + piece.start : start + piece.stop])
                changed = torch.log_softmax(after.float(), dim=-1)
                del after
                log_probs[copy].append(changed.gather(1, targets).squeeze(1))
                divergences[copy].append(kl_at(usual, changed))
        counts = [example.scored_tokens for example in batch]
        results = [
            Likelihood(mean_of(nlls), float(divergence.mean()))
            for copy in range(self.copies)
            for nlls, divergence in zip(
                torch.split(torch.cat(log_probs[copy]), counts),
                torch.split(torch.cat(divergences[copy]), counts),
                strict=True,
            )
        ]
        return dict(zip(self._names(batch), results, strict=True))

    def _seen(
        self, batch: Sequence[Encoded], compute: Callable[[], list[Tensor]], form: Form
    ) -> list[Tensor]:
        return compute() if self.intact is None else self.intact.of(batch, compute, form)

    def _names(self, batch: Sequence[Encoded]) -> list[Name]:
        return [Name(copy, example.id) for copy in range(self.copies) for example in batch]


class _Rows(NamedTuple):
    """Token ids of references, and for each the position of its first scored token."""

    ids: list[tuple[int, ...]]
    starts: list[int]


def _rows(batch: Sequence[Encoded]) -> _Rows:
    return _Rows(
        [example.input_ids for example in batch], [example.first_scored for example in batch]
    )


def _words(batch: Sequence[Encoded]) -> list[tuple[int, ...]]:
    """Return the scored tokens of each reference."""
    return [example.input_ids[example.first_scored :] for example in batch]


class _Inputs(NamedTuple):
    """What a model is called with for a batch, and where its references are predicted."""

    inputs: Mapping[str, Tensor]
    places: Places


def _inputs(model: CausalModel, batch: Sequence[Encoded]) -> _Inputs:
    rows = _rows(batch)
    ids, mask = padded(rows.ids, 0, left=False)
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    return _Inputs(inputs, places_of(*rows))
