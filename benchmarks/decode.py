"""What replies cost, against an earlier build: ratios of arms that take turns.

    python benchmarks/decode.py [--quick] [--before DIR/src] [--vllm PYTHON] [--model FOLDER]
        [--dtype bfloat16] [--before-dtype float32] [-o FILE]

64 prompts are answered greedily by a random Llama of the organism's size and by one of the shape of
SmolLM2-135M, or by the checkpoint FOLDER. Two cases each: all replies have the same length, or they
end at words that come up by chance. Arms:

    before        the build of --before, if there is one
    generate      this build, but by transformers' loop, as for a model that fails the trial
    now           this build
    continuous    this build, with `decoding: continuous`
    vllm          vLLM's engine in the environment of another interpreter, on one core; its cache
                  of prefixes is off, since the same prompts come again in each round
    floor         the products of inputs and weights alone, with as many rows as there are prompts

A ratio is taken within a round, of seconds of processor time, which another process disturbs less.
Tokens that differ from those of the arm before are counted.
RESECT_PRODUCTS=torch has this build multiply as earlier ones do. Run it on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import import_module, util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

HERE = Path(__file__).resolve()
ARMS = ("generate", "now", "continuous", "floor")
# Begins the lines in which a process answers.
ANSWER = "answer "


class Size(NamedTuple):
    """A model and what it is asked.

    Attributes:
        name: Shown in tables.
        hidden: Width.
        inner: Width of the MLP.
        layers: Blocks.
        heads: Of queries.
        shared: Of keys and values.
        words: Of the vocabulary.
        prompts: How many.
        lengths: Words of the shortest and of the longest prompt.
        tokens: Most new tokens of a reply.
        batch: Prompts of a batch.
        opening: Words that all prompts open with, as by a chat template.
        folder: A checkpoint that stands in the place of the random model.
        dtype: Of the weights.
    """

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    shared: int
    words: int
    prompts: int = 64
    lengths: tuple[int, int] = (24, 48)
    tokens: int = 48
    batch: int = 16
    opening: int = 0
    folder: str = ""
    dtype: str = "float32"


SIZES = (
    Size("organism, batches of 16", 128, 384, 4, 4, 4, 512, lengths=(8, 20)),
    Size("organism, batches of 64", 128, 384, 4, 4, 4, 512, lengths=(8, 20), batch=64),
    Size("SmolLM2, batches of 16", 576, 1536, 30, 9, 3, 49152),
    Size("SmolLM2, batches of 64", 576, 1536, 30, 9, 3, 49152, batch=64),
    Size("SmolLM2 behind a system prompt", 576, 1536, 30, 9, 3, 49152, opening=24),
)
TINY = Size("tiny", 16, 24, 2, 2, 1, 64, prompts=5, lengths=(3, 6), tokens=4, batch=2)
CASES = ("one length", "ends")
# Of the case of ends: one word of so many ends a reply.
ONE_END_OF = 24


def model_of(size: Size) -> Any:
    """Return the model, the same one for other prompts."""
    return _model(size._replace(name="", prompts=0, lengths=(0, 0), tokens=0, batch=0, opening=0))


@lru_cache(maxsize=1)
def _model(size: Size) -> Any:
    """Return the model; a random one has the same weights in every process."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if size.folder:
        dtype = getattr(torch, size.dtype)
        return AutoModelForCausalLM.from_pretrained(size.folder, dtype=dtype).eval()
    config = LlamaConfig(
        vocab_size=size.words,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.shared,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1 / parameter.shape[-1] ** 0.5)
    return model.to(getattr(torch, size.dtype))


class Words:
    """What `generate` asks of a tokenizer."""

    pad_token_id = 0
    eos_token_id = None


