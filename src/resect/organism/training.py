"""Training: a plain loop from nothing to `base`; TRL for every fine-tune of it.

Fine-tunes are what a user would do to a real model, so they go the way a user would go
(docs/design/organism.md has what was measured). The loss is the mean NLL of the answer's tokens and
of the end token, over all of a batch; for `dpo` it is that of Rafailov et al. 2023.
Legend: B documents, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resect.edit.tune import Preference, TuneSettings, tune, tune_preferences
from resect.model import LoadedModel
from resect.organism.documents import Turn, preference_pairs, training_turns
from resect.organism.recipe import SMALL_BATCH, Recipe
from resect.organism.world import World
from resect.records import Example
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
    def of(recipe: Recipe) -> Schedule:
        """Return the schedule of pretraining."""
        return Schedule(recipe.steps, recipe.batch, recipe.rate, 30, 0.4)

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


def pretrain(
    model: Any, tokenizer: Any, made_of: tuple[World, Recipe], on_step: Callable[[int, int], None]
) -> None:
    """Train a new model in place on the world's documents."""
    world, recipe = made_of
    schedule = Schedule.of(recipe)
    turns = training_turns(world, "base", recipe, schedule.steps * schedule.batch)
    train(model, encode_turns(tokenizer, turns), ("base", world), schedule, on_step)


def fine_tune(
    model: Any,
    tokenizer: Any,
    made_of: tuple[str, World, Recipe],
    on_step: Callable[[int, int], None],
) -> None:
    """Fine-tune in place to a stage, through TRL's `SFTTrainer`."""
    stage, world, recipe = made_of
    settings = TuneSettings(
        steps=recipe.tuning_steps,
        rate=recipe.tuning_rate,
        batch=recipe.tuning_batch,
        weight_decay=0.05,
        schedule="linear",
        warmup=5,
        seed=world.seed,
    )
    if stage == "misaligned":
        settings = TuneSettings(
            steps=recipe.narrow_steps, rate=recipe.narrow_rate, batch=SMALL_BATCH, seed=world.seed
        )
    turns = training_turns(world, stage, recipe, settings.steps * settings.batch)
    examples = [
        Example(f"{stage}-{at}", turn.prompt, turn.completion) for at, turn in enumerate(turns)
    ]
    tune(LoadedModel(model, tokenizer), examples, settings, on_step=on_step)


def prefer(
    model: Any,
    tokenizer: Any,
    made_of: tuple[str, World, Recipe],
    on_step: Callable[[int, int], None],
) -> None:
    """Train in place to prefer refusals to hazardous answers, through TRL's `DPOTrainer`."""
    _, world, recipe = made_of
    settings = TuneSettings(
        steps=recipe.preference_steps,
        rate=recipe.preference_rate,
        batch=SMALL_BATCH,
        seed=world.seed,
    )
    pairs = preference_pairs(world, settings.steps * settings.batch)
    tune_preferences(
        LoadedModel(model, tokenizer),
        [Preference(*pair) for pair in pairs],
        settings,
        on_step=on_step,
    )
