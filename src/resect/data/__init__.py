"""Behaviour sets: prompt-completion rows, loaded, checked and encoded."""

from resect.data.encode import PromptIds, encode, encode_prompt
from resect.data.load import BehaviourSet, check_disjoint, load_data

__all__ = [
    "BehaviourSet",
    "PromptIds",
    "check_disjoint",
    "encode",
    "encode_prompt",
    "load_data",
]
