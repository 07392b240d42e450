"""Behaviour sets: prompt-completion rows, loaded, checked and encoded."""

from resect.data.encode import PromptIds, encode, encode_prompt
from resect.data.load import BehaviourSet, check_disjoint, load_data
from resect.data.preset import find_preset, preset_names

__all__ = [
    "BehaviourSet",
    "PromptIds",
    "check_disjoint",
    "encode",
    "encode_prompt",
    "find_preset",
    "load_data",
    "preset_names",
]
