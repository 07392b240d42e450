"""The commented configurations that `resect study init` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from resect.studies.study import Study

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
target: {target:<18}# which of the targets is the behaviour under study
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
    utility: {utility}
{probes}\
{measure}\
  batch_size: 16
studies:
"""
BY_REPLIES = """\
  judge: keyword          # exact needs an answer key; keyword sees refusals only
  max_new_tokens: 256
  measure: replies        # or likelihood: of the answers in the sets, without replies and judge
"""
BY_LIKELIHOOD = """\
  measure: likelihood     # of the answers in the sets; nothing is decoded or judged
"""


def template(study: Study[Any]) -> str:
    """Return a configuration with one study switched on and its defaults written out."""
    lines = study.template
    values = study.section().model_dump(mode="json") | lines.values
    likelihood = study.measure == "likelihood"
    head = HEAD.format(
        utility="benign       # held-out answers of the kind that is protected"
        if likelihood
        else "tasks        # by answer key; or likelihood: benign",
        measure=BY_LIKELIHOOD if likelihood else BY_REPLIES,
        models=_indented(lines.models, 2),
        harm=lines.harm,
        target=lines.target,
        data=_indented(lines.data, 2),
        targets=_indented(lines.targets, 2),
        attack_data=_indented(lines.attack_data, 0),
        probes=_indented(lines.probes, 4),
    )
    section = yaml.safe_dump({study.name: values}, sort_keys=False)
    return head + _indented(section.splitlines(), 2)


def _indented(lines: Iterable[str], indent: int) -> str:
    return "".join(f"{' ' * indent}{line}\n" for line in lines)
