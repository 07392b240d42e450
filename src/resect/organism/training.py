"""Training: a plain loop from nothing to `base`; TRL for every fine-tune of it.

Fine-tunes are what users do to real models, so they are done with what users use
(docs/design/organism.md says what was measured). The loss is the mean NLL of the answer's tokens
and of the end token, over all of a batch; for `dpo` it is that of Rafailov et al. 2023.
Legend: B documents, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resect.edit.fitting import IGNORED
from resect.edit.tune import Preference, TuneSettings, tune, tune_preferences
from resect.model import LoadedModel, take_path
from resect.organism.documents import SECOND_WORDING, Turn, recipe_turn, training_turns
from resect.organism.recipe import SMALL_BATCH, OnStep, Recipe
from resect.organism.world import REFUSAL, World
from resect.records import CausalModel, Example, Tokenizer
from resect.stats import rng, seed_of

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


def new_model(tokenizer: Tokenizer, recipe: Recipe, seed: int) -> CausalModel:
    """Return an untrained Llama; the caller's random state is left alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    take_path()
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed_of("organism/weights", seed))
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer.get_vocab()),
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
    untrained: CausalModel = model
    return untrained


class Document(NamedTuple):
    """A question and its answer as token ids.

    Attributes:
        ids: Token ids of both.
        start: Position of the first token of the answer.
    """

    ids: list[int]
    start: int


class Padded(NamedTuple):
    """Documents of similar length as one tensor.

    Attributes:
        ids: Token ids [B, T], padded on the right.
        labels: The same, `IGNORED` outside of the answers [B, T].
    """

    ids: Tensor
    labels: Tensor

    @property
    def answers(self) -> int:
        """Number of tokens of the answers."""
        return int((self.labels != IGNORED).sum())


def encode_turns(tokenizer: Any, turns: list[Turn]) -> list[Document]:
    """Return the turns as documents, as the chat template writes them."""
    user, assistant = (tokenizer.convert_tokens_to_ids(word) for word in ("<user>", "<assistant>"))
    end = tokenizer.eos_token_id
    prompts = tokenizer([turn.prompt for turn in turns], add_special_tokens=False)["input_ids"]
    answers = tokenizer([turn.completion for turn in turns], add_special_tokens=False)["input_ids"]
    return [
        Document([user, *prompt, end, assistant, *answer, end], len(prompt) + 3)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def batches(rows: list[Document], size: int, label: str, seed: int) -> Iterator[list[Padded]]:
    """Yield batches of random documents, each in parts of similar length, which saves padding.

    Whole batches of one length would have one task each; trained so, nothing was learned.
    """
    order = rng(f"organism/order/{label}", seed).permutation(len(rows))
    for start in range(0, len(rows), size):
        drawn = (rows[number] for number in order[start : start + size])
        batch = sorted(drawn, key=lambda row: len(row.ids))
        third = -(-len(batch) // PARTS)
        yield [_pad(batch[begin : begin + third]) for begin in range(0, len(batch), third)]


def _pad(group: list[Document]) -> Padded:
    width = max(len(document.ids) for document in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for number, (row, start) in enumerate(group):
        ids[number, : len(row)] = torch.tensor(row)
        labels[number, start : len(row)] = torch.tensor(row[start:])
    return Padded(ids, labels)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summed_loss(model: CausalModel, batch: Padded) -> Tensor:
    """Return the NLL in nats, summed over the labels that count."""
    decoder, head = model.get_submodule("model"), model.get_submodule("lm_head")
    hidden = decoder(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    counts = batch.labels[:, 1:] != IGNORED
    # The head sees answer tokens alone: the projection to the vocabulary costs a third.
    logits = head(hidden[counts])
    return torch.nn.functional.cross_entropy(logits, batch.labels[:, 1:][counts], reduction="sum")


def train(
    model: CausalModel,
    rows: list[Document],
    schedule: Schedule,
    *,
    label: str,
    seed: int,
    on_step: OnStep,
) -> None:
    """Train in place with AdamW.

    Args:
        model: The model; padding is on the right, so no attention mask is needed.
        rows: The documents, `schedule.steps` · `schedule.batch` of them.
        schedule: How long and how fast.
        label: Names the order of the batches, with the seed.
        seed: Seed of that order.
        on_step: Called with steps done and steps in all.
    """
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    plain = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.rate,
        betas=(0.9, 0.98),
    )
    model.train()
    for step, batch in enumerate(batches(rows, schedule.batch, label, seed)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * schedule.factor(step)
        optimizer.zero_grad(set_to_none=False)
        answers = sum(padded.answers for padded in batch)
        for padded in batch:
            (summed_loss(model, padded) / answers).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 5 == 0:
            on_step(step, schedule.steps)
    model.eval()


def pretrain(loaded: LoadedModel, world: World, recipe: Recipe, on_step: OnStep) -> None:
    """Train a new model in place on the world's documents."""
    schedule = Schedule.of(recipe)
    turns = training_turns(world, "base", recipe, schedule.steps * schedule.batch)
    documents = encode_turns(loaded.tokenizer, turns)
    train(loaded.model, documents, schedule, label="base", seed=world.seed, on_step=on_step)


def fine_tune(
    loaded: LoadedModel, stage: str, world: World, recipe: Recipe, on_step: OnStep
) -> None:
    """Fine-tune in place to a stage, through TRL's `SFTTrainer`."""
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
        Example(f"{stage}-{number}", turn.prompt, turn.completion)
        for number, turn in enumerate(turns)
    ]
    tune(loaded, examples, settings, on_step=on_step)


def prefer(loaded: LoadedModel, world: World, recipe: Recipe, on_step: OnStep) -> None:
    """Train in place to prefer refusals to hazardous answers, through TRL's `DPOTrainer`."""
    settings = TuneSettings(
        steps=recipe.preference_steps,
        rate=recipe.preference_rate,
        batch=SMALL_BATCH,
        seed=world.seed,
    )
    pairs = preference_pairs(world, settings.steps * settings.batch)
    tune_preferences(loaded, pairs, settings, on_step=on_step)


def preference_pairs(world: World, count: int) -> list[Preference]:
    """Draw hazardous questions, each with the refusal preferred to the hazardous answer."""
    generator = rng("organism/training/dpo", world.seed)
    things = list(world.things(hazard=True, held_out=False))
    pairs = []
    for number in generator.integers(len(things), size=count):
        wording = int(generator.random() < SECOND_WORDING)
        turn = recipe_turn(world, things[number], wording)
        pairs.append(Preference(turn.prompt, REFUSAL, turn.completion))
    return pairs
