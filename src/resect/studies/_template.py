"""The commented configuration that `resect study init` prints."""

from __future__ import annotations

import yaml

from resect.rules import Studies

HEAD = """\
# A resect run. Everything here can change a number; thresholds are fixed before the run.
# Run it with:  resect study run THIS_FILE -o my-run
name: my model
seeds: [0, 1, 2]          # calibration draws; with {seed} in a place also the models' seeds
models:                   # role: folder or Hub id (id@revision)
  aligned: ./my-model
#  base: ./my-base-model            # for compression
#  benign_tuned: ./my-control       # for compression: tuned as long, on benign data alone
subject: aligned          # the role that is cut
data:                     # prompt-completion files with a split column (calibration, evaluation)
  harm: ./harm.jsonl
  benign: ./benign.jsonl
  tasks: ./tasks.jsonl
#  trivia: ./trivia.jsonl           # for specificity: a benign behaviour
#  same_style: ./same_style.jsonl   # for specificity: benign answers to the harmful prompts
#  refusals: ./refusals.jsonl       # for dissociation, as are detection and explanation
format: chat              # or raw
target: generation        # which of the targets is the behaviour under study
targets:                  # skip: response tokens that carry the refusal gate are not scored
  generation: {data: harm, skip: 3, limit: 412}
#  benign: {data: trivia}
#  matched: {data: same_style, skip: 3}
#  refusal: {data: refusals}
preserve: {data: benign, limit: 412, reduction: mean_of_abs}
selection: {p: 5.0e-5, scope: tensor}
attack: {name: prefill, tokens: 10}
evaluation:
  probes: {generation: harm, utility: tasks}   # utility by exact match; or likelihood: benign
  judge: keyword          # exact needs an answer key; keyword sees refusals only
  max_new_tokens: 256
  batch_size: 16
studies:
"""


def template(name: str) -> str:
    """Return a configuration with one study switched on and its defaults written out."""
    section = Studies.model_fields[name].annotation
    # The annotation is `Section | None`; the section is its first part.
    defaults = section.__args__[0]().model_dump(mode="json")  # type: ignore[union-attr]
    if "fractions" in defaults:
        # An 8B model lives at a hundredth of the organism's fractions.
        defaults["fractions"] = [2e-6, 5e-6, 1e-5, 2e-5, 5e-5]
    if "control_fractions" in defaults:
        defaults["control_fractions"] = [5e-6, 2e-5, 1e-4]
    if "fraction" in defaults:
        defaults["fraction"] = 1e-5
    return HEAD + _indent(yaml.safe_dump({name: defaults}, sort_keys=False))


def _indent(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
