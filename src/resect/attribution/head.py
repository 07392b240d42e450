"""Logits where they are wanted: the output head of a model, whole or in pieces.

The head is given the states of wanted places alone, because the projection to the vocabulary is
often the largest table of a pass. What a model does to its logits afterwards (soft-capping,
scaling) still works, since it works on any shape.

Where even that table is large, it never exists as a whole:

    the pass   runs the model as ever, but the head is given one place; what it would have been
               given of all wanted places is kept: states [S, H]
    a piece    runs the model again with its trunk standing still, and gives the head some of those
               states; of the model nothing is computed but its head and what follows

So nothing has to be known of what a class of models does around its head. It is tried instead: the
first time, a piece must bring the logits of that one place again bit for bit. Otherwise the head is
run whole, and `Head.whole` says why.

Logits of a piece are those of the whole but for rounding: a product of other sizes may add up in
another order.

Legend: B rows, T tokens, S wanted places, s those of a piece, H width of states, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resect.edit.forward import forward_of
from resect.machine.processes import is_sharded
from resect.records import CausalModel

# Bytes of logits in fp32 that are made at once. A table of no more is made whole, with the bits
# that it always had; a larger one in pieces of at most that: 64 places of 262,144 words, or 341 of
# 49,152. Fewer would have the head's weights read more often than they are multiplied with; a GPU
# wants fewer, larger products.
CPU_PIECE = 2**26
GPU_PIECE = 2**28
# Tokens that show how a head is called.
TRIAL = 4
_log = logging.getLogger(__name__)


@dataclass
class Head:
    """How the output head of a model is reached; found out by the first batch.

    Attributes:
        gathers: Scored rows are gathered before the head; False where a model does not call its
            head as a module on [B, T, *].
        whole: Why it is not run in pieces, as a clause; "" as long as it can be.
        tried: A piece has brought the logits of a pass again.
    """

    gathers: bool = True
    whole: str = ""
    tried: bool = False


class Places(NamedTuple):
    """Where logits are wanted: rows [S] of the batch and positions [S] in them."""

    rows: Tensor
    positions: Tensor


def logits_at(
    model: CausalModel,
    inputs: Mapping[str, Tensor],
    places: Places,
    head: Head,
    cache: object = None,
) -> Tensor:
    """Return logits [S, V] where they are wanted, all at once.

    Args:
        model: The model.
        inputs: What it is called with: `input_ids` [B, T] and `attention_mask`.
        places: Where logits are wanted.
        head: What is known of its head; another model's will not do.
        cache: What the rows go on from, as transformers' `past_key_values`; it is copied, for a
            pass adds to it. None begins with the first token.
    """
    rows, positions = places
    module = model.get_output_embeddings()
    if head.gathers and module is not None:
        seen: list[bool] = []

        def gather(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            fits = args[0].shape[:2] == inputs["input_ids"].shape
            seen.append(fits)
            hidden = _gathered(args[0], places).unsqueeze(0) if fits else args[0]
            return (hidden, *args[1:])

        with _before(module, gather):
            logits = _run(model, inputs, copy.deepcopy(cache))
        if seen == [True] and logits.shape[:2] == (1, len(rows)):
            return logits[0]
        head.gathers = False
    logits = _run(model, inputs, copy.deepcopy(cache))
    return logits[rows.to(logits.device), positions.to(logits.device)]


def log_probs_at(
    model: CausalModel,
    inputs: Mapping[str, Tensor],
    places: Places,
    targets: Tensor,
    head: Head,
    cache: object = None,
) -> Tensor:
    """Return the log-probabilities [S] of tokens, nats in fp32; NaN where logits are not finite.

    Args:
        model: The model.
        inputs: As for `logits_at`.
        places: Where the tokens are predicted.
        targets: [S] the tokens.
        head: As for `logits_at`.
        cache: As for `logits_at`.
    """
    top = opened(model, inputs, places, head, cache) if len(targets) > at_once(model) else None
    if top is not None:
        picked = [
            log_probs(top.logits(top.states[piece]), targets[piece])
            for piece in pieces(model, len(targets))
        ]
    else:
        logits = logits_at(model, inputs, places, head, cache)
        picked = [log_probs(logits[piece], targets[piece]) for piece in pieces(model, len(targets))]
    return torch.cat(picked)


def log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities [s], in fp32, of tokens under logits [s, V]."""
    words = targets.to(logits.device)[:, None]
    return torch.log_softmax(logits.float(), dim=-1).gather(1, words).squeeze(1)


def can_piece(model: CausalModel, row: Sequence[int], copies: int, head: Head) -> bool:
    """Tell whether the head of a model can be run in pieces, which a few tokens show.

    Args:
        model: The model, without gradients.
        row: Token ids, at least one.
        copies: How often the row stands in the pass (`resect.edit.many`).
        head: As for `logits_at`.
    """
    if not head.tried and not head.whole:
        ids = torch.tensor([list(row[:TRIAL])] * copies, device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        opened(model, inputs, Places(*torch.zeros(2, 1, dtype=torch.long)), head)
    return not head.whole


@contextlib.contextmanager
def one_place(model: CausalModel) -> Iterator[None]:
    """Let the head see one place of each row while the block runs, where its logits are not used.

    A head that is not called as a module on [B, T, *] sees all of them.
    """

    def give_one(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, :1] if args[0].dim() == 3 else args[0], *args[1:])

    module = model.get_output_embeddings()
    with contextlib.nullcontext() if module is None else _before(module, give_one):
        yield


