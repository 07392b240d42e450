"""The suffix attack: words behind the question, sought by gradients on the model that is attacked.

The greedy coordinate gradient of Zou et al. 2023 (arXiv 2307.15043). One suffix s of n tokens is
sought for several calibration prompts at once and then put behind every question. It lowers

    loss(s) = mean over the prompts of the mean NLL of the answer's first tokens behind prompt + s

by swaps of single tokens. Each step

1. takes the gradient g [n, D] of the loss by the embeddings of the suffix. Token v in place i
   changes the loss by g_i · (e_v - e_now) to first order, which is the source's gradient by one-hot
   vectors without a table of them;
2. draws `candidates` swaps among the `top` most promising tokens of each place;
3. takes the swap after which the loss is lowest, if that is lower than before. (The source takes it
   even if the loss rises.)

A suffix is text. Tokens that are read again as others than were written are no attack, so such a
swap is dropped: first by the suffix alone, then by whole prompts. Special and added tokens are no
candidates, nor are those that no one could type.

Legend: n tokens of the suffix, D width of embeddings, W words that may stand in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from resect import stats
from resect.attribution.head import Head, Places, log_probs_at
from resect.data.chat import text_ids
from resect.data.encode import decode
from resect.errors import InputError
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.patch import unchanged
from resect.evaluation.openings import nlls_behind
from resect.files.origin import hash_value
from resect.model import LoadedModel, context_of
from resect.records import CausalModel, Tokenizer

NAME = "gcg"
# The set whose prompts it is sought on: prompts with the answers wanted.
ROLE = "target"
# Suffixes, and tokens of a place, that are drawn before there is none to begin with.
TRIES = 64
# Words whose embeddings are looked at in one product.
WORDS = 8192
# Stands before a suffix while it is read alone: some tokenizers treat a first word apart.
LEAD = "0"


@dataclass(frozen=True)
class Gcg:
    """How long a suffix is sought.

    Attributes:
        steps: Swaps that are made at most.
        length: Tokens of the suffix.
        candidates: Swaps that are tried in each step.
        top: Tokens that the gradient proposes for each place.
        prompts: Calibration prompts that it is sought on, drawn by `seed`.
        tokens: Tokens of the answers wanted that it is to bring out.
        seed: Seed of the prompts, of the first suffix and of the candidates.
    """

    steps: int = 50
    length: int = 10
    candidates: int = 64
    top: int = 256
    prompts: int = 4
    tokens: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings with which nothing would be sought.

        Raises:
            InputError: A setting is out of range.
        """
        for name, value in asdict(self).items():
            lowest = 0 if name == "seed" else 1
            if value < lowest:
                raise InputError(
                    f"{name} of {NAME} is out of range", got=str(value), allowed=f"{lowest} or more"
                )

    @property
    def work(self) -> Work:
        """What it costs: a pass forward is a third of one that goes back too."""
        return Work(scored=self.steps * self.prompts * (1 + -(-self.candidates // 3)))


class Lesson(NamedTuple):
    """What a suffix is to bring out of one prompt.

    Attributes:
        prompt: From a suffix to the token ids of the prompt with it.
        answer: Token ids with which the answer should begin.
    """

    prompt: Callable[[str], tuple[int, ...]]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Suffix:
    """What was found.

    Attributes:
        text: What stands right behind a question, with a blank before it; "" for nothing.
        losses: The loss at first and after each step, nats a token; it never rises.
        dropped: Swaps that were dropped because they are read again as other tokens.
    """

    text: str = ""
    losses: tuple[float, ...] = ()
    dropped: int = 0

    @property
    def facts(self) -> dict[str, object]:
        """What is written of it: not its words, but a hash by which suffixes are told apart."""
        return {
            "suffix": hash_value(self.text),
            "loss_before": self.losses[0],
            "loss_after": self.losses[-1],
            "steps": len(self.losses) - 1,
            "dropped": self.dropped,
        }


class Around(NamedTuple):
    """A prompt around the suffix, and the beginning of the answer wanted."""

    before: tuple[int, ...]
    behind: tuple[int, ...]
    answer: tuple[int, ...]

    def row(self, suffix: Sequence[int]) -> tuple[int, ...]:
        """Return prompt and answer as one row."""
        return (*self.before, *suffix, *self.behind, *self.answer)


class Swap(NamedTuple):
    """A token that is put into one position of the suffix."""

    position: int
    token: int

    def made(self, suffix: tuple[int, ...]) -> tuple[int, ...]:
        """Return the suffix with it."""
        return (*suffix[: self.position], self.token, *suffix[self.position + 1 :])


def find_suffix(
    loaded: LoadedModel,
    settings: Gcg,
    lessons: Sequence[Lesson],
    *,
    label: str,
    batch_size: int = 16,
) -> Suffix:
    """Seek the suffix that opens the answers wanted; the model is as before when this returns.

    Args:
        loaded: A Hugging Face causal LM that is wholly in memory, as it is to be attacked, and its
            tokenizer.
        settings: How long.
        lessons: The prompts, one at least.
        label: Names the draws beside the seed.
        batch_size: Candidates of a pass.

    Raises:
        InputError: No suffix of this length stays what it is as text, or a prompt is too long with
            it.
    """
    model, tokenizer = loaded
    words = writable(tokenizer, model.config.get_text_config().vocab_size)
    draw = stats.rng(f"attack/{NAME}/{label}", settings.seed)
    suffix, prompts = first_suffix(tokenizer, words, settings, lessons, draw)
    _refuse_long(model, [prompt.row(suffix) for prompt in prompts], settings)
    search = _Search(loaded, lessons, prompts, batch_size)
    state = _Standing(suffix, losses_of(model, prompts, [suffix], batch_size)[0])
    losses = [state.loss]
    every = settings.length * (len(words) - 1)
    with unchanged(model):
        cast("nn.Module", model).requires_grad_(False).eval()
        for _ in range(settings.steps):
            swaps = promising_swaps(model, prompts, state.suffix, words, settings.top)
            drawn = _drawn(swaps, settings.candidates, draw)
            before, state = state, search.step(state, drawn)
            losses.append(state.loss)
            if state.suffix == before.suffix and len(drawn) == every:
                break  # the next step would try the same
    return Suffix(as_text(tokenizer, state.suffix), tuple(losses), state.dropped)


class _Standing(NamedTuple):
    """How a search stands: the best suffix, its loss, and how many swaps were dropped so far."""

    suffix: tuple[int, ...]
    loss: float
    dropped: int = 0


class _Search(NamedTuple):
    """What a search does not change."""

    loaded: LoadedModel
    lessons: Sequence[Lesson]
    prompts: Sequence[Around]
    batch_size: int

    def step(self, state: _Standing, swaps: Sequence[Swap]) -> _Standing:
        """Return how the search stands after the best of these swaps, if it lowers the loss."""
        model, tokenizer = self.loaded
        tried = [swap.made(state.suffix) for swap in swaps]
        alive = [ids for ids in tried if _survives(tokenizer, ids)]
        dropped = state.dropped + len(tried) - len(alive)
        losses = losses_of(model, self.prompts, alive, self.batch_size)
        for loss, suffix in sorted(zip(losses, alive, strict=True)):
            if loss >= state.loss:
                break
            if _stands(tokenizer, suffix, self.lessons, self.prompts):
                return _Standing(suffix, loss, dropped)
            dropped += 1
        return state._replace(dropped=dropped)


def writable(tokenizer: Tokenizer, size: int) -> list[int]:
    """Return the tokens that may stand in a suffix, below `size`: all that can be typed.

    Special tokens and those that were added to the vocabulary are left out, for they steer a
    conversation and are no words of a question.
    """
    apart = {int(token) for token in getattr(tokenizer, "all_special_ids", ())}
    apart |= {int(token) for token in getattr(tokenizer, "added_tokens_decoder", ())}
    chosen = []
    for token in sorted(set(tokenizer.get_vocab().values()) - apart):
        text = tokenizer.decode([token])
        if token < size and text.strip() and text.isprintable() and "\ufffd" not in text:
            chosen.append(token)
    return chosen


def as_text(tokenizer: Tokenizer, suffix: Sequence[int]) -> str:
    """Return what is put right behind a question: the words of a suffix, after a blank."""
    text = decode(tokenizer, suffix)
    return text if text[:1].isspace() else f" {text}"


def _survives(tokenizer: Tokenizer, suffix: Sequence[int]) -> bool:
    """Tell whether a suffix is read as the tokens that wrote it, behind any word."""
    again = text_ids(tokenizer, LEAD + as_text(tokenizer, suffix))
    return again[-len(suffix) :] == list(suffix)


def _stands(
    tokenizer: Tokenizer,
    suffix: tuple[int, ...],
    lessons: Sequence[Lesson],
    prompts: Sequence[Around],
) -> bool:
    """Tell whether a suffix is read as the tokens that wrote it in every whole prompt."""
    text = as_text(tokenizer, suffix)
    return all(
        lesson.prompt(text) == (*prompt.before, *suffix, *prompt.behind)
        for lesson, prompt in zip(lessons, prompts, strict=True)
    )


class Begun(NamedTuple):
    """A suffix to begin with, and the prompts around it."""

    suffix: tuple[int, ...]
    prompts: list[Around]


def first_suffix(
    tokenizer: Tokenizer,
    words: Sequence[int],
    settings: Gcg,
    lessons: Sequence[Lesson],
    draw: np.random.Generator,
) -> Begun:
    """Draw a suffix to begin with, and find where it stands in each prompt."""
    for _ in range(TRIES):
        suffix: tuple[int, ...] = ()
        for _position in range(settings.length):
            drawn = map(int, draw.choice(words, size=TRIES)) if words else iter(())
            suffix += tuple(
                next(([word] for word in drawn if _survives(tokenizer, (*suffix, word))), [])
            )
        prompts = list(_around(tokenizer, suffix, lessons))
        if len(suffix) == settings.length and len(prompts) == len(lessons):
            return Begun(suffix, prompts)
    raise InputError(
        f"no suffix of {settings.length} tokens was found that is read as it was written",
        got=f"{TRIES} random ones, of {len(words)} tokens",
        fix=f"another length ({NAME}:length=N), or --format raw",
    )


def _around(
    tokenizer: Tokenizer, suffix: tuple[int, ...], lessons: Sequence[Lesson]
) -> Iterator[Around]:
    """Yield the prompts in which a suffix is read as it was written, in one place alone."""
    text, length = as_text(tokenizer, suffix), len(suffix)
    for lesson in lessons:
        ids = lesson.prompt(text)
        starts = [n for n in range(len(ids) - length + 1) if ids[n : n + length] == suffix]
        if suffix and len(starts) == 1:
            yield Around(ids[: starts[0]], ids[starts[0] + length :], lesson.answer)


def _refuse_long(model: CausalModel, rows: Sequence[tuple[int, ...]], settings: Gcg) -> None:
    context, longest = context_of(model), max(map(len, rows))
    if context is not None and longest > context:
        raise InputError(
            "a calibration prompt is longer than the model's context with the suffix and the "
            "answer's first tokens",
            got=f"{longest} tokens, {settings.length} of them of the suffix",
            allowed=f"{context} tokens",
            fix=f"a shorter suffix ({NAME}:length=N), or shorter examples",
        )


def losses_of(
    model: CausalModel,
    prompts: Sequence[Around],
    suffixes: Sequence[tuple[int, ...]],
    batch_size: int,
) -> list[float]:
    """Return the loss of each suffix, nats a token.

    What the rows of a prompt open with goes through the model once, and `batch_size` suffixes go
    side by side.

    Raises:
        InputError: Logits are not finite.
    """
    sums = [0.0] * len(suffixes)
    for prompt in prompts:
        rows = [prompt.row(suffix) for suffix in suffixes]
        starts = [len(row) - len(prompt.answer) for row in rows]
        for number, nll in enumerate(nlls_behind(model, rows, starts, batch_size)):
            sums[number] += cast("float", nll)  # every row has tokens that are wanted
    return [total / len(prompts) for total in sums]


def promising_swaps(
    model: CausalModel,
    prompts: Sequence[Around],
    suffix: tuple[int, ...],
    words: Sequence[int],
    top: int,
) -> list[Swap]:
    """Return the swaps that promise most by the gradient, the `top` of each place, best first."""
    changes = changes_by_gradient(model, prompts, suffix, words)
    columns = {word: number for number, word in enumerate(words)}
    for position, token in enumerate(suffix):
        changes[position, columns[token]] = torch.inf
    best = changes.topk(min(top, len(words)), dim=1, largest=False).indices.tolist()
    swaps = [Swap(row, words[column]) for row, chosen in enumerate(best) for column in chosen]
    return [swap for swap in swaps if suffix[swap.position] != swap.token]


def changes_by_gradient(
    model: CausalModel,
    prompts: Sequence[Around],
    suffix: tuple[int, ...],
    words: Sequence[int],
) -> Tensor:
    """Return by how much each word in each place changes the loss, to first order.

    Embeddings come from the module itself, so that one that scales them is no exception. Where
    something else of a model reads token ids too, its part is not in the gradient; the losses of
    candidates have all of it.

    Args:
        model: The model, whose weights want no gradient.
        prompts: The prompts.
        suffix: The suffix as it is.
        words: W tokens.

    Returns:
        [n, W] in fp32 on the CPU, nats a token.
    """
    module = model.get_input_embeddings()
    gradient = torch.stack([_gradient(model, module, prompt, suffix) for prompt in prompts]).mean(0)
    now = torch.tensor(suffix, device=model.device)
    with torch.no_grad():
        usual = (gradient * _embedded(module, now)).sum(dim=1, keepdim=True)  # [n, 1]
        pieces = torch.split(torch.tensor(list(words), device=model.device), WORDS)
        changes = torch.cat([gradient @ _embedded(module, piece).T for piece in pieces], dim=1)
        return (changes - usual).cpu()


def _embedded(module: nn.Module, tokens: Tensor) -> Tensor:
    """Return the embeddings [t, D] of tokens [t], in fp32."""
    embeddings: Tensor = module(tokens[None])
    return embeddings[0].float()


def _gradient(
    model: CausalModel, module: nn.Module, prompt: Around, suffix: tuple[int, ...]
) -> Tensor:
    """Return the gradient [n, D] of one prompt's loss by the suffix' embeddings, in fp32."""
    row, leaves = prompt.row(suffix), list[Tensor]()

    def cut_off(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    ids = torch.tensor([row], device=model.device)
    positions = torch.arange(len(row) - len(prompt.answer), len(row)) - 1
    hook = module.register_forward_hook(cut_off)
    try:
        with torch.enable_grad():
            log_probs = log_probs_at(
                model,
                {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                Places(torch.zeros_like(positions), positions),
                torch.tensor(prompt.answer),
                Head(),
            )
            # A pass may be made again (`logits_at`); the first one's leaf is in no graph then.
            gradients = torch.autograd.grad(-log_probs.mean(), leaves, allow_unused=True)
    finally:
        hook.remove()
    start = len(prompt.before)
    used = [leaf[0, start : start + len(suffix)].float() for leaf in gradients if leaf is not None]
    return torch.stack(used).sum(dim=0)


def _drawn(swaps: Sequence[Swap], count: int, draw: np.random.Generator) -> list[Swap]:
    """Return so many of the swaps, each at most once, in their order; all where there are fewer."""
    if len(swaps) <= count:
        return list(swaps)
    return [swaps[n] for n in sorted(draw.choice(len(swaps), size=count, replace=False).tolist())]
