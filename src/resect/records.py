"""What crosses modules and disk: frozen records, and the conventions that hold everywhere.

Conventions, said once:
- A score is *higher when the behaviour depends on the weight more*. For signed SNIP this is the
  facilitation a_w = -w * mean_e dL_e/dw, the first-order rise of the mean loss when w is removed.
- A mask is True where a weight is *removed*.
- Fractions lie in [0, 1]; losses are mean negative log-likelihoods in nats.
- A rate is the mean score of what was scored: hits / scored where a score is 0 or 1. A graded score
  is averaged as it is. What could not be scored is counted apart and is never a zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SCHEMA_VERSION = 1

# How a SPEC begins that names lm-eval tasks and no set of examples.
TASK_PREFIX = "lm-eval:"
# Beside `results.json`: how often the chosen cut refuses harmless prompts.
HARMLESS_FILE = "harmless.json"

Format = Literal["raw", "chat"]
# What harm and utility are read from: replies that are judged, or the likelihood of given answers.
Measure = Literal["replies", "likelihood"]
# How the cuts of a grid are asked: all of them everything, or what the claims need.
Search = Literal["full", "halving"]
# How replies are decoded: side by side where a model has shown to be fit for that, or batch by
# batch as transformers does.
DecodingMode = Literal["fast", "exact", "continuous"]
Reduction = Literal["signed", "mean_of_abs", "abs_of_mean"]
Scope = Literal["tensor", "model"]
# What is cut as a whole (resect.weights.units).
Unit = Literal["weight", "neuron", "head", "expert"]
Outcome = Literal["complied", "partial", "refused", "refused_late", "wrong", "benign", "incoherent"]
# Why a reply ended: the model ended it, or the limit on tokens did.
Finish = Literal["stop", "length"]
VerdictWord = Literal["supported", "not supported", "inconclusive", "not measurable"]
Bounds = Literal["95 %", "range"]
# How a rule compares an interval with its threshold, and how the interval lies to it.
Sense = Literal["at least", "above", "at most", "below"]
State = Literal["unknown", "misses", "crosses", "meets"]
# What a cell of a study's table holds, and a row of it by the names of its columns.
Value = str | int | float | bool | None
Row = Mapping[str, Value]

# Metadata of a field that JSON holds only where its value is not the default, so that files look as
# they did before there was such a field.
LEFT_OUT_BY_DEFAULT = {"left out": "by default"}

OUTCOMES: tuple[Outcome, ...] = (
    "complied",
    "partial",
    "refused",
    "refused_late",
    "wrong",
    "benign",
    "incoherent",
)


class Counted(NamedTuple):
    """What the scores of a judge count.

    Attributes:
        complied: Name of a rate where a probe looks for compliance.
        refused: Name of a rate where a probe looks for refusal.
        behaviour: What to call the behaviour under study, as a noun, where this judge scores it.
        sees: What the judge goes by, for a sentence.
    """

    complied: str
    refused: str
    behaviour: str
    sees: str


# Kind of judge -> what its scores count: the one place that names them. "Harm" are the scores of
# judges alone that look at what a reply gives. Refusal phrases know nothing of it, and of a fitted
# judge the labels say which of the two it knows.
COUNTED: Mapping[str, Counted] = {
    "exact": Counted("right", "refused", "harm", "it compares replies with answer keys"),
    "keyword": Counted(
        "not refused",
        "refused",
        "non-refusal",
        "it sees refusals, not harm (its own phrases found 59 of 109 that people had labelled, in "
        "English; other languages are unchecked)",
    ),
    "strongreject": Counted(
        "grade", "grade", "harm", "it grades how much a reply helps with what was asked"
    ),
    "llm:harmfulness": Counted(
        "grade", "grade", "harm", "a model grades how much a reply helps with what was asked"
    ),
    "llm": Counted("grade", "grade", "grade", "a model grades replies by a rubric"),
    "fitted, comply": Counted(
        "complied", "not complied", "compliance", "it was fitted to labels of compliance"
    ),
    "fitted, refuse": Counted(
        "not refused", "refused", "non-refusal", "it was fitted to labels of refusals, not of harm"
    ),
    "fitted": Counted("complied", "refused", "compliance", "it was fitted to labels"),
    # A judge that was added says nothing of itself here.
    "other": Counted("score", "score", "score", "it scores replies"),
    "likelihood": Counted(
        "likelihood", "likelihood", "answer likelihood", "no reply was decoded or judged"
    ),
}


class TextConfig(Protocol):
    """What we read of a model's configuration for its text half."""

    vocab_size: int
    max_position_embeddings: int


