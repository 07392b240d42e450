"""What an evaluation says of an attack with adapters: which share of the weights it reached."""

from __future__ import annotations

from resect.evaluation.evaluate import PARTIAL, _reached


def test_the_share_is_told_and_one_below_the_whole_is_explained() -> None:
    attacks = {
        "intact": {"attack": "finetune", "adapted_share": 1.0},
        "cut": {"attack": "finetune", "adapted_share": 0.415},
        "other": {"attack": "ablate_refusal"},
    }
    assert _reached({"attacks": attacks}) == [
        "intact: the attack put adapters on 100 % of the prunable weights",
        f"cut: the attack put adapters on 41.5 % of the prunable weights, and {PARTIAL}",
    ]


def test_records_without_it_say_nothing() -> None:
    assert _reached({}) == _reached({"attacks": {}}) == []
