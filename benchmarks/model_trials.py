"""What a type of causal LM goes through at small size: scored, cut, restored, streamed, tuned.

A step is `exact`, `same`, `held`, … where it worked. Where resect refuses it, it is the message;
anything else that is raised is a bug.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_types
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from resect.attribution.engine import attribute_many
from resect.attribution.offloaded import attribute_streamed
from resect.attribution.settings import Pass
from resect.edit import prune_checkpoint, removed, restore_checkpoint
from resect.edit.hold import HoldMask
from resect.edit.tune import adapter, reach
from resect.errors import ResectError
from resect.model import find_prunable, load_model
from resect.model.on_disk import open_shelf
from resect.records import Encoded
from resect.weights.mask import Mask
from resect.weights.scores import Scores
from resect.weights.select import select

# Prompts are of the words that are no special tokens of any small configuration.
LOWEST, HIGHEST = 4, 40
# What a step says that failed with anything but a message of ours.
BROKEN = "broken: "
OTHER_LAYOUT = "save_original_format=False"
STEPS = ("cut", "folder", "stream", "hold", "lora")


def examples(count: int, seed: int) -> list[Encoded]:
    """Return encoded examples of different lengths, of which the second half is scored."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 12, (count,), generator=draw).tolist()
    rows = [torch.randint(LOWEST, HIGHEST, (n,), generator=draw).tolist() for n in lengths]
    return [Encoded(f"e{n}", tuple(ids), len(ids) // 2) for n, ids in enumerate(rows)]


def tokenizer() -> Any:
    """Return a tokenizer of a small vocabulary of invented words."""
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{n}": n for n in range(2, model_types.VOCABULARY)}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def filled(model_type: str, seed: int = 0) -> Any:
    """Return a small model of random weights that are large enough for losses to react to a cut."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(model_types.configuration(model_type, small=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.endswith(("A_log", "D")):
                parameter.normal_(std=0.2)
        stored = model.state_dict()
        for name, buffer in model.named_buffers():
            # A decay says by its zeros which tokens are seen.
            if name in stored and buffer.is_floating_point() and "decay" not in name:
                buffer.add_(torch.randn_like(buffer), alpha=0.1)
    return model.eval()


def trial(model_type: str, folder: Path) -> dict[str, str]:
    """Return what became of each step, by its name.

    A type whose usual files are refused is tried as the message says, and `saved` says how.

    Args:
        model_type: A type that can be built.
        folder: An empty folder for its checkpoints.
    """
    outcomes = _steps(model_type, folder / "usual", original=True)
    if OTHER_LAYOUT not in outcomes.get("cut", ""):
        return outcomes
    return {"saved": OTHER_LAYOUT} | _steps(model_type, folder / "other", original=False)


def _steps(model_type: str, folder: Path, *, original: bool) -> dict[str, str]:
    source = folder / "model"
    filled(model_type).save_pretrained(source, save_original_format=original)
    # The text half of a wrapper names its own configuration, which no folder of that type has.
    model_types.configuration(model_type, small=True).save_pretrained(source)
    tokenizer().save_pretrained(source)
    made: dict[str, Mask] = {}

    def cut() -> str:
        made["mask"] = masked(source)
        return in_memory(source, made["mask"])

    steps: dict[str, Callable[[], str]] = {
        "cut": cut,
        "folder": lambda: on_disk(source, made["mask"], folder),
        "stream": lambda: streamed(source),
        "hold": lambda: held(source, made["mask"]),
        "lora": lambda: reached(source),
    }
    outcomes: dict[str, str] = {}
    for name, step in steps.items():
        try:
            outcomes[name] = step()
        except ResectError as error:
            outcomes[name] = " ".join(str(error).replace(str(source), "the folder").split())
        except Exception as error:  # noqa: BLE001 - the map says what is broken, and goes on
            outcomes[name] = f"{BROKEN}{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if "mask" not in made:
            break
    return outcomes


def scored(source: Any, seed: int) -> Scores:
    """Return the scores of four examples; of a folder that is read block by block, too."""
    settings = Pass(dense=True, batch_size=2)
    if hasattr(source, "blocks"):
        return attribute_streamed(source, examples(4, seed), settings=settings)["signed"]
    return attribute_many(*source, examples(4, seed), settings=settings)["signed"]


def masked(source: Path) -> Mask:
    """Return a mask of a folder: needed for one set of examples and not for another."""
    loaded = load_model(source, device="cpu")
    mask = select(scored(loaded, 1), scored(loaded, 2), q=0.2, p=0.1)
    if not mask.count:
        raise AssertionError("nothing was selected")
    return mask


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the loss of the next token; what GIT computes itself counts tokens of an image."""
    return torch.nn.functional.cross_entropy(logits(model, ids)[0, :-1], ids[0, 1:])


def in_memory(source: Path, mask: Mask) -> str:
    """Cut a loaded model and put it back."""
    model = load_model(source, device="cpu").model
    before = parameters(model)
    zeros = sum(int((tensor == 0).sum()) for tensor in before.values())
    ids = torch.tensor([examples(1, 3)[0].input_ids])
    with torch.no_grad():
        intact = logits(model, ids)
        other = ids.clone()
        other[0, -1] = HIGHEST
        seen = logits(model, other)[0, -ids.shape[1] : -1] - intact[0, -ids.shape[1] : -1]
        if float(seen.abs().max()) > 1e-4:
            raise AssertionError("tokens are predicted from those that follow them")
        with removed(model, mask):
            cut = sum(int((tensor == 0).sum()) for tensor in parameters(model).values()) - zeros
            changed = not torch.equal(logits(model, ids), intact)
        whole = torch.equal(logits(model, ids), intact)
    if cut != mask.count or not changed:
        raise AssertionError(f"{cut} zeros of {mask.count}, logits changed: {changed}")
    if not whole or not same(before, parameters(model)):
        raise AssertionError("the model is not as it was")
    return "exact"


def on_disk(source: Path, mask: Mask, folder: Path) -> str:
    """Cut a folder and restore it: the cut is that in memory, the end the same bytes."""
    model = load_model(source, device="cpu").model
    with removed(model, mask):
        expected = parameters(model)
    prune_checkpoint(source, mask, folder / "cut")
    if not same(expected, parameters(load_model(folder / "cut", device="cpu").model)):
        raise AssertionError("the folder is not cut as the model is")
    restore_checkpoint(folder / "cut", mask, folder / "whole")
    files = [place / "model.safetensors" for place in (source, folder / "whole")]
    if files[0].read_bytes() != files[1].read_bytes():
        raise AssertionError("the restored folder is not the one that was cut")
    return "exact"


def streamed(source: Path) -> str:
    """Score a folder block by block."""
    memory = scored(load_model(source, device="cpu"), 1)
    blocks = scored(open_shelf(source, device="cpu"), 1)
    for name, expected in memory.tensors.items():
        dense = [torch.zeros(expected.shape).reshape(-1) for _ in range(2)]
        for values, tensor in zip(dense, (expected, blocks.tensors[name]), strict=True):
            values[tensor.index] = tensor.value
        torch.testing.assert_close(*dense, rtol=1e-4, atol=1e-5)
    return "same"


def held(source: Path, mask: Mask) -> str:
    """Train a cut model for two steps: its zeros stay and other weights move."""
    model = load_model(source, device="cpu").model
    ids = torch.tensor([examples(1, 3)[0].input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    hold = HoldMask(mask)
    with hold.holding(model, optimizer):
        before = parameters(model)
        for _ in range(2):
            optimizer.zero_grad()
            loss(model, ids).backward()
            optimizer.step()
        moved = sum(
            not torch.equal(before[name], tensor) for name, tensor in parameters(model).items()
        )
    again = hold.apply(model)
    if again or not moved:
        raise AssertionError(f"{again} weights were not held, {moved} tensors moved")
    return "held"


def reached(source: Path) -> str:
    """Put adapters on a model, and say which share of the prunable weights has one."""
    from peft import get_peft_model

    model = load_model(source, device="cpu").model
    weights = {w.name: model.get_parameter(w.name) for w in find_prunable(model).weights}
    adapted = get_peft_model(model, adapter(model, 2, 4))
    share, elsewhere = reach(adapted, weights)
    ids = torch.tensor([examples(1, 3)[0].input_ids])
    loss(adapted, ids).backward()
    if elsewhere:
        raise AssertionError(f"{elsewhere} weights beside the prunable ones have an adapter")
    return "all" if share == 1 else f"{share:.4f}"
