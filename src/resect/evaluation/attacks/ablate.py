"""The refusal-ablation attack: our own cut, aimed at refusals.

Presets:
    contrast   T_q of a(refusal) - a(compliance), each on the first response token alone, since the
               gate lies there ("sorry" against "sure"); a is the signed facilitation, so the
               contrast is one pass with weights +1/|D| and -1/|D'|. q = 0.0005 a tensor by default:
               on the organism it removes refusal at no cost elsewhere.
    published  U_q(refusals) minus U_p(preserve), both |w|·mean |gradient|, p = q = 0.01, 128
               examples: the attack of Wei et al. 2024 (arXiv 2402.05162) as the code of
               arXiv 2604.09544 runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, NamedTuple

from resect.attribution.engine import attribute
from resect.attribution.rounds import contrasted
from resect.attribution.settings import AttributeSettings
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.edit.live import removed
from resect.errors import InputError
from resect.evaluation.attacks.family import Work
from resect.evaluation.attacks.patch import Patch
from resect.model import LoadedModel, context_of
from resect.records import Encoded, Format
from resect.weights.mask import Mask
from resect.weights.select import select


class Fractions(NamedTuple):
    """Fractions of each tensor's ranking: of refusals, cut; of `preserve` examples, protected."""

    q: float
    p: float


@dataclass(frozen=True)
class AblationSettings:
    """Which cut removes refusals.

    Attributes:
        preset: `contrast` or `published`.
        q: Fraction of each tensor's ranking that is cut; None for the preset's own.
        p: Fraction that is protected, by `preserve` examples; None for the preset's own.
        limit: Most examples of each set, drawn by `seed`.
        seed: Seed of the draw.
    """

    usage: ClassVar[str] = "[:published]"
    words: ClassVar[str] = "ablated refusal"

    preset: Literal["contrast", "published"] = "contrast"
    q: float | None = None
    p: float | None = None
    limit: int | None = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an unknown preset.

        Raises:
            InputError: The preset is unknown.
        """
        if self.preset not in ("contrast", "published"):
            raise InputError(
                "unknown preset of ablate_refusal",
                got=repr(self.preset),
                allowed="contrast, published",
            )

    @property
    def fractions(self) -> Fractions:
        """The fractions in force."""
        q, p = (0.01, 0.01) if self.preset == "published" else (0.0005, 0.0)
        return Fractions(q if self.q is None else self.q, p if self.p is None else self.p)

    @property
    def roles(self) -> tuple[str, ...]:
        """The data that the preset needs."""
        protected = ("preserve",) if self.fractions.p > 0 else ()
        return ("refusal", *(("target",) if self.preset == "contrast" else ()), *protected)

    def work(self, examples: int) -> Work:
        """Return how many examples are scored."""
        return Work(scored=len(self.roles) * (self.limit or examples))

    def prepare(
        self, loaded: LoadedModel, data: Mapping[str, BehaviourSet], *, format: Format
    ) -> Patch:
        """Find the weights of refusal; the model is as before when this returns.

        Args:
            loaded: A Hugging Face causal LM and its tokenizer.
            data: `refusal` (prompts with refusals), for `contrast` also `target` (prompts with
                compliant answers), where something is protected also `preserve`.
            format: `raw` or `chat`, as the evaluation asks.

        Raises:
            InputError: An example cannot be scored, or refusals and answers begin alike.
        """
        return ablate_refusal(loaded, self, data, format=format)


def ablate_refusal(
    loaded: LoadedModel,
    settings: AblationSettings,
    data: Mapping[str, BehaviourSet],
    *,
    format: Format,
) -> Patch:
    """Find the weights of refusal; arguments and errors as for `AblationSettings.prepare`."""
    model, tokenizer = loaded
    chosen = {
        role: data[role].split("calibration").limit(settings.limit, settings.seed)
        for role in settings.roles
    }
    context = context_of(model)
    gate = ("refusal", "target") if settings.preset == "contrast" else ()
    encoded = {
        role: encode(
            examples.examples,
            tokenizer,
            format=format,
            tokens=1 if role in gate else None,
            max_length=context,
        )
        for role, examples in chosen.items()
    }
    mask = refusal_mask(loaded, settings, encoded)
    record = {
        "attack": "ablate_refusal",
        "settings": asdict(settings),
        "data": {role: examples.hash for role, examples in chosen.items()},
        "removed": mask.count,
        "removed_fraction": mask.fraction,
    }
    return Patch(lambda: removed(model, mask), record)


def refusal_mask(
    loaded: LoadedModel, settings: AblationSettings, encoded: Mapping[str, Sequence[Encoded]]
) -> Mask:
    """Return the weights of refusal, by the rules in the header of this module."""
    model, tokenizer = loaded
    q, p = settings.fractions
    keep = max(q, p)
    if settings.preset == "published":
        method, target = "snip_abs", list(encoded["refusal"])
    else:
        method, target = "snip", contrast(encoded["refusal"], encoded["target"])
    scores = attribute(model, tokenizer, target, AttributeSettings(method=method, keep=keep))
    protected = None
    if p > 0:
        protected = attribute(
            model,
            tokenizer,
            encoded["preserve"],
            AttributeSettings(reduction="mean_of_abs", keep=keep),
        )
    return select(scores, protected, q=q, p=p, scope="tensor")


def contrast(refusals: Sequence[Encoded], answers: Sequence[Encoded]) -> list[Encoded]:
    """Return the examples of both sets, weighted so that their losses are subtracted.

    Args:
        refusals: Refusals, of which the first response token alone is scored.
        answers: Compliant answers, likewise.

    Raises:
        InputError: All refusals and answers begin with the same token.
    """
    openings = {example.input_ids[example.first_scored] for example in (*refusals, *answers)}
    if len(openings) == 1:
        raise InputError(
            "refusals and compliant answers begin with the same token",
            got=f"token {openings.pop()}",
            fix="give answers as the model begins them, or use ablate_refusal:published",
        )
    return contrasted(refusals, answers)
