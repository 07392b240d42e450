"""Ways out: masks from and to the Hub, cut checkpoints and GGUF files, patches for servers."""

from resect.export.card import Card, checkpoint_card, mask_card
from resect.export.checkpoint import export_checkpoint, unexport_checkpoint
from resect.export.gate import Gate, pass_gate
from resect.export.gguf import GgufCut, export_gguf
from resect.export.hub import from_pretrained, load_mask, push_mask
from resect.export.patch import write_patch

__all__ = [
    "Card",
    "Gate",
    "GgufCut",
    "checkpoint_card",
    "export_checkpoint",
    "export_gguf",
    "from_pretrained",
    "load_mask",
    "mask_card",
    "pass_gate",
    "push_mask",
    "unexport_checkpoint",
    "write_patch",
]
