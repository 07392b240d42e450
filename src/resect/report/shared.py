"""What a page says of how variants were asked: together, not everything, or by lm-eval."""

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


def beside_others(provenance: Mapping[str, object]) -> str:
    """Return a sentence on replies whose tokens can depend on the prompts beside them; else "".

    Args:
        provenance: Of a run's `results.json`.
    """
    if provenance.get("decoding") != "continuous":
        return ""
    return (
        "Replies were decoded by continuous batching: where two tokens are equally likely but for "
        "rounding, which of them is said can depend on the prompts beside it, as it does on the "
        "size of a batch (evaluation.decoding)."
    )


def searched_grid(provenance: Mapping[str, object]) -> str:
    """Return sentences on what a search left out; "" where the whole grid was asked.

    Args:
        provenance: Of a run's `results.json`; `search` is what `resect.runs.searching` says.
    """
    search = provenance.get("search")
    if not isinstance(search, Mapping):
        return ""
    share = 100 * search["asked"] / search["grid"] if search["grid"] else 100.0
    return (
        f"The grid was searched by {search['rule']}: {search['asked']:,} of its {search['grid']:,} "
        f"questions were asked ({share:.3g} %), and {search['untouched']} of its "
        f"{search['variants']} variants none. What was not asked has no number here; the tables "
        "named search say of each cut what was asked and why the rest was not."
    )


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
