"""What a study may know of a run: models, data, targets, how it is asked.

A study's own section of the configuration stands in its file; `resect.runs.config` joins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from resect.records import TASK_PREFIX, DecodingMode, Format, Measure, Search, Unit

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Grid = Annotated[tuple[Fraction, ...], Field(min_length=1)]
Rate = Annotated[float, Field(gt=0)]
# Fractions of a ranking that cuts, controls and rivals are tried at, in models of about a million
# weights. Steps are of 1.5 at the upper end, where harm is lost and utility soon after.
GRID = (5e-4, 1e-3, 2e-3, 4e-3, 6e-3, 1e-2)
# The one fraction of studies that measure much of one cut.
FRACTION = 4e-3


@dataclass(frozen=True)
class Names:
    """Says of a text in the configuration that it names an entry of one of its mappings.

    Attributes:
        mapping: Where the entry must stand: `models`, `data`, `targets` or `evaluation.probes`.
    """

    mapping: str


ModelName = Annotated[str, Names("models")]
DataName = Annotated[str, Names("data")]
TargetName = Annotated[str, Names("targets")]


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors.

    Attributes:
        needs: Entries that a mapping of the configuration must have for this section to be used,
            though no value of the section names them: mapping to names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}


class Method(Section):
    """A way to rank: which target's score, in how many rounds."""

    name: str
    target: TargetName
    rounds: Count = 1


# Kind, and an option after a colon; judges check their options themselves when a run begins.
JUDGE = r"^(exact|keyword|strongreject|llm|fitted)(:.+)?$"
# A role is part of the names of files in the run folder.
Role = Annotated[str, Field(pattern=r"^\w[\w .+@-]*$", max_length=100)]


class Target(Section):
    """A behaviour whose weights are sought.

    Attributes:
        data: Name of a set under `data`; its calibration split is scored.
        skip: Response tokens that are not scored, from the first.
        tokens: Most response tokens that are scored after those; None for all.
        contrast: Name of a target whose score is subtracted, for instance harmless answers in the
            same style to the same prompts.
        limit: Most examples to score; None for all.
    """

    data: DataName
    skip: Annotated[int, Field(ge=0)] = 0
    tokens: Annotated[int, Field(ge=1)] | None = None
    contrast: TargetName | None = None
    limit: Annotated[int, Field(ge=1)] | None = None


class Preserve(Target):
    """The behaviour that is protected by the set difference."""

    reduction: Literal["mean_of_abs", "abs_of_mean"] = "mean_of_abs"


class Selection(Section):
    """How masks are chosen from scores.

    Attributes:
        p: Fraction protected by the preserve set; 0 protects nothing.
        scope: Rank within each weight tensor or over the whole model.
        unit: What is cut as a whole: single weights, or whole neurons, heads or experts
            (`resect.weights.whole`). It is written only where it is not `weight`.
    """

    p: Share = 0.01
    scope: Literal["tensor", "model"] = "tensor"
    unit: Unit = "weight"

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out the unit while it is the weight: configurations keep their hash."""
        values: dict[str, object] = write(self)
        return {key: v for key, v in values.items() if key != "unit" or v != "weight"}


class Attack(Section):
    """The attack under which generation is measured."""

    name: Literal["none", "prefill"] = "prefill"
    tokens: Annotated[int, Field(ge=1)] = 10
    phrase: str | None = None


class Evaluation(Section):
    """How variants are asked.

    Attributes:
        probes: Probe name to the name of a set under `data`; its evaluation split is asked.
        limit: Most prompts a probe; None for all.
        judge: As `resect eval --judge` takes it: `exact`, `keyword`, `strongreject`,
            `llm:RUBRIC@MODEL`, `fitted:FILE`.
        coherence: When a reply is incoherent, as `resect eval --coherence` takes it; None leaves it
            to the judge.
        max_new_tokens: Tokens after which a reply is cut off.
        batch_size: Prompts decoded together.
        alike: Prompts of a category that share at least this part of their content words (Jaccard,
            single linkage) count as one; at 1 those with equal words alone.
        measure: `replies` decodes and judges. `likelihood` decodes nothing: the score of a row is
            the geometric mean of the probabilities of its answer's tokens, for every probe, and
            probes may have any name. It is written only where it is not `replies`.
        look: Rows a probe that are put to the intact model and to a destroyed one before anything
            else (`resect.evaluation.instrument`); what a probe that cannot tell them apart measures
            is not measurable. 0 takes it for granted that probes can, and is not written.
        together: Cuts that share each pass of a model, their rows side by side (`batch_size` rows
            of each). Numbers then differ by rounding from those of cuts that are asked one by one,
            and so may a reply here and there; the report says so. 1 asks each cut by itself, to
            the bit as ever, and is not written.
        check_together: Cuts of each model that are asked alone as well, so that the report can say
            how many of their tokens differ. 0 checks none, and is not written.
        search: How studies that choose a cut from a grid look for it. `full` asks every cut all
            prompts, and is not written; `halving` asks what their claims need
            (docs/design/halving.md).
        decoding: How replies are decoded. `fast` decodes them by our own loop, and side by side,
            where a trial shows the model to be fit for that (docs/design/decoding.md), and is not
            written; `exact` tries nothing and leaves each batch to transformers' `generate`;
            `continuous` decodes greedy replies side by side in 16 bits as well, and takes tokens
            that lead by less than rounding as they come.
    """

    probes: dict[str, DataName]
    limit: Annotated[int, Field(ge=1)] | None = None
    judge: Annotated[str, Field(pattern=JUDGE)] = "exact"
    coherence: str | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 16
    alike: Annotated[float, Field(gt=0, le=1)] = 0.5
    measure: Measure = "replies"
    look: Annotated[int, Field(ge=0)] = 0
    together: Count = 1
    check_together: Annotated[int, Field(ge=0)] = 0
    search: Search = "full"
    decoding: DecodingMode = "fast"

    @property
    def instrument(self) -> str:
        """What harm is measured by, in words."""
        return "likelihood" if self.measure == "likelihood" else f"the judge {self.judge}"

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what was added later while it is not used: configurations keep their hash."""
        later = {
            "measure": "replies",
            "coherence": None,
            "look": 0,
            "together": 1,
            "check_together": 0,
            "search": "full",
            "decoding": "fast",
        }
        values: dict[str, object] = write(self)
        return {key: v for key, v in values.items() if key not in later or v != later[key]}


