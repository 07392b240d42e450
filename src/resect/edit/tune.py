"""Fine-tune a model in memory, through TRL and PEFT, and put every bit back afterwards.

Studies and attacks train a model that was cut, or that is about to be. Nothing here writes a tuned
model to disk; callers keep it for the length of a `with` block.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from resect.data.template import bounded_template
from resect.edit.fitting import fitting, fitting_pairs
from resect.errors import InputError
from resect.model import LoadedModel, context_of, find_prunable
from resect.model.blocks import STATE_SPACE
from resect.records import CausalModel, Example, Format
from resect.stats import seed_of

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from trl import SFTTrainer

# Modules of these names PEFT takes for the experts of earlier versions of transformers, also where
# they are shared experts or dense layers. As parameters they are what they are called.
REMAPPED = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
OnStep = Callable[[int, int], None]


class Preference(NamedTuple):
    """A prompt, the answer that is to be preferred, and the other."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class TuneSettings:
    """How a model is fine-tuned.

    Attributes:
        steps: Optimizer steps; 0 with `epochs` set trains for epochs instead.
        epochs: Passes over the examples, where `steps` is 0.
        rate: Peak learning rate.
        batch: Examples a step.
        method: All weights (`full`), or a LoRA adapter that is merged at the end (`lora`).
        rank: Rank of the adapter.
        alpha: Scale of the adapter, times 1/rank.
        weight_decay: Of AdamW.
        schedule: Learning rate over the steps.
        warmup: Steps of linear warm-up.
        seed: Order of the examples and initial adapter.
    """

    steps: int = 0
    epochs: float = 1.0
    rate: float = 1e-5
    batch: int = 16
    method: Literal["full", "lora"] = "full"
    rank: int = 32
    alpha: int = 64
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear"] = "constant"
    warmup: int = 0
    seed: int = 0


def rows_for_trl(examples: Sequence[Example], format: Format) -> list[dict[str, object]]:
    """Return examples in TRL's form: prompt and completion, as messages for `chat`."""
    rows: list[dict[str, object]] = []
    for example in examples:
        turns = example.prompt
        if format == "raw":
            text = turns if isinstance(turns, str) else "\n".join(content for _, content in turns)
            rows.append({"prompt": f"{text}\n", "completion": example.completion})
            continue
        messages = (("user", turns),) if isinstance(turns, str) else turns
        prompt = [_message(role, content) for role, content in messages]
        rows.append({"prompt": prompt, "completion": [_message("assistant", example.completion)]})
    return rows


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def tune(
    loaded: LoadedModel,
    examples: Sequence[Example],
    settings: TuneSettings,
    *,
    format: Format = "chat",
    callbacks: Sequence[TrainerCallback] = (),
    on_step: OnStep | None = None,
) -> None:
    """Fine-tune in place on the completions of the examples (mean NLL of completion and end token).

    A completion that does not fit into the model's context is trained on as far as it goes, and one
    line says how many those are. Scoring refuses them, since the loss of a part is another number;
    here what is left still teaches what it did, and only the end of the answer is not taught.

    Args:
        loaded: A Hugging Face causal LM, left in evaluation mode, and its tokenizer.
        examples: What to train on.
        settings: How.
        format: `raw` or `chat`.
        callbacks: Trainer callbacks, for instance `resect.HoldMask`.
        on_step: Called with steps done and steps in all.

    Raises:
        InputError: There is no example, or a prompt leaves nothing of its completion.
    """
    if not examples:
        raise InputError("there is no example to train on")
    rows = rows_for_trl(examples, format)
    lora = None
    if settings.method == "lora":
        lora = adapter(loaded.model, settings.rank, settings.alpha)
    with _left_as_before(loaded.model), quiet(), tempfile.TemporaryDirectory() as folder:
        with bounded_template("an example to train on", alone=False):
            trainer = supervised(
                loaded,
                rows,
                _arguments(folder, settings) | {"completion_only_loss": True},
                adapter=lora,
                limit=context_of(loaded.model),
                callbacks=[*callbacks, *_reporting(on_step)],
            )
        trainer.train()
        if lora is not None:
            # The adapter sits in the modules of `model`; merging puts plain layers back there.
            trainer.model.merge_and_unload()


