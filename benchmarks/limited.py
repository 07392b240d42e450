"""Score a model that is three times as large as the memory it is given; the mask must hold.

A Llama with random weights is scored twice: in memory, without a limit, and in a process whose
limit of data (RLIMIT_DATA) is what the process holds already, after a warm-up on a tiny model, plus
a third of the weights' size. `resect score` has to choose by itself to read it block by block. In
the same process the model is then to be held in memory (`--no-stream`), which has to end with the
project's message.

RLIMIT_DATA counts what is reserved for data, touched or not: heap, tensors, and files that are
mapped privately and writable, of which there must be none as large as the weights. Files that are
read through the system's cache are not counted; --group counts those, too: it puts the process into
a control group of its own (version 1 or 2; needs root). The kernel drops clean pages of files when
the limit is near, and kills the process when that does not help.

    python benchmarks/limited.py                  160 MB of weights, 54 MB of memory
    python benchmarks/limited.py --hidden 1024 --layers 48 --group
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SHARE = 3
Q, KEEP = 1e-4, 1e-3
WORDS = 64


class Size(NamedTuple):
    """A Llama: width, width of its MLP, blocks, examples and words of each."""

    hidden: int
    middle: int
    layers: int
    examples: int = 16
    length: int = 48


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(WORDS)}
    backend = Tokenizer(WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w1")


def build(folder: Path, size: Size) -> Path:
    """Write a checkpoint and its data; return the data."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from resect.files.writing import write_text
    from resect.stats import rng

    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.middle,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=WORDS,
        tie_word_embeddings=True,
        max_position_embeddings=2 * size.length,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    draw = rng("benchmarks/limited", 0)

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in draw.integers(2, WORDS, count))

    half = size.length // 2
    rows = [
        {"id": f"e{number}", "prompt": words(half), "completion": words(half)}
        for number in range(size.examples)
    ]
    path = folder / "data.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def weights_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def mask_of(folder: Path, data: Path, stream: bool | None, on_note: Callable[[str], None]) -> Any:
    from resect.attribution.score import ScoreRequest, score_model
    from resect.attribution.settings import Origin, Pass
    from resect.weights.select import select

    request = ScoreRequest(
        str(folder), str(data), Pass(keep=KEEP), Origin(format="raw"), stream=stream
    )
    scores = score_model(request, on_note=on_note)
    return select(scores, None, q=Q, p=0, scope="model"), scores.meta.streamed


def status() -> dict[str, int]:
    """Return bytes by name of what /proc says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {
        name: int(value.split()[0]) * 1024 for name, value in pairs if value.strip().endswith("kB")
    }


def child(folder: Path, data: Path, tiny: Path, output: Path, *, group: bool) -> dict[str, Any]:
    """Score within the limit, then try to hold the model in memory."""
    import resource

    from resect.errors import InputError

    notes: list[str] = []
    for stream in (True, False):
        mask_of(tiny, tiny / "data.jsonl", stream, notes.append)
    before = status()
    allowed = weights_of(folder) // SHARE
    if group:
        # What was reserved before stays with the old group.
        enter_group(allowed)
    else:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (before["VmData"] + allowed, hard))
    start = time.perf_counter()
    mask, streamed = mask_of(folder, data, None, notes.append)
    seconds, peak = time.perf_counter() - start, status()["VmHWM"]
    mask.save(output)
    measured = {
        "limit": allowed,
        "resident": peak - max(before["VmHWM"], before["VmRSS"]),
        "seconds": seconds,
        "streamed": streamed,
        "notes": notes,
        "in_memory": "not tried: the kernel kills it without a message",
    }
    if not group:
        try:
            mask_of(folder, data, False, notes.append)
            measured["in_memory"] = "done"
        except InputError as error:
            measured["in_memory"] = str(error)
    return measured


def enter_group(limit: int) -> None:
    """Put this process into a control group of its own with a limit of memory."""
    root = Path("/sys/fs/cgroup/memory")
    name, limit_file = f"resect-{os.getpid()}", "memory.limit_in_bytes"
    if not root.is_dir():
        root, limit_file = Path("/sys/fs/cgroup"), "memory.max"
    group = root / name
    group.mkdir()
    (group / limit_file).write_text(str(limit))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def measure(size: Size, *, group: bool = False) -> dict[str, Any]:
    """Score a model of a size in memory and within the limit; return what was found."""
    import torch

    from resect.weights.mask import Mask

    with tempfile.TemporaryDirectory() as scratch:
        folder, tiny, output = (Path(scratch, name) for name in ("large", "tiny", "m.safetensors"))
        data = build(folder, size)
        build(tiny, Size(16, 24, 2, 2, 8))
        expected, streamed = mask_of(folder, data, False, print)
        flags = ["--group"] if group else []
        run = subprocess.run(
            [sys.executable, __file__, *flags, "--child", folder, data, tiny, output],
            capture_output=True,
            text=True,
            check=False,
        )
        for leftover in Path("/sys/fs/cgroup").glob("**/resect-*" if group else "none"):
            leftover.rmdir()
        if run.returncode:
            raise SystemExit(f"the limited process ended with {run.returncode}:\n{run.stderr}")
        measured: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        mask = Mask.load(output)
        same = all(
            torch.equal(mask.tensors[name].index, entry.index)
            and torch.equal(mask.tensors[name].value, entry.value)
            for name, entry in expected.tensors.items()
        )
        reference = {"weights": weights_of(folder), "mask": mask.count, "same_mask": same}
        return reference | {"plain_streamed": streamed} | measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--group", action="store_true", help="limit by a control group; needs root")
    parser.add_argument("--child", type=Path, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child, group=options.group)))
        return
    size = Size(options.hidden, 64 * (options.hidden * 8 // 3 // 64), options.layers)
    measured = measure(size, group=options.group)
    print(json.dumps(measured, indent=1))
    sys.exit(
        not (measured["same_mask"] and measured["streamed"] and measured["in_memory"] != "done")
    )


if __name__ == "__main__":
    main()
