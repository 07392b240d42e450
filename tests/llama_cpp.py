"""llama.cpp's own reader, by the package xllamacpp, in a process of its own.

Run as a program it reads JSON {"model", "prompts", "tokens", "without"} and prints the answers as
JSON. A prompt is a text, which llama.cpp splits itself, or a list of ids. The package may be
installed beside the tests, or beside the interpreter that RESECT_LLAMA_CPP_PYTHON names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "xllamacpp"
INTERPRETER = "RESECT_LLAMA_CPP_PYTHON"
ABSENT = f"llama.cpp is not here: pip install {PACKAGE}, or name an interpreter in {INTERPRETER}"


class Answer(NamedTuple):
    """What llama.cpp makes of a prompt.

    Attributes:
        prompt: Number of tokens of the prompt.
        reply: Greedy ids behind it.
        log_probabilities: Those of the first token of the reply by id, in nats.
    """

    prompt: int
    reply: list[int]
    log_probabilities: dict[int, float]


def interpreter() -> str | None:
    """Return an interpreter that has the package, None if there is none."""
    named = os.environ.get(INTERPRETER)
    if named:
        return named
    return sys.executable if importlib.util.find_spec(PACKAGE) else None


def ask(
    model: Path,
    prompts: Sequence[str | list[int]],
    tokens: int,
    *,
    without: Sequence[int] = (),
) -> list[Answer]:
    """Let llama.cpp read a file and reply.

    Args:
        model: The GGUF file.
        prompts: Texts or ids.
        tokens: Length of each reply.
        without: Ids that no reply may hold. Bytes that are no text of their own must be among them:
            the server drops what it cannot show.
    """
    python = interpreter()
    assert python is not None, ABSENT
    question = {"model": str(model), "prompts": prompts, "tokens": tokens}
    question["without"] = list(without)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, __file__],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [
        Answer(count, reply, {int(key): value for key, value in first.items()})
        for count, reply, first in json.loads(done.stdout.splitlines()[-1])
    ]


def _answers(question: dict[str, Any]) -> list[tuple[int, list[int], dict[int, float]]]:
    import xllamacpp as llama  # type: ignore[import-not-found, unused-ignore]

    settings = llama.CommonParams()
    settings.model.path = question["model"]
    settings.n_ctx, settings.n_parallel, settings.warmup = 512, 1, False
    settings.verbosity = -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    # Keys and values in full, as transformers holds them.
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = llama.Server(settings)
    answers = []
    for prompt in question["prompts"]:
        reply = server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": question["tokens"],
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
                "logit_bias": [[banned, False] for banned in question["without"]],
                "n_probs": 400,
            }
        )
        steps = reply["choices"][0]["logprobs"]["content"]
        first = {each["id"]: each["logprob"] for each in steps[0]["top_logprobs"]}
        answers.append((reply["usage"]["prompt_tokens"], [step["id"] for step in steps], first))
    return answers


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answers(json.loads(sys.stdin.read()))) + "\n")
    sys.stdout.flush()
    # Its threads are not waited for.
    os._exit(0)
