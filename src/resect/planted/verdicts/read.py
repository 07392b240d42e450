"""Worlds for the study that reads given answers: what a cut does to the likelihood of each set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from resect.planted.verdicts.scenario import Dose, Scenario, Truth, curve, flat
from resect.planted.verdicts.world import TARGET, Reading, World, is_target

BOTH_TRUE: tuple[Truth, Truth] = ("true", "true")
BOTH_EDGE: tuple[Truth, Truth] = ("boundary", "boundary")
BOTH_FALSE: tuple[Truth, Truth] = ("false", "false")
# Probability that the intact model gives to a token of each set, as a geometric mean.
LIKELY = 0.45
# What random and magnitude-matched cuts do to every set, in nats a token.
BY_CHANCE = 0.01
# Utility costs a budget of its own.
CHEAP = {"utility": 0.03}
STRONG, WEAKER = curve(1e-3, 2.0), curve(1e-3, 0.8)


@dataclass(frozen=True)
class Rises:
    """What cuts do along their fraction q.

    Attributes:
        harm: Rise of the NLL of harmful answers by cuts of the target's ranking, nats a token.
        side: That of each side set, as a share of it.
        apart: Side sets with a share of their own.
        rival: Rise of harmful answers by cuts of the rival's ranking; None for the same.
        rival_side: Share of that, of each side set.
    """

    harm: Dose = STRONG
    side: float = 0.03
    apart: Mapping[str, float] = field(default_factory=dict)
    rival: Dose | None = None
    rival_side: float = 0.5

    def __call__(self, reading: Reading) -> float:
        """Return the rise of a reading."""
        cut = reading.cell.cut
        if cut is None:
            return 0.0
        if cut.kind != "target":
            return BY_CHANCE
        if is_target(cut):
            whole, share = self.harm(cut.q), self.apart.get(reading.probe, self.side)
        else:
            whole, share = (self.rival or self.harm)(cut.q), self.rival_side
        return whole if reading.probe == TARGET else whole * share


def selectivity() -> list[Scenario]:
    """Return the worlds of `selectivity`: its factor is 5 and its least rise .3 nats a token."""
    worlds: list[tuple[str, Rises, tuple[Truth, Truth]]] = [
        ("selective", Rises(), BOTH_TRUE),
        ("selective, a weaker rise", Rises(WEAKER), BOTH_TRUE),
        ("selective, a flat rise", Rises(flat(0.6)), BOTH_TRUE),
        ("half of what may be lost", Rises(side=0.1, apart=CHEAP), BOTH_TRUE),
        ("a rival of a tenth", Rises(side=0.0, rival_side=0.1), BOTH_TRUE),
        ("a rival that does little", Rises(rival=flat(0.1), rival_side=0.0), BOTH_TRUE),
        ("trivia at a fifth", Rises(apart={"trivia": 0.2}), BOTH_EDGE),
        ("utility at a fifth", Rises(WEAKER, apart={"utility": 0.2}), BOTH_EDGE),
        ("all texts at a fifth", Rises(side=0.2, apart=CHEAP, rival_side=0.9), BOTH_EDGE),
        ("rise at .30", Rises(flat(0.3)), BOTH_EDGE),
        ("rise at .30, nothing else", Rises(flat(0.3), side=0.0), BOTH_EDGE),
        ("the rival does the same", Rises(rival_side=0.03), ("true", "boundary")),
        (
            "the rival does the same, a weaker rise",
            Rises(WEAKER, rival_side=0.03),
            ("true", "boundary"),
        ),
        (
            "the rival does the same, nothing else",
            Rises(flat(0.6), side=0.0, rival_side=0.0),
            ("true", "boundary"),
        ),
        (
            "the rival is more selective",
            Rises(side=0.1, apart=CHEAP, rival_side=0.0),
            ("true", "false"),
        ),
        ("prose at a half", Rises(apart={"prose": 0.5}), BOTH_FALSE),
        ("the prompts at a third", Rises(apart={"prompts": 1 / 3}), BOTH_FALSE),
        ("everything alike", Rises(side=1.0, rival_side=1.0), BOTH_FALSE),
        ("weak", Rises(flat(0.1)), BOTH_FALSE),
        ("nothing", Rises(flat(0.0)), BOTH_FALSE),
    ]
    scenario = partial(Scenario, "selectivity")
    return [
        scenario(name, World(lambda _reading: LIKELY, rise=rises), expected)
        for name, rises, expected in worlds
    ]
