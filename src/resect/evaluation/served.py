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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from resect import stats
from resect.data.encode import PromptIds, check_format
from resect.data.load import BehaviourSet, check_disjoint
from resect.errors import InputError
from resect.evaluation.ask import NO_ATTACK, EvaluationSettings
from resect.evaluation.decode import GenerationSettings, repetition
from resect.evaluation.probes import Probe, find_probe
from resect.evaluation.questions import Question, questions_for
from resect.evaluation.spoken import Spoken, spoken
from resect.records import Finish, Reply, Tokenizer

PREFIX = "openai:"
KEY = "RESECT_API_KEY"
TIMEOUT = 600.0
# Requests at a time: enough to fill a server's batches.
TOGETHER = 64
# What servers say of the end of a reply; other words are not known.
_FINISHES: Mapping[str, Finish] = {"stop": "stop", "length": "length"}


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
            allowed="hf, vllm, or openai:URL such as openai:http://127.0.0.1:8000/v1",
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
    models = _ask(server, "GET", "/models").get("data")
    names = [str(model.get("id")) for model in models] if isinstance(models, list) else []
    if len(names) != 1:
        raise InputError(
            "the server does not serve one model",
            got=", ".join(names) or "none",
            fix=f"name one behind the address: {PREFIX}URL#NAME",
        )
    return names[0]


class Asking(NamedTuple):
    """What is asked, in whose tokens, and how.

    Attributes:
        tokenizer: The tokenizer of the served checkpoint.
        probes: Probe name to the examples that it is put to.
        settings: How to ask; model attacks cannot be made on a server.
        attack_data: What an attack on the prompt needs, by role.
    """

    tokenizer: Tokenizer
    probes: Mapping[str, BehaviourSet]
    settings: EvaluationSettings
    attack_data: Mapping[str, BehaviourSet] | None = None


# Requests to the answers in their order.
Complete = Callable[[Sequence[Mapping[str, object]]], Sequence[Mapping[str, Any]]]


def ask_server(server: Server, asking: Asking) -> list[Reply]:
    """Return the replies of a served model to all probes.

    Replies carry no likelihood under the intact model, since there is none in memory.

    Args:
        server: From `parse_backend`.
        asking: What to ask.

    Raises:
        InputError: An attack on weights, a probe that needs the model's distributions, or a server
            that does not answer as it should.
    """
    refuse_unservable(asking)
    model = served_model(server)

    def complete(bodies: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
        named = [{"model": model, **body} for body in bodies]
        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(lambda body: _ask(server, "POST", "/completions", body), named))

    return answers_through(complete, asking)


def refuse_unservable(asking: Asking) -> None:
    """Refuse what can only be asked of a model in memory.

    Raises:
        InputError: An attack on weights, a probe that needs the model's distributions, a format
            that the tokenizer does not have, examples that an attack shows and a probe asks, or
            ones that cannot be asked so.
    """
    tokenizer, probes, settings, attack_data = asking
    check_format(tokenizer, settings.format)
    if settings.attack.model != "none":
        raise InputError(
            "a served model's weights cannot be attacked",
            got=settings.attack.model,
            fix="attack it in memory (--backend hf), or serve the attacked checkpoint",
        )
    if settings.attack.suffix is not None:
        raise InputError(
            "a suffix is sought by the gradients of a model, and a server gives none",
            got="gcg",
            fix="attack it in memory (--backend hf)",
        )
    numeric = [name for name in probes if not find_probe(name).decoded]
    if numeric:
        raise InputError(
            "a server gives replies, and these probes need the model's distributions",
            got=", ".join(numeric),
            fix="put them to the model in memory: --backend hf",
        )
    for examples in probes.values():
        for shown in (attack_data or {}).values():
            check_disjoint(shown.split("calibration"), examples)
    for name, examples in probes.items():
        _questions(asking, find_probe(name), examples)


def answers_through(complete: Complete, asking: Asking) -> list[Reply]:
    """Return the replies to all probes of whatever completes prompts.

    Args:
        complete: Takes requests as a server of completions does, and returns such answers.
        asking: What to ask; `refuse_unservable` has looked at it.

    Raises:
        InputError: An answer holds no reply.
    """
    return [
        reply
        for name, examples in asking.probes.items()
        for reply in _answers(complete, asking, find_probe(name), examples)
    ]


