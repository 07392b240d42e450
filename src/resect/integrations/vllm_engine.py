"""An engine of vLLM that answers over a connection of two processes; resect starts it.

    python -m resect.integrations.vllm_engine DESCRIPTOR

Messages are JSON. The first one holds the arguments of `vllm.LLM`; after it come requests for
replies, `{"bodies": [...]}` as a server of OpenAI's completions takes them, and for another state
of the weights, `{"patch": "FILE"}` or `{"patch": ""}`. Whatever goes wrong ends the process, and
its last lines say why. Like `vllm_worker`, this needs no other package of resect's.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from resect.integrations.vllm_worker import switch

EXTENSION = "resect.integrations.vllm_worker.ResectWorkerExtension"
# GiB for keys and values on a CPU; without it vLLM takes nine tenths of the memory.
ROOM = "2"


def main() -> None:
    """Start an engine and answer until the other side hangs up."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    connection: Connection[bytes, bytes] = Connection(descriptor)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", ROOM)
    vllm = importlib.import_module("vllm")
    engine: Any = vllm.LLM(**json.loads(connection.recv_bytes()), worker_extension_cls=EXTENSION)
    said: object = {"vllm": vllm.__version__}
    while True:
        connection.send_bytes(json.dumps(said).encode())
        try:
            asked = json.loads(connection.recv_bytes())
        except EOFError:
            return
        if "patch" in asked:
            said = switch(engine, asked["patch"], reload=True)
        else:
            said = [_answer(output) for output in _outputs(vllm, engine, asked["bodies"])]


def _outputs(vllm: Any, engine: Any, bodies: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    """Return the engine's outputs to bodies, in their order."""
    options = ("max_tokens", "temperature", "seed", "stop_token_ids")
    sampling = [
        vllm.SamplingParams(**{name: body[name] for name in options if name in body})
        for body in bodies
    ]
    prompts = [{"prompt_token_ids": body["prompt"]} for body in bodies]
    outputs: Sequence[Any] = engine.generate(prompts, sampling, use_tqdm=False)
    return outputs


def _answer(output: Any) -> dict[str, object]:
    """Return an output as a server of completions would."""
    (choice,) = output.outputs
    return {
        "choices": [
            {
                "text": choice.text,
                "token_ids": list(choice.token_ids),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
        ]
    }


if __name__ == "__main__":
    main()