def at_once(model: CausalModel) -> int:
    """Return of how many places logits are made at once."""
    piece = GPU_PIECE if model.device.type == "cuda" else CPU_PIECE
    return max(1, piece // (4 * model.config.get_text_config().vocab_size))


def pieces(model: CausalModel, count: int) -> Iterator[slice]:
    """Yield the pieces of so many places, in order."""
    step = at_once(model)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


class Top:
    """What a model does above its trunk, which can be run again on any states.

    Attributes:
        states: [S, H] what the head is given at the wanted places; with their gradient, if the pass
            had one.
        witness: [1, V] logits of the first of them, from the pass itself.
    """

    def __init__(self, states: Tensor, witness: Tensor, logits: Callable[[Tensor], Tensor]):
        """Hold what a pass has left; `logits` returns the logits [s, V] of states [s, H]."""
        self.states = states
        self.witness = witness
        self.logits = logits


def opened(
    model: CausalModel,
    inputs: Mapping[str, Tensor],
    places: Places,
    head: Head,
    cache: object = None,
) -> Top | None:
    """Run a pass up to the head, and return what is above; None if the head has to be run whole.

    The model must stay as it is while the result is used.

    Args:
        model: The model.
        inputs: As for `logits_at`.
        places: Where logits will be wanted, one place at least.
        head: As for `logits_at`; says afterwards why the head is run whole, if it is.
        cache: As for `logits_at`.
    """
    module, trunks = model.get_output_embeddings(), _trunks(model)
    if not head.whole and (why := _why_whole(model, module, trunks)):
        _whole(head, why)
    if module is None or head.whole:
        return None
    outputs: dict[nn.Module, list[object]] = {trunk: [] for trunk in trunks}
    states: list[Tensor] = []

    def give_one(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if args[0].shape[:2] != inputs["input_ids"].shape:
            return args
        states.append(_gathered(args[0], places))
        return (states[0][:1].detach().unsqueeze(0), *args[1:])

    with contextlib.ExitStack() as stack:
        for trunk in trunks:
            hook = trunk.register_forward_hook(
                lambda module, _args, output: outputs[module].append(output)
            )
            stack.callback(hook.remove)
        stack.enter_context(_before(module, give_one))
        logits = _run(model, inputs, copy.deepcopy(cache))
    called = [trunk for trunk in trunks if len(outputs[trunk]) == 1]
    if len(states) != 1 or logits.shape[:2] != (1, 1):
        _whole(head, "its head is not called once, with states of every token")
        return None
    if not called:
        _whole(head, "what comes before its head is not called once, as one module")
        return None
    still = _Still(called[0], outputs[called[0]][0])
    top = Top(states[0], logits[0], _again(model, module, still, inputs, cache))
    if not head.tried:
        with torch.no_grad():
            same = torch.equal(top.logits(top.states[:1].detach()), top.witness)
        if not same:
            _whole(head, "its head does not give the same logits twice")
        head.tried = same
    return top if head.tried else None


class _Still(NamedTuple):
    """A trunk that is not to run again, and what it gave."""

    trunk: nn.Module
    output: object


def _again(
    model: CausalModel,
    module: nn.Module,
    still: _Still,
    inputs: Mapping[str, Tensor],
    cache: object,
) -> Callable[[Tensor], Tensor]:
    """Return what runs a model with its head on states [s, H], and its trunk not at all."""

    def logits(states: Tensor) -> Tensor:
        def give(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (states.unsqueeze(0), *args[1:])

        with _before(module, give), forward_of(still.trunk, lambda *_args, **_named: still.output):
            # Not [0], whose gradient would be another table of the same size.
            return _run(model, inputs, cache).squeeze(0)

    return logits


def _why_whole(model: CausalModel, module: nn.Module | None, trunks: list[nn.Module]) -> str:
    """Return why a head cannot be run in pieces, as far as that is known without a pass."""
    if module is None:
        return "it has no head that is a module"
    if not trunks:
        return "nothing before its head is one module"
    if any(is_sharded(parameter) for parameter in model.parameters()):
        return "other processes hold parts of it"
    if torch.is_grad_enabled():
        inside = {id(parameter) for parameter in trunks[-1].parameters()}
        above = [p for p in model.parameters() if id(p) not in inside]
        if any(parameter.requires_grad for parameter in (*above, *module.parameters())):
            return "its head is to have a gradient"
    return ""


def _whole(head: Head, why: str) -> None:
    """Note why a head is run whole."""
    head.whole = why
    _log.info("the output head is run whole, which takes memory for all logits: %s", why)


def _trunks(model: CausalModel) -> list[nn.Module]:
    """Return the modules around the embeddings in which the head is not, outermost first."""
    modules = dict(model.named_modules())
    embeddings, module = model.get_input_embeddings(), model.get_output_embeddings()
    name = next((name for name, inside in modules.items() if inside is embeddings), "")
    words = name.split(".")
    around = [modules[".".join(words[:depth])] for depth in range(1, len(words))]
    return [trunk for trunk in around if all(inside is not module for inside in trunk.modules())]


def _gathered(hidden: Tensor, places: Places) -> Tensor:
    """Return states [S, H] of hidden states [B, T, H] at some places."""
    return hidden[places.rows.to(hidden.device), places.positions.to(hidden.device)]


@contextlib.contextmanager
def _before(
    module: nn.Module, hook: Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]
) -> Iterator[None]:
    """Let a hook change what a module is given while the block runs."""
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _run(model: CausalModel, inputs: Mapping[str, Tensor], cache: object) -> Tensor:
    """Return the logits of a pass; one from a cache adds to it."""
    if cache is None:
        logits: Tensor = model(**inputs, use_cache=False).logits
    else:
        logits = model(**inputs, use_cache=True, past_key_values=cache).logits
    return logits