def _questions(asking: Asking, probe: Probe, examples: BehaviourSet) -> list[Question]:
    settings = asking.settings
    prompted = settings.attack.opens(probe.name, default=probe.attacked)
    return questions_for(
        examples.examples,
        asking.tokenizer,
        settings.attack if prompted else NO_ATTACK,
        format=settings.format,
        samples=settings.generation.samples,
        attack_data=asking.attack_data,
    )


def _answers(
    complete: Complete, asking: Asking, probe: Probe, examples: BehaviourSet
) -> list[Reply]:
    tokenizer, settings = asking.tokenizer, asking.settings
    questions = _questions(asking, probe, examples)
    end = tokenizer.eos_token_id
    answers = complete([_body(probe, question, settings.generation, end) for question in questions])
    prompted = settings.attack.opens(probe.name, default=probe.attacked)
    attack = settings.attack.label(prompted=prompted)
    replies = []
    for question, answer in zip(questions, answers, strict=True):
        reply, tokens = _read(answer, tokenizer, question.prompt)
        repeated = repetition(tokens) if probe.coherent else None
        replies.append(question.answered(probe.name, attack, reply, repetition=repeated))
    return replies


# The whole softmax, whatever the checkpoint's generation_config.json says: vLLM takes from there
# what a request leaves out. Other servers ignore what they do not know.
_WHOLE: Mapping[str, object] = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def _body(
    probe: Probe, question: Question, settings: GenerationSettings, end: int | None
) -> dict[str, object]:
    """Return the request for one reply."""
    body: dict[str, object] = {
        "prompt": list(question.prompt.ids),
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        **_WHOLE,
        "n": 1,
        # Understood by vLLM, which ends replies at the tokens of generation_config.json besides.
        "return_token_ids": True,
        "stop_token_ids": [] if end is None else [end],
    }
    if settings.temperature > 0:
        label = f"reply/{probe.name}/{question.example.id}/{question.sample}"
        body["seed"] = stats.seed_of(label, settings.seed) % 2**31
    return body


class _Answer(NamedTuple):
    """A reply with its token ids."""

    reply: Spoken
    tokens: list[int]


def _read(answer: Mapping[str, Any], tokenizer: Tokenizer, prompt: PromptIds) -> _Answer:
    """Read a server's answer; tokens are read off the text if the server gives none.

    Raises:
        InputError: It holds no reply.
    """
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    text, tokens = choice.get("text"), choice.get("token_ids")
    if not isinstance(text, str):
        raise InputError("the server's answer holds no reply", got=json.dumps(answer)[:200])
    finish = _FINISHES.get(str(choice.get("finish_reason")))
    if isinstance(tokens, list):
        ids = [int(token) for token in tokens]
        # vLLM gives the token that ended the reply, and says which it was if it is not the
        # tokenizer's own. In memory replies are without it.
        ends = {tokenizer.eos_token_id, choice.get("stop_reason")}
        if finish == "stop" and ids and ids[-1] in ends:
            del ids[-1]
        return _Answer(spoken(tokenizer, prompt, ids, finish), ids)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    reply = spoken(tokenizer, prompt, ids, finish)
    # A text without a thought is taken as the server gave it.
    return _Answer(reply if reply.thought is not None else Spoken(text, None, finish), ids)


def _ask(
    server: Server, method: str, endpoint: str, body: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Send one request and return the JSON object that comes back."""
    secure = server.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(server.host, server.port, timeout=TIMEOUT)
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {os.environ[KEY]}"
    url = f"{server.scheme}://{server.host}:{server.port}{server.path}{endpoint}"
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, server.path + endpoint, content, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            "the server does not answer", got=f"{url}: {error}", fix="start it, or mend the URL"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise InputError(
            "the server refuses a request", got=f"{url}: {response.status} {text[:300]}"
        )
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise InputError("the server's answer is not JSON", got=text[:200]) from error
    if not isinstance(answer, dict):
        raise InputError("the server's answer is no JSON object", got=text[:200])
    return answer
