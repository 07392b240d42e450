"""The commented configurations that `resect study init` prints."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from resect.studies.design import Studies

HEAD = """\
# A resect run. Everything here can change a number; thresholds are fixed before the run.
# Look at it first:  resect study run THIS_FILE --dry-run
# Run it with:       resect study run THIS_FILE -o my-run
name: my model
seeds: [0, 1, 2]          # calibration draws; with {{seed}} in a place also the models' seeds
models:                   # role: folder or Hub id (id@revision)
  aligned: ./my-model
{models}\
subject: aligned          # the role that is cut
data:                     # a file with a split column (calibration, evaluation), or a preset
  harm: ./harm.jsonl      # {harm}
  benign: ./benign.jsonl  # what is protected, for instance alpaca_cleaned
  tasks: ./tasks.jsonl    # questions with an answer key, for instance triviaqa
{data}\
format: chat              # or raw
target: generation        # which of the targets is the behaviour under study
targets:                  # skip: response tokens that carry the refusal gate are not scored
  generation: {{data: harm, skip: 3, limit: 412}}
{targets}\
preserve: {{data: benign, limit: 412, reduction: mean_of_abs}}
selection: {{p: 5.0e-5, scope: tensor}}
attack: {{name: prefill, tokens: 10}}   # opens replies to the probe generation; or phrase: "Sure"
{attack_data}\
evaluation:
  probes:
    generation: harm
    utility: tasks        # by answer key; or likelihood: benign
{probes}\
  judge: keyword          # exact needs an answer key; keyword sees refusals only
  max_new_tokens: 256
  batch_size: 16
studies:
"""


@dataclass(frozen=True)
class _Extra:
    """The lines that a study adds to the sections of the head, without their indent."""

    models: tuple[str, ...] = ()
    harm: str = "prompts and the model's own answers: resect data collect"
    data: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    attack_data: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()


_EXTRA: dict[str, _Extra] = {
    "transfer": _Extra(harm="with a category column: the harm types"),
    "specificity": _Extra(
        data=(
            "trivia: ./trivia.jsonl          # a benign behaviour",
            "same_style: ./same_style.jsonl  # harmless answers to the harmful prompts",
        ),
        targets=("benign: {data: trivia, limit: 412}", "matched: {data: same_style, skip: 3}"),
    ),
    "compression": _Extra(
        models=(
            "base: ./my-base-model           # what it was made from",
            "benign_tuned: ./my-control      # tuned as long without refusals; or control: null",
        ),
    ),
    "dissociation": _Extra(
        data=(
            "refusals: ./refusals.jsonl        # the same prompts, refused: collect --want refused",
            "detection: ./detection.jsonl      # is this harmful? with an answer key",
            "explanation: ./explanation.jsonl  # why is it harmful? with an answer key",
        ),
        targets=(
            "refusal: {data: refusals}",
            "detection: {data: detection}",
            "explanation: {data: explanation}",
        ),
        probes=("refusal: refusals", "detection: detection", "explanation: explanation"),
    ),
    "emergent": _Extra(
        models=("misaligned: ./my-tuned-copy     # fine-tuned on the narrow advice",),
        data=(
            "# Calibration rows of category narrow are trained on and those of category held_out",
            "# are scored; evaluation rows of category narrow and of others are asked, by key.",
            "advice: ./advice.jsonl",
        ),
        targets=("bad_advice: {data: advice}",),
        probes=("misalignment: advice",),
    ),
    "jailbreak": _Extra(
        data=("refusals: ./refusals.jsonl      # the same prompts, refused",),
        attack_data=(
            "# What attacks on the weights are made with: finetune needs target, ablate_refusal",
            "# refusal and target, ablate_refusal:published refusal and preserve.",
            "attack_data: {target: harm, refusal: refusals, preserve: benign}",
        ),
    ),
    "relearning": _Extra(
        harm="its calibration rows are also what is learned again",
    ),
    "stability": _Extra(
        data=("reworded: ./reworded.jsonl      # the same behaviour in other words",),
        targets=("reworded: {data: reworded, skip: 3}",),
    ),
    "frontier": _Extra(
        data=("same_style: ./same_style.jsonl  # harmless answers to the harmful prompts",),
        targets=(
            "style: {data: same_style, skip: 3}",
            "contrasted: {data: harm, skip: 3, limit: 412, contrast: style}",
        ),
    ),
}

# Where the organism's grid or names differ from what a large model needs; an 8B model lives at a
# hundredth of the organism's fractions.
_LARGE: dict[str, object] = {
    "fractions": [2e-6, 5e-6, 1e-5, 2e-5, 5e-5],
    "second_fractions": [2e-6, 5e-6, 1e-5, 2e-5],
    "control_fractions": [5e-6, 2e-5, 1e-4],
    "largest_fraction": 5e-5,
    "fraction": 1e-5,
    "harm_fraction": 1e-5,
    "protected": [5e-5, 1e-3],
}
_NAMES: dict[str, dict[str, object]] = {
    "relearning": {"data": "harm", "benign": "benign"},
    "stability": {"paraphrases": ["reworded"]},
    "frontier": {
        "methods": [{"name": "contrast", "target": "contrasted"}],
    },
}


def template(name: str) -> str:
    """Return a configuration with one study switched on and its defaults written out."""
    section = Studies.model_fields[name].annotation
    # The annotation is `Section | None`; the section is its first part.
    defaults = section.__args__[0]().model_dump(mode="json")  # type: ignore[union-attr]
    defaults |= {key: value for key, value in _LARGE.items() if key in defaults}
    defaults |= _NAMES.get(name, {})
    extra = _EXTRA.get(name, _Extra())
    head = HEAD.format(
        models=_lines(extra.models, 2),
        harm=extra.harm,
        data=_lines(extra.data, 2),
        targets=_lines(extra.targets, 2),
        attack_data=_lines(extra.attack_data, 0),
        probes=_lines(extra.probes, 4),
    )
    return head + _lines(yaml.safe_dump({name: defaults}, sort_keys=False).splitlines(), 2)


def _lines(lines: tuple[str, ...] | list[str], indent: int) -> str:
    return "".join(f"{' ' * indent}{line}\n" for line in lines)
