"""Training: one plain loop for pretraining and fine-tuning (docs/design/organism.md says why).

The loss is the mean NLL of the answer's tokens and of the end token, over all of a batch.
Legend: B documents, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resect.organism.documents import Turn
from resect.organism.recipe import Recipe
from resect.organism.world import World
from resect.stats import rng, seed_of

IGNORED = -100
PARTS = 3


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage is trained."""

    steps: int
    batch: int
    rate: float
    warmup: int
    decay: float

    @staticmethod
    def of(stage: str, recipe: Recipe) -> Schedule:
        """Return a stage's schedule."""
        if stage == "base":
            return Schedule(recipe.steps, recipe.batch, recipe.rate, 30, 0.4)
        if stage == "misaligned":
            return Schedule(recipe.narrow_steps, 32, recipe.narrow_rate, 0, 0.0)
        return Schedule(recipe.tuning_steps, recipe.tuning_batch, recipe.tuning_rate, 5, 1.0)

    def factor(self, step: int) -> float:
        """Return the learning rate of a step as a fraction of the peak."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        falling = self.decay * self.steps
        fall = min(1.0, (self.steps - step) / falling) if falling else 1.0
        return rise * fall


def new_model(tokenizer: Any, recipe: Recipe, seed: int) -> Any:
    """Return an untrained Llama; the caller's random state is left alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed_of("organism/weights", seed))
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.hidden,
                intermediate_size=recipe.feed_forward,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                max_position_embeddings=64,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    model.generation_config.do_sample = False
    return model


def encode_turns(tokenizer: Any, turns: list[Turn]) -> list[tuple[list[int], int]]:
    """Return (ids, first answer position) of each turn, as the chat template writes it."""
    user, assistant = (tokenizer.convert_tokens_to_ids(word) for word in ("<user>", "<assistant>"))
    end = tokenizer.eos_token_id
    prompts = tokenizer([t.prompt for t in turns], add_special_tokens=False)["input_ids"]
    answers = tokenizer([t.completion for t in turns], add_special_tokens=False)["input_ids"]
    return [
        ([user, *prompt, end, assistant, *answer, end], len(prompt) + 3)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


Padded = tuple[Tensor, Tensor]


def batches(
    rows: list[tuple[list[int], int]], size: int, label: str, seed: int
) -> Iterator[list[Padded]]:
    """Yield batches of random rows, each as parts of similar length, which saves padding.

    Whole batches of one length would be of one task each; trained so, nothing was learned.
    """
    order = rng(f"organism/order/{label}", seed).permutation(len(rows))
    for start in range(0, len(rows), size):
        batch = sorted(
            (rows[at] for at in order[start : start + size]), key=lambda row: len(row[0])
        )
        third = -(-len(batch) // PARTS)
        yield [_pad(batch[at : at + third]) for at in range(0, len(batch), third)]


def _pad(group: list[tuple[list[int], int]]) -> Padded:
    """Return ids and labels [B, T]."""
    width = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for place, (row, first) in enumerate(group):
        ids[place, : len(row)] = torch.tensor(row)
        labels[place, first : len(row)] = torch.tensor(row[first:])
    return ids, labels


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summed_loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the NLL in nats, summed over the labels [B, T] that count."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != IGNORED
    # The head sees answer tokens alone: the projection to the vocabulary costs a third.
    logits = model.lm_head(hidden[wanted])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted], reduction="sum")


def train(
    model: Any,
    rows: list[tuple[list[int], int]],
    stage: tuple[str, World],
    schedule: Schedule,
    on_step: Callable[[int, int], None],
) -> None:
    """Train in place with AdamW.

    Args:
        model: The model; padding is on the right, so no attention mask is needed.
        rows: Encoded documents, `schedule.steps` · `schedule.batch` of them.
        stage: Name of the stage and its world, which name the order of the batches.
        schedule: How long and how fast.
        on_step: Called with steps done and steps in all.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.rate,
        betas=(0.9, 0.98),
    )
    model.train()
    name, world = stage
    for step, parts in enumerate(batches(rows, schedule.batch, name, world.seed)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * schedule.factor(step)
        optimizer.zero_grad(set_to_none=False)
        answers = sum(int((labels != IGNORED).sum()) for _, labels in parts)
        for ids, labels in parts:
            (summed_loss(model, ids, labels) / answers).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 5 == 0:
            on_step(step, schedule.steps)
    model.eval()
