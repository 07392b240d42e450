"""What a page says where cuts shared the passes of a model, or lm-eval measured utility."""

from __future__ import annotations

from collections.abc import Mapping


def shared_passes(provenance: Mapping[str, object]) -> str:
    """Return sentences on how variants were asked together; "" where each was asked by itself.

    Args:
        provenance: Of a run's `results.json`; `together` is what `resect.runs.joint` says.
    """
    together = provenance.get("together")
    if not isinstance(together, Mapping):
        return ""
    lines = [
        f"{together['cells']} variants were asked together, up to {together['most']} in a pass; "
        "their numbers differ by rounding from those of variants that are asked one by one."
    ]
    alone = together["alone"]
    if alone:
        reasons = "; ".join(f"{count} because {reason}" for reason, count in alone.items())
        lines.append(f"Asked alone were {reasons}.")
    lines.append(_checked(together.get("checked")))
    return " ".join(lines)


def by_tasks(provenance: Mapping[str, object]) -> str:
    """Return which lm-eval tasks utility is, as a sentence; "" where it is none.

    Args:
        provenance: Of a run's `results.json`.
    """
    tasks = provenance.get("utility_tasks")
    return f"Utility is asked and marked by {tasks}." if isinstance(tasks, str) else ""


def _checked(checked: object) -> str:
    if not isinstance(checked, Mapping):
        return "How many tokens differ was not checked (evaluation.check_together)."
    differences = []
    if checked["tokens"]:
        share = 100 * checked["different"] / checked["tokens"]
        differences.append(
            f"{checked['different']} of {checked['tokens']:,} tokens differ ({share:.2g} %)"
        )
    if checked["nll"] is not None:
        differences.append(f"mean NLLs differ by at most {checked['nll']:.1g} nats a token")
    return (
        f"Of {checked['cells']} of them, which were asked alone as well with {checked['replies']} "
        f"replies, {' and '.join(differences) or 'nothing could be compared'}."
    )