class Guard(Section):
    """What a cut may cost before nothing is claimed of it; one guard for all studies.

    Attributes:
        utility_drop: Largest relative drop of utility, mean over tasks, where a study has no budget
            of its own.
        worst_task: Largest relative drop of the task that loses most; the budget if that is larger.
        incoherent: Largest rise of the share of incoherent replies.
        random_share: A random cut of the same size must do less than this share of what is claimed.
    """

    utility_drop: Share = 0.05
    worst_task: Share = 0.1
    incoherent: Share = 0.1
    random_share: Share = 0.5


class Design(Section):
    """A run without its studies.

    Attributes:
        name: For the report's heading.
        quick: Whether this is a shortened run; the report says so.
        seeds: Each seed is a model (where a place contains `{seed}`), a draw of the calibration
            examples and a draw of the random controls.
        models: Role to folder or Hub id.
        subject: The role that is cut in most studies.
        data: Name to SPEC; `{seed}` is replaced as in `models`. For the probe `utility` it may name
            lm-eval tasks: `lm-eval:arc_easy#questions=200` (`resect.data.task`).
        format: `raw` or `chat`.
        target: The behaviour that is sought, under `targets`.
        targets: Behaviours by name.
        preserve: The behaviour that is protected.
        selection: How masks are chosen.
        attack: The attack under which generation is measured.
        attack_data: What attacks need: `target`, `refusal`, `preserve` to names under `data`.
        evaluation: How variants are asked.
        guard: What a cut may cost.
        least_rate: A behaviour that the intact model shows less often is not measurable.
        most_unscored: Nor is one of which the judge could not score a larger share; after a cut,
            bounds are those of the worst cases beyond it.
        most_dissent: No claim is supported if a larger share of the seeds says, each by itself,
            that it is not.
    """

    name: str
    quick: bool = False
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    models: dict[Role, str]
    subject: ModelName = "aligned"
    data: dict[str, str]
    format: Format = "chat"
    target: TargetName = "generation"
    targets: dict[str, Target]
    preserve: Preserve
    selection: Selection = Selection()
    attack: Attack = Attack()
    attack_data: dict[Literal["target", "refusal", "preserve"], DataName] = Field(
        default_factory=dict
    )
    evaluation: Evaluation
    guard: Guard = Guard()
    least_rate: Share = 0.2
    most_unscored: Share = 0.05
    most_dissent: Annotated[float, Field(ge=0, le=1)] = 0.5

    def by_task(self, probe: str) -> bool:
        """Tell whether lm-eval asks and marks what a probe asks."""
        return self.data[self.evaluation.probes[probe]].startswith(TASK_PREFIX)

    def by_likelihood(self, probe: str) -> bool:
        """Tell whether the scores of a probe are likelihoods, which have no ends to be added."""
        return self.evaluation.measure == "likelihood" and not self.by_task(probe)

    def scored_as(self, probe: str) -> Target | None:
        """Return the target whose `skip` and `tokens` hold for the answers of a probe.

        That is a target which ranks weights by the same set: of `generation` the behaviour under
        study, else the one of the probe's name, then any other, then the preserve set. None scores
        all tokens.
        """
        data = self.evaluation.probes[probe]
        return next((target for target in self._in_turn(probe) if target.data == data), None)

    def _in_turn(self, probe: str) -> Iterator[Target]:
        if probe in self.targets and probe != "generation":
            yield self.targets[probe]
        yield self.targets[self.target]
        yield from self.targets.values()
        yield self.preserve