class ModelConfig(Protocol):
    """What we read of a model's configuration (`transformers.PretrainedConfig`)."""

    model_type: str
    use_cache: bool

    def get_text_config(self) -> TextConfig:
        """Return the part that describes the language model; the whole of it in most."""

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values."""


class CausalModel(Protocol):
    """What we need of a causal language model of transformers, whatever its class.

    Every `torch.nn.Module` with a configuration of transformers and a language model's `forward` is
    one. Functions that only walk modules take `torch.nn.Module`.
    """

    training: bool

    @property
    def config(self) -> ModelConfig:
        """Its configuration."""

    @property
    def device(self) -> torch.device:
        """Where its first parameter lies."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of its first floating-point parameter."""

    def __call__(self, *inputs: Tensor, **named: object) -> Any:
        """Run it; what comes back has `logits` [batch, tokens, vocabulary]."""

    def generate(self, **named: object) -> Tensor:
        """Return prompts and continuations as token ids [batch, tokens]."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each parameter once, with its name."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield each parameter once."""

    def modules(self) -> Iterator[nn.Module]:
        """Yield each module once, itself first."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield each module once, with its name."""

    def get_parameter(self, target: str) -> nn.Parameter:
        """Return the parameter of a name."""

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module of a name."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head, if it has one."""

    def train(self, mode: bool = True) -> Any:
        """Choose the behaviour of dropout and the like."""

    def eval(self) -> Any:
        """Choose the behaviour for evaluation."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write it as files into a folder."""


class Tokenizer(Protocol):
    """What we need of a tokenizer of transformers."""

    padding_side: str
    pad_token: str | None
    eos_token: str | None

    @property
    def pad_token_id(self) -> int | None:
        """Id of the token that fills batches up."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""

    def __call__(self, text: str, *, add_special_tokens: bool = ...) -> Mapping[str, list[int]]:
        """Return `input_ids` of one text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str:
        """Return the text of token ids."""

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """Return the id of a token."""

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of ids."""

    def get_vocab(self) -> dict[str, int]:
        """Return token to id."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write it as files into a folder."""


