"""Replies of a model behind a server that speaks OpenAI's completions protocol, such as vLLM.

Prompts are encoded here, with the tokenizer of the same checkpoint, and sent as token ids, so that
a server sees the tokens that the model in memory would. What it serves is its own affair: to
evaluate a cut, serve the folder that `resect prune` wrote. Only servers on this machine are asked,
because prompts of a red-team set should not leave it by accident; another one has to be asked for.

Greedy replies agree with those in memory as far as two engines' arithmetic does. Sampled ones are
drawn from the server's own streams, seeded by prompt and sample.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from resect import stats
from resect.data.encode import check_format, decode, prompt_text
from resect.data.load import BehaviourSet
from resect.errors import InputError
from resect.evaluation.ask import EvaluationSettings
from resect.evaluation.attacks import AttackSettings, attack_prompt
from resect.evaluation.decode import GenerationSettings, repetition
from resect.evaluation.probes import find_probe
from resect.records import Reply

PREFIX = "openai:"
KEY = "RESECT_API_KEY"
TIMEOUT = 600.0
# Requests at a time: enough to fill a server's batches.
TOGETHER = 64


@dataclass(frozen=True)
class Server:
    """Where a served model answers.

    Attributes:
        scheme: `http` or `https`.
        host: Name or address.
        port: TCP port.
        path: What stands before `/completions`.
        model: Name under which the server knows its model; "" to ask the server.
    """

    scheme: str
    host: str
    port: int
    path: str
    model: str = ""


def parse_backend(text: str, *, allow_remote: bool = False) -> Server:
    """Read `openai:URL` or `openai:URL#MODEL`, for instance `openai:http://127.0.0.1:8000/v1`.

    Raises:
        InputError: It is something else, or a server elsewhere that was not asked for.
    """
    parts = urlsplit(text.removeprefix(PREFIX))
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    if not text.startswith(PREFIX) or parts.scheme not in ("http", "https") or not port:
        raise InputError(
            "cannot read the backend",
            got=repr(text),
            allowed="hf, or openai:URL such as openai:http://127.0.0.1:8000/v1",
        )
    host = parts.hostname or ""
    if not allow_remote and not _is_here(host):
        raise InputError(
            "the server is not on this machine, and prompts would leave it",
            got=host,
            allowed="127.0.0.1, ::1 or localhost",
            fix="add --allow-remote if that is meant",
        )
    return Server(parts.scheme, host, port, parts.path.rstrip("/"), parts.fragment)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def served_model(server: Server) -> str:
    """Return the name of what a server serves.

    Raises:
        InputError: It does not answer, or serves none or several.
    """
    if server.model:
        return server.model
    listed = _ask(server, "GET", "/models").get("data")
    names = [str(one.get("id")) for one in listed] if isinstance(listed, list) else []
    if len(names) != 1:
        raise InputError(
            "the server does not serve one model",
            got=", ".join(names) or "none",
            fix=f"name one behind the address: {PREFIX}URL#NAME",
        )
    return names[0]


def ask_server(
    server: Server,
    tokenizer: Any,
    probes: Mapping[str, BehaviourSet],
    settings: EvaluationSettings,
) -> list[Reply]:
    """Return the replies of a served model to all probes.

    Replies carry no likelihood under the intact model, since there is none in memory.

    Args:
        server: From `parse_backend`.
        tokenizer: The tokenizer of the served checkpoint.
        probes: Probe name to the examples that it is put to.
        settings: How to ask; model attacks cannot be made on a server.

    Raises:
        InputError: An attack on weights, a probe that needs the model's distributions, or a server
            that does not answer as it should.
    """
    check_format(tokenizer, settings.format)
    if settings.attack.model != "none":
        raise InputError(
            "a served model's weights cannot be attacked",
            got=settings.attack.model,
            fix="attack it in memory (--backend hf), or serve the attacked checkpoint",
        )
    numeric = [name for name in probes if find_probe(name).judged == "never"]
    if numeric:
        raise InputError(
            "a server gives replies, and these probes need the model's distributions",
            got=", ".join(numeric),
            fix="put them to the model in memory: --backend hf",
        )
    name = served_model(server)
    return [
        reply
        for probe, examples in probes.items()
        for reply in _answers(server, name, tokenizer, (probe, examples), settings)
    ]


def _answers(
    server: Server,
    model: str,
    tokenizer: Any,
    question: tuple[str, BehaviourSet],
    settings: EvaluationSettings,
) -> list[Reply]:
    probe, examples = find_probe(question[0]), question[1]
    how = settings.generation
    prompted = settings.attack.opens(probe.name, default=probe.attacked)
    attack = settings.attack if prompted else AttackSettings(name="none")
    asked = [(example, at) for example in examples.examples for at in range(how.samples)]
    prompts = [attack_prompt(attack, example, tokenizer, settings.format) for example, _ in asked]
    bodies = [
        _body(model, prompt.ids, how, f"reply/{probe.name}/{example.id}/{at}")
        for (example, at), prompt in zip(asked, prompts, strict=True)
    ]
    with ThreadPoolExecutor(TOGETHER) as pool:
        answers = list(pool.map(lambda body: _ask(server, "POST", "/completions", body), bodies))
    replies = []
    for (example, at), prompt, answer in zip(asked, prompts, answers, strict=True):
        text, tokens = _reply_of(answer, tokenizer)
        replies.append(
            Reply(
                example_id=example.id,
                probe=probe.name,
                attack=settings.attack.label(prompted=prompted),
                category=example.category,
                prompt=prompt_text(example),
                prefix=prompt.prefix,
                text=text,
                key=example.key,
                reference=example.completion,
                repetition=repetition(tokens) if probe.coherent else None,
                sample=at,
            )
        )
    return replies


def _body(model: str, ids: Sequence[int], how: GenerationSettings, label: str) -> dict[str, Any]:
    body = {
        "model": model,
        "prompt": list(ids),
        "max_tokens": how.max_new_tokens,
        "temperature": how.temperature,
        # The whole softmax, whatever the checkpoint's own settings say.
        "top_p": 1.0,
        "n": 1,
        # Understood by vLLM; servers that know it not ignore it.
        "return_token_ids": True,
    }
    if how.temperature > 0:
        body["seed"] = stats.seed_of(label, how.seed) % 2**31
    return body


def _reply_of(answer: dict[str, Any], tokenizer: Any) -> tuple[str, list[int]]:
    """Return text and tokens of a reply; tokens are read off the text if the server gives none."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    text, tokens = first.get("text"), first.get("token_ids")
    if not isinstance(text, str):
        raise InputError("the server's answer holds no reply", got=json.dumps(answer)[:200])
    if isinstance(tokens, list):
        ids = [int(token) for token in tokens]
        return decode(tokenizer, ids), ids
    return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _ask(
    server: Server, method: str, place: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    kind = http.client.HTTPSConnection if server.scheme == "https" else http.client.HTTPConnection
    connection = kind(server.host, server.port, timeout=TIMEOUT)
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {os.environ[KEY]}"
    where = f"{server.scheme}://{server.host}:{server.port}{server.path}{place}"
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, server.path + place, content, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            "the server does not answer", got=f"{where}: {error}", fix="start it, or mend the URL"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise InputError(
            "the server refuses a request", got=f"{where}: {response.status} {text[:300]}"
        )
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError("the server's answer is not JSON", got=text[:200]) from error
    if not isinstance(found, dict):
        raise InputError("the server's answer is no JSON object", got=text[:200])
    return found
