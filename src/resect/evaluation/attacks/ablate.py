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
from typing import Any, Literal

from resect.attribution.engine import attribute
from resect.attribution.rounds import contrasted
from resect.attribution.settings import AttributeSettings
from resect.data.encode import encode
from resect.data.load import BehaviourSet
from resect.edit.live import removed
from resect.errors import InputError
from resect.evaluation.attacks.patch import Patch
from resect.model import context_of
from resect.records import Encoded, Format
from resect.weights.mask import Mask
from resect.weights.select import select


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
    def fractions(self) -> tuple[float, float]:
        """The fractions (q, p) in force."""
        q, p = (0.01, 0.01) if self.preset == "published" else (0.0005, 0.0)
        return (q if self.q is None else self.q, p if self.p is None else self.p)

    @property
    def roles(self) -> tuple[str, ...]:
        """The data that the preset needs."""
        protects = ("preserve",) if self.fractions[1] > 0 else ()
        return ("refusal", *(("target",) if self.preset == "contrast" else ()), *protects)


def ablate_refusal(
    model: Any,
    tokenizer: Any,
    settings: AblationSettings,
    data: Mapping[str, BehaviourSet],
    *,
    format: Format,
) -> Patch:
    """Find the weights of refusal; the model is as before when this returns.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its tokenizer.
        settings: Which cut.
        data: `refusal` (prompts with refusals), for `contrast` also `target` (prompts with
            compliant answers), where something is protected also `preserve`.
        format: `raw` or `chat`, as the evaluation asks.

    Raises:
        InputError: An example cannot be scored, or refusals and answers begin alike.
    """
    chosen = {
        role: data[role].split("calibration").limit(settings.limit, settings.seed)
        for role in settings.roles
    }
    room = context_of(model)
    gate = ("refusal", "target") if settings.preset == "contrast" else ()
    encoded = {
        role: encode(
            found.examples,
            tokenizer,
            format=format,
            tokens=1 if role in gate else None,
            max_length=room,
        )
        for role, found in chosen.items()
    }
    mask = refusal_mask(model, tokenizer, settings, encoded)
    facts = {
        "attack": "ablate_refusal",
        "settings": asdict(settings),
        "data": {role: found.hash for role, found in chosen.items()},
        "removed": mask.count,
        "removed_fraction": mask.fraction,
    }
    return Patch(lambda: removed(model, mask), facts)


def refusal_mask(
    model: Any,
    tokenizer: Any,
    settings: AblationSettings,
    encoded: Mapping[str, Sequence[Encoded]],
) -> Mask:
    """Return the weights of refusal, by the rules in the header of this module."""
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
    openings = {one.input_ids[one.first_scored] for one in (*refusals, *answers)}
    if len(openings) == 1:
        raise InputError(
            "refusals and compliant answers begin with the same token",
            got=f"token {openings.pop()}",
            fix="give answers as the model begins them, or use ablate_refusal:published",
        )
    return contrasted(refusals, answers)