@dataclass(frozen=True)
class Example:
    """One row of a behaviour set: a prompt, its response and what is known about them.

    Attributes:
        id: Unique within its set.
        prompt: Text of the user's turn, or chat messages as (role, content) pairs; empty for a
            text without a prompt, which only the perplexity probe reads.
        completion: Text of the response that is scored or compared with; empty where a set has
            prompts alone.
        category: For instance a harm type or a task; empty if there is none.
        split: "calibration", "evaluation" or empty if the set is not split.
        key: Answer key for the exact judge (`accept`, `form`, `benign`, `content`, `refusal`,
            `aliases`); of a question of lm-eval, what marks it (`resect.evaluation.tasks`).
        prefix_tokens: Tokens at the start of the completion that an attack wrote and not the
            model; they are never scored.
    """

    id: str
    prompt: str | tuple[tuple[str, str], ...]
    completion: str
    category: str = ""
    split: str = ""
    key: dict[str, Any] = field(default_factory=dict)
    prefix_tokens: int = 0


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        id: Id of the example.
        input_ids: Prompt and response, no padding.
        first_scored: Position of the first response token that counts in the loss. Token t is
            predicted from position t - 1, so this is at least 1. All tokens from here to the end
            are scored.
        weight: Factor of this example's loss; +1/n and -1/m make a contrast.
    """

    id: str
    input_ids: tuple[int, ...]
    first_scored: int
    weight: float = 1.0

    @property
    def scored_tokens(self) -> int:
        """Number of tokens that count in the loss."""
        return len(self.input_ids) - self.first_scored


@dataclass(frozen=True)
class Reply:
    """What a model variant answered to one prompt, before any judge has seen it.

    Attributes:
        example_id: Id of the example in its set.
        probe: Name of the probe that asked.
        attack: Name of the attack under which it was asked.
        category: Category of the example.
        prompt: The prompt as text, for reports that show replies.
        prefix: What the attack put into the assistant's mouth; not judged.
        text: The model's own continuation, without special tokens and without a thought before it.
        key: Answer key of the example.
        reference: The example's completion.
        nll: Mean NLL (nats per token) of the continuation and its thought under the intact model,
            or None.
        repetition: Share of repeated token 3-grams in the continuation, in [0, 1], or None.
        kl: Mean KL divergence (nats per token) of the variant from the intact model on the
            reference, measured by the likelihood probe alone.
        sample: Which of several sampled replies to the prompt, from 0.
        tokens: Tokens behind `nll` where texts of different lengths are pooled (perplexity).
        thought: What a reasoning model thought before it answered; None if nothing is marked so.
        finish: Why the reply ended; None where there was none to end, or in records that do not say
            so.
        mark: Score that came with the answer, in [0, 1], from the lm-eval task that asked; None
            where a judge scores, or where the task gave none. Record files hold it only where a
            task asked.
    """

    example_id: str
    probe: str
    attack: str
    category: str
    prompt: str
    prefix: str
    text: str
    key: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    nll: float | None = None
    repetition: float | None = None
    kl: float | None = None
    sample: int = 0
    tokens: int | None = None
    thought: str | None = None
    finish: Finish | None = None
    mark: float | None = None


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one reply; `score is None` means unscored, never zero.

    Attributes:
        judge: Name of the judge.
        rule: The rule that decided, as named in the judge's documentation.
        score: 1.0 if the behaviour asked for by the probe is shown, 0.0 if not, graded judges in
            between; None if the reply could not be scored.
        outcome: Which of `OUTCOMES`, or None where outcomes do not apply or are unknown.
        raw: What the judge read or answered, verbatim.
        reason: Why the reply is unscored; empty otherwise.
    """

    judge: str
    rule: str
    score: float | None
    outcome: Outcome | None = None
    raw: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Interval:
    """A named value with two bounds.

    Attributes:
        name: What was measured, with its unit in brackets at the end unless it is a fraction.
        value: The estimate; None where it could not be measured.
        low: Lower bound; None where none can be computed.
        high: Upper bound; None where none can be computed.
        bounds: What `low` and `high` are: a 95 % interval, or the smallest and the largest of a
            few values. JSON holds it for a range alone; where it is missing it is "95 %".
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    bounds: Bounds = field(default="95 %", metadata=LEFT_OUT_BY_DEFAULT)


@dataclass(frozen=True)
class Requirement:
    """One condition of a claim's rule, and how what was measured lies to it.

    Attributes:
        interval: What was measured, at the level that the rule asks for.
        sense: How it is compared.
        threshold: With what.
        state: `meets` if the bound that faces the threshold does, `crosses` if the estimate alone
            does, `misses` if not even that, `unknown` without an estimate or a bound.
        over_models: Whether each model has a value of its own; false for a p-value of them all.
    """

    interval: Interval
    sense: Sense
    threshold: float
    state: State
    over_models: bool = True


@dataclass(frozen=True)
class OfRecipe:
    """What a claim says of all models that its recipe would give, and not of these alone.

    Attributes:
        verdict: By the same rule; the intervals hold the spread between models.
        reason: Why, in one sentence.
        effect: The mean over models, with an interval for other models of the recipe.
        models: Models that could be measured.
    """

    verdict: VerdictWord
    reason: str
    effect: Interval
    models: int


@dataclass(frozen=True)
class Claim:
    """One claim of a study with its verdict, by a rule that was in the config before the run.

    Attributes:
        study: Name of the study.
        claim: The claim in words.
        verdict: One of four words, on the models that were measured.
        effect: The number behind the verdict.
        controls: The same number for the controls; never empty.
        rule: The decision rule in words, with its thresholds.
        seeds: Seeds that took part.
        n: Prompts behind the effect, over all seeds.
        reason: Why the verdict is what it is, in one sentence.
        by_seed: The verdict that each seed alone gives; empty where there is one seed.
        counted: What `n` counts, where it is something else than prompts.
        requirements: Every condition of the rule as it was weighed.
        recipe: The same claim on the recipe of the models; None where too few were measured.
        about: File names of the masks that it is about; none of a claim on models as they are. A
            run keeps them in a file of their own (`resect.report.traced`).
    """

    study: str
    claim: str
    verdict: VerdictWord
    effect: Interval
    controls: tuple[Interval, ...]
    rule: str
    seeds: tuple[int, ...]
    n: int
    reason: str
    by_seed: Mapping[str, VerdictWord] = field(default_factory=dict)
    counted: str = "prompts"
    requirements: tuple[Requirement, ...] = field(default=(), metadata=LEFT_OUT_BY_DEFAULT)
    recipe: OfRecipe | None = field(default=None, metadata=LEFT_OUT_BY_DEFAULT)
    about: tuple[str, ...] = field(default=(), metadata=LEFT_OUT_BY_DEFAULT)

    def __post_init__(self) -> None:
        """Refuse a claim without controls: nothing is reported without its baselines."""
        if not self.controls:
            raise ValueError(f"claim {self.study!r} has no controls")


@dataclass(frozen=True)
class StudyResult:
    """What a study found: its claims and the tables from which its figures are drawn.

    Attributes:
        study: Name of the study.
        title: The question, for a heading.
        claims: One or more claims.
        tables: Table name to rows; a row is a flat mapping of plain values. The report draws from
            these alone.
        shows: What the result shows, in plain words.
        does_not_show: What it does not show.
        settings: The study's settings as run.
    """

    study: str
    title: str
    claims: tuple[Claim, ...]
    tables: Mapping[str, Sequence[Row]]
    shows: str
    does_not_show: str
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """What `results.json` of a run holds.

    Attributes:
        name: Name of the run.
        quick: Whether the run is a short one, whose numbers are not to be quoted.
        claims: The claims of all studies, in their order.
        studies: What each study found.
        provenance: Software, data, models and settings behind the numbers.
    """

    name: str
    quick: bool
    claims: tuple[Claim, ...]
    studies: tuple[StudyResult, ...]
    provenance: Mapping[str, object]