def tune_preferences(
    loaded: LoadedModel,
    pairs: Sequence[Preference],
    settings: TuneSettings,
    *,
    beta: float = 0.1,
    on_step: OnStep | None = None,
) -> None:
    """Train in place by direct preference optimisation (Rafailov et al. 2023), in chat format.

    Answers that do not fit into the model's context are compared as far as they go, and one line
    says of how many pairs.

    Args:
        loaded: A Hugging Face causal LM, a copy of which is the reference, and its tokenizer.
        pairs: What is preferred to what.
        settings: How; `method` must be `full`.
        beta: Weight of the divergence from the reference.
        on_step: Called with steps done and steps in all.

    Raises:
        InputError: The answers of a pair do not differ within the context.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt": [_message("user", pair.prompt)],
            "chosen": [_message("assistant", pair.chosen)],
            "rejected": [_message("assistant", pair.rejected)],
        }
        for pair in pairs
    ]
    model, tokenizer = loaded
    with _left_as_before(model), quiet(), tempfile.TemporaryDirectory() as folder:
        # With a limit TRL shortens answers and drops pairs, both without a word.
        options = {**_silent(model), **_arguments(folder, settings), "max_length": None}
        with bounded_template("a pair to train on", alone=False):
            trainer = DPOTrainer(
                model=model,
                ref_model=copy.deepcopy(model),
                args=DPOConfig(**options, beta=beta),
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                callbacks=_reporting(on_step),
            )
        limit = context_of(model)
        if limit is not None:
            trainer.train_dataset = fitting_pairs(trainer.train_dataset, limit)
        trainer.train()


def _reporting(on_step: OnStep | None) -> list[TrainerCallback]:
    """Return the callback through which a trainer reports its steps, if anyone listens."""
    if on_step is None:
        return []
    report = on_step
    from transformers import TrainerCallback

    class Report(TrainerCallback):  # type: ignore[misc]
        """Say how many steps are done."""

        def on_step_end(
            self,
            _args: TrainingArguments,
            state: TrainerState,
            _control: TrainerControl,
            **_more: object,
        ) -> None:
            """Report one step."""
            report(state.global_step, state.max_steps)

    return [Report()]


def supervised(
    loaded: LoadedModel,
    rows: Sequence[Mapping[str, object]],
    options: Mapping[str, object],
    *,
    adapter: LoraConfig | None = None,
    limit: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """Return TRL's `SFTTrainer`, told to keep nothing and to say nothing; call it within `quiet`.

    Args:
        loaded: A Hugging Face causal LM and its tokenizer.
        rows: What to train on, in a form of TRL's.
        options: Arguments of `SFTConfig`; they win over the silent ones.
        adapter: A PEFT configuration, or None to train all weights.
        limit: Most tokens of a row; what is behind them is not trained on, and that is logged. None
            for no limit.
        callbacks: Trainer callbacks.

    Raises:
        InputError: A prompt is so long that nothing is left to train on.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    _name_backbone(loaded.model)
    # With a limit TRL shortens rows and drops others, both without a word.
    options = {**_silent(loaded.model), **options, "max_length": None}
    trainer = SFTTrainer(
        model=loaded.model,
        args=SFTConfig(**options),
        train_dataset=Dataset.from_list([*rows]),
        processing_class=loaded.tokenizer,
        peft_config=adapter,
        callbacks=[*callbacks],
    )
    if limit is not None:
        trainer.train_dataset = fitting(trainer.train_dataset, limit)
    return trainer


def _name_backbone(model: CausalModel) -> None:
    """Let a class that names a backbone it does not have say which one it has, for TRL asks.

    The text halves of Llama 4 and Mllama keep the prefix that they have in the whole model.
    """
    module = dict(model.named_modules())[""]
    backbones = [name for name, child in module.named_children() if hasattr(child, "config")]
    if getattr(model, "base_model", None) is model and backbones:
        vars(model)[_PREFIX] = backbones[0]


_PREFIX = "base_model_prefix"


def adapter(model: CausalModel, rank: int, alpha: float, dropout: float = 0.0) -> LoraConfig:
    """Return PEFT's configuration of a LoRA on every prunable weight, and on nothing else.

    PEFT's own "all-linear" leaves experts alone that are one parameter, and adapts routers. What
    it refuses (`out_proj` of five types with state spaces) has no adapter; `reach` tells how much.

    Args:
        model: A Hugging Face causal LM, not wrapped yet.
        rank: Rank of the adapters, of each expert too.
        alpha: Scale of the adapters, times 1/rank.
        dropout: Dropout inside the adapters.

    Raises:
        InputError: Dropout is asked for, and the model has experts, for which PEFT has none.
    """
    from peft import LoraConfig

    coverage = find_prunable(model, allow_partial=True)
    weights = [weight for weight in coverage.weights if not _refused_by_peft(model, weight.module)]
    together = [weight.name for weight in weights if len(weight.shape) == 3]
    modules = [weight for weight in weights if len(weight.shape) == 2]
    renamed = [w.name for w in modules if together and w.module.rpartition(".")[2] in REMAPPED]
    renamed += [w.name for w in modules if w.name not in renamed and _read_past(model, w.module)]
    if (together or renamed) and dropout:
        raise InputError(
            "adapters of experts and of state spaces have no dropout, because they change the "
            "weights themselves",
            got=f"dropout {dropout:g}, and {len(together) + len(renamed)} such parameters in the "
            "model",
            allowed="dropout=0",
            fix="leave dropout out",
        )
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[weight.module for weight in modules if weight.name not in {*renamed}],
        target_parameters=[*together, *renamed] or None,
        task_type="CAUSAL_LM",
    )