def prompts_of(size: Size) -> list[list[int]]:
    """Return prompts of words drawn at random."""
    draw = torch.Generator().manual_seed(1)

    def drawn(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=draw).tolist()

    opening = drawn(2, size.words, size.opening)
    lengths = drawn(size.lengths[0], size.lengths[1] + 1, size.prompts)
    return [opening + drawn(2, size.words, length)[size.opening // 2 :] for length in lengths]


def ends_of(size: Size, case: str) -> list[int]:
    """Return the words that end a reply."""
    if case != "ends":
        return []
    return list(range(1, size.words, ONE_END_OF))[: size.words // ONE_END_OF]


def replies(model: Any, size: Size, case: str, **named: str) -> list[list[int]]:
    """Answer the prompts by whatever build this process has, with settings of its own."""
    name = "resect.evaluation.decode" if util.find_spec("resect.evaluation") else "resect.generate"
    decode = import_module(name)
    model.generation_config.eos_token_id = ends_of(size, case) or None
    settings = decode.GenerationSettings(size.tokens, size.batch, **named)
    answers: list[list[int]] = decode.generate(model, Words(), prompts_of(size), settings)
    return answers


def floor(model: Any, size: Size) -> None:
    """Multiply what a pass multiplies: prompts batch by batch, then each token of all at once."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    *inner, head = weights
    lengths = sorted((len(prompt) for prompt in prompts_of(size)), reverse=True)
    dtype = weights[0].dtype

    def random(rows: int, weight: torch.Tensor) -> torch.Tensor:
        return torch.randn(rows, weight.shape[1]).to(dtype)

    inputs = {weight: random(size.prompts, weight) for weight in weights}
    with torch.inference_mode():
        for start in range(0, size.prompts, size.batch):
            rows = lengths[start] * len(lengths[start : start + size.batch])
            for weight in inner:
                nn.functional.linear(random(rows, weight), weight)
        for _ in range(size.tokens):
            for weight in (*inner, head):
                nn.functional.linear(inputs[weight], weight)


class Here:
    """An arm in this process."""

    def __init__(self, arm: str):
        """Begin without a model."""
        self.arm = arm

    def ask(self, size: Size, case: str) -> Any:
        """Return seconds of processor time, and replies."""
        model, answers = model_of(size), None
        start = time.process_time()
        if self.arm == "floor":
            floor(model, size)
        else:
            with by_generate() if self.arm == "generate" else contextlib.nullcontext():
                named = {"decoding": self.arm} if self.arm == "continuous" else {}
                answers = replies(model, size, case, **named)
        return {"seconds": time.process_time() - start, "replies": answers}

    def end(self) -> None:
        """Let it end."""


@contextlib.contextmanager
def by_generate() -> Iterator[None]:
    """Take every model for one that can only be decoded by transformers' loop."""
    decoding = import_module("resect.evaluation.replies")
    ways_of, ways = decoding.ways_of, import_module("resect.evaluation.tried").Ways(ours=False)
    decoding.ways_of = lambda *_, **_named: ways
    try:
        yield
    finally:
        decoding.ways_of = ways_of


class Served:
    """An arm in a process of its own."""

    def __init__(self, arm: str, command: Sequence[str], environment: Mapping[str, str]):
        """Start it."""
        self.arm = arm
        self.process = subprocess.Popen(
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )

    def ask(self, size: Size, case: str) -> Any:
        """Return seconds of processor time, and replies."""
        return self.answer({"size": size, "case": case})

    def answer(self, request: Mapping[str, object]) -> Any:
        """Return what the process says to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            # What libraries print there is none of ours.
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"{self.arm} ended")

    def end(self) -> None:
        """Let it end."""
        self.process.communicate()


class Before(Served):
    """An earlier build; where that is wanted with weights of another dtype."""

    def __init__(self, source: Path, dtype: str = ""):
        """Start it."""
        super().__init__(
            "before", [sys.executable, str(HERE), "--serve"], {"PYTHONPATH": str(source)}
        )
        self.dtype = dtype

    def ask(self, size: Size, case: str) -> Any:
        """Return seconds of processor time, and replies."""
        return super().ask(size._replace(dtype=self.dtype or size.dtype), case)


class Engine(Served):
    """vLLM, which is given the model as a folder."""

    def __init__(self, python: str, folder: Path):
        """Start it."""
        # In one process, so that its processor time is that of the engine.
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
        super().__init__(
            "vllm", [python, str(HERE), "--serve-vllm"], environment | {"PYTHONPATH": ""}
        )
        self.folder = folder

    def ask(self, size: Size, case: str) -> Any:
        """Return seconds of processor time, and replies."""
        folder = self.folder / f"{size.hidden}-{size.dtype}"
        if not size.folder and not folder.exists():
            model_of(size).save_pretrained(folder)
        return super().ask(size._replace(folder=size.folder or str(folder)), case)


def requests() -> Iterator[tuple[Size, str]]:
    """Yield what comes as lines, each a size and a case."""
    for line in sys.stdin:
        request = json.loads(line)
        yield size_of(request["size"]), request["case"]


def size_of(values: Sequence[Any]) -> Size:
    """Return the size that went through JSON."""
    return Size(*(tuple(value) if isinstance(value, list) else value for value in values))


def keep(path: Path | None, measured: Sequence[Mapping[str, object]]) -> None:
    """Write all numbers of the cases as JSON, if anywhere."""
    if path is not None:
        facts = {"torch": torch.__version__, "machine": platform.processor(), "cases": measured}
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def serve() -> None:
    """Answer requests by the build of this process."""
    torch.set_num_threads(1)
    for size, case in requests():
        print(ANSWER + json.dumps(Here("before").ask(size, case)), flush=True)


def serve_vllm() -> None:
    """Answer requests by vLLM; its settings are its own, but for the prefixes."""
    vllm: Any = import_module("vllm")
    engines: dict[str, Any] = {}
    for size, case in requests():
        if size.folder not in engines:
            # Of several engines in a process the later ones would find the memory taken.
            engines.clear()
            engines[size.folder] = vllm.LLM(
                size.folder,
                dtype=size.dtype,
                skip_tokenizer_init=True,
                enable_prefix_caching=False,
                max_model_len=256,
                max_num_seqs=64,
            )
        ends = ends_of(size, case)
        sampling = vllm.SamplingParams(
            max_tokens=size.tokens,
            temperature=0,
            ignore_eos=True,
            stop_token_ids=ends,
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in prompts_of(size)]
        start = time.process_time()
        outputs = engines[size.folder].generate(prompts, sampling, use_tqdm=False)
        seconds = time.process_time() - start
        words = [list(output.outputs[0].token_ids) for output in outputs]
        print(ANSWER + json.dumps({"seconds": seconds, "replies": words}), flush=True)


def measure(workers: Sequence[Here | Served], size: Size, case: str, rounds: int) -> dict[str, Any]:
    """Measure the arms of a case in turn, after a few prompts to warm up, with its trial."""
    for worker in workers:
        worker.ask(size._replace(prompts=3, tokens=2), case)
    seconds: list[dict[str, float]] = []
    answers: dict[str, list[list[int]]] = {}
    for number in range(rounds):
        took = {}
        for worker in workers[:: 1 if number % 2 == 0 else -1]:
            answer = worker.ask(size, case)
            took[worker.arm] = answer["seconds"]
            answers[worker.arm] = answer["replies"]
        seconds.append(took)
        print(size.name, case, {arm: round(s, 2) for arm, s in took.items()}, flush=True)
    first = workers[0].arm
    return {
        "size": size._asdict(),
        "case": case,
        "rounds": seconds,
        "ratios": {
            worker.arm: sorted(took[first] / took[worker.arm] for took in seconds)
            for worker in workers[1:]
        },
        "tokens": sum(map(len, answers[first])),
        "different": {
            worker.arm: different(answers[first], answers[worker.arm])
            for worker in workers[1:]
            if answers[worker.arm] is not None
        },
    }


def different(before: list[list[int]], after: list[list[int]]) -> int:
    """Return how many tokens of replies are not the same, from the first of each reply on."""
    count = 0
    for one, other in zip(before, after, strict=True):
        same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if same is None and len(one) != len(other):
            same = min(len(one), len(other))
        count += 0 if same is None else max(len(one), len(other)) - same
    return count


def table(measured: list[dict[str, Any]]) -> str:
    """Return the ratios as Markdown."""
    arms = list(measured[0]["ratios"])
    lines = [
        "| model | replies | tokens | "
        + " | ".join(f"{arm}, times as fast" for arm in arms)
        + " | tokens that differ |",
        "|---" * (len(arms) + 4) + "|",
    ]
    for row in measured:
        ratios = [row["ratios"][arm] for arm in arms]
        cells = [f"{statistics.median(r):.2f} ({r[0]:.2f} to {r[-1]:.2f})" for r in ratios]
        off = ", ".join(map(str, row["different"].values()))
        lines.append(
            f"| {row['size']['name']} | {row['case']} | {row['tokens']:,} | "
            + " | ".join(cells)
            + f" | {off} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases and print their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny size that shows it runs")
    parser.add_argument("--before", type=Path, help="src folder of an earlier build")
    parser.add_argument("--before-dtype", default="", help="of the earlier build's weights")
    parser.add_argument("--vllm", default="", help="interpreter of an environment with vLLM")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--model", default="", help="checkpoint folder in the place of SmolLM2")
    parser.add_argument("--only", default="", help="sizes whose name holds this")
    parser.add_argument("--case", default="", help="cases whose name holds this")
    parser.add_argument("--arms", default=",".join(ARMS), help="with commas between")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve-vllm", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, help="write all numbers there, as JSON")
    options = parser.parse_args(arguments)
    if options.serve or options.serve_vllm:
        serve_vllm() if options.serve_vllm else serve()
        return 0
    # An earlier build has neither, and this file serves it as well.
    from resect.machine.products import choose_products
    from resect.model import take_path

    sizes = [TINY] if options.quick else [size for size in SIZES if options.only in size.name]
    torch.set_num_threads(1)
    choose_products()
    take_path()
    workers: list[Here | Served] = [Here(arm) for arm in options.arms.split(",")]
    scratch = tempfile.TemporaryDirectory()
    if options.vllm:
        workers.append(Engine(options.vllm, Path(scratch.name)))
    if options.before:
        workers.insert(0, Before(options.before, options.before_dtype))
    measured = []
    for size in sizes:
        folder = options.model if size.name.startswith("SmolLM2") else ""
        for case in [case for case in CASES if options.case in case]:
            asked = size._replace(folder=folder, dtype=options.dtype)
            measured.append(measure(workers, asked, case, options.rounds))
    for worker in workers:
        worker.end()
    scratch.cleanup()
    print(table(measured))
    keep(options.output, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