def _refused_by_peft(model: CausalModel, module: str) -> bool:
    """Tell whether PEFT puts no adapter on a layer: it knows layers that kernels read past."""
    from peft.tuners import tuners_utils

    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    if check is None:
        return False
    try:
        check(SimpleNamespace(peft_type="LORA"), model, module.rpartition(".")[2])
    except ValueError:
        return True
    return False


def _read_past(model: CausalModel, module: str) -> bool:
    """Tell whether an adapter around a layer is not enough, so that its weight needs one itself.

    Kernels of state spaces read the weights of their layers past these, and PEFT refuses some of
    them; a layer with a way forward of its own may use its weight group by group.
    """
    layer = model.get_submodule(module)
    mixer = model.get_submodule(module.rpartition(".")[0])
    of_state_space = all(
        isinstance(getattr(mixer, name, None), nn.Parameter) for name in STATE_SPACE
    )
    own_way = isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward
    return of_state_space or own_way


class Reach(NamedTuple):
    """What adapters were put on.

    Attributes:
        share: Share of the prunable weights that have one, in [0, 1].
        elsewhere: Weights beside these that have one.
    """

    share: float
    elsewhere: int


def reach(adapted: nn.Module, weights: Mapping[str, Tensor]) -> Reach:
    """Return which part of a model PEFT has put adapters on.

    Args:
        adapted: The model with its adapters.
        weights: The prunable parameters of the model, by name.
    """
    from peft.tuners.lora import LoraLayer

    reached: dict[int, int] = {}
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            weight = getattr(base, getattr(module, "parameter_name", "weight"))
            reached[id(weight)] = weight.numel()
    own = {id(weight): weight.numel() for weight in weights.values()}
    inside = sum(size for key, size in own.items() if key in reached)
    return Reach(inside / sum(own.values()), sum(reached.values()) - inside)


def _silent(model: CausalModel) -> dict[str, object]:
    """Return options of every trainer of TRL: no log, no checkpoint, no mixed precision."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return {
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": not on_cpu,
        "bf16": False,
        "use_cpu": on_cpu,
    }


def _arguments(folder: str, settings: TuneSettings) -> dict[str, object]:
    """Return the settings of a fine-tune as options of the trainers of TRL."""
    return {
        "output_dir": folder,
        "max_steps": settings.steps or -1,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch,
        "learning_rate": settings.rate,
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "seed": seed_of("tune", settings.seed) % 2**31,
    }


@contextlib.contextmanager
def _left_as_before(model: CausalModel) -> Iterator[None]:
    """Restore flags, caching and the global random states that a trainer sets."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    cached = getattr(model.config, "use_cache", None)
    prefix = vars(model).get(_PREFIX)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - saved, not drawn from
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for name, parameter in model.named_parameters():
            parameter.requires_grad = flags.get(name, True)
            parameter.grad = None
        if cached is not None:
            model.config.use_cache = cached
        if prefix is None:
            vars(model).pop(_PREFIX, None)
        model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep trainers from drawing bars, warning of their own defaults and reporting home.

    TRL sends usage data whenever a trainer is made; what is trained here concerns nobody else.
    """
    import datasets
    from huggingface_hub import constants
    from transformers.utils import logging as library

    bars, telemetry = datasets.is_progress_bar_enabled(), constants.HF_HUB_DISABLE_TELEMETRY
    names = ("trl", "peft", "accelerate", "transformers.trainer")
    levels = {name: logging.getLogger(name).level for name in names}
    verbosity = library.get_verbosity()
    datasets.disable_progress_bars()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    library.set_verbosity_error()
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        # A trainer sets the verbosity too, so it is put back before the loggers under it.
        library.set_verbosity(verbosity)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        if bars:
            datasets.enable_progress_bars()
