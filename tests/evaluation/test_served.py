"""A served model is asked with the same tokens, and only where it may be."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tiny
from resect.errors import InputError
from resect.evaluation.decode import GenerationSettings, generate
from resect.evaluation.evaluate import EvalRequest, evaluate_model
from resect.evaluation.served import parse_backend
from resect.files.reading import read_json
from resect.files.tables import read_parquet
from resect.files.writing import write_text
from resect.model import load_model


class _Served:
    """A server of a tiny model in a thread, as vLLM answers; `wrong` makes it answer otherwise."""

    def __init__(self, folder: Path):
        self.model, self.tokenizer = load_model(folder, device="cpu")
        self.bodies: list[dict[str, Any]] = []
        self.wrong: tuple[int, str] | None = None
        self.gives_ids = True
        self.end = 1
        self._lock = threading.Lock()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, json.dumps({"data": [{"id": "tiny"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, text = served.wrong or (200, json.dumps(served.complete(body)))
                self._say(status, text)

            def _say(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.backend = f"openai:http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.bodies.append(body)
            settings = GenerationSettings(body["max_tokens"])
            ids = generate(self.model, self.tokenizer, [body["prompt"]], settings)[0]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        # As vLLM: with the token that ended the reply, which is named if it is another's.
        ended = {"token_ids": [*ids, self.end], "stop_reason": None if self.end == 1 else self.end}
        more = ended if self.gives_ids else {}
        return {"choices": [{"text": text, "finish_reason": "stop", **more}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def served(folder: Path) -> Iterator[_Served]:
    found = _Served(folder)
    yield found
    found.server.shutdown()
    found.server.server_close()


def _request(folder: Path, data: Path, **changes: Any) -> EvalRequest:
    write_text(data, "\n".join(json.dumps(row) for row in tiny.rows(5, "h")))
    usual: dict[str, Any] = {"attack": "prefill:2", "max_new_tokens": 6, "judges": ("keyword",)}
    return EvalRequest(
        model=str(folder), probes=("generation",), data=(str(data),), **(usual | changes)
    )


@pytest.mark.parametrize(("gives_ids", "end"), [(True, 1), (True, 9), (False, 1)])
def test_a_server_replies_as_the_model_in_memory(
    gives_ids: bool, end: int, folder: Path, served: _Served, tmp_path: Path
) -> None:
    served.gives_ids, served.end = gives_ids, end
    request = _request(folder, tmp_path / "h.jsonl")
    evaluate_model(request, tmp_path / "memory")
    there = _request(folder, tmp_path / "h.jsonl", backend=served.backend)
    found = evaluate_model(there, tmp_path / "served")
    assert found.rates
    mine, theirs = (
        read_parquet(tmp_path / name / "records" / "intact.parquet")
        for name in ("memory", "served")
    )
    for name in ("example_id", "text", "prefix", "attack", "repetition", "outcome"):
        assert [row[name] for row in theirs] == [row[name] for row in mine], name
    assert all(row["nll"] is None for row in theirs)
    # What a request leaves out vLLM takes from the checkpoint's generation_config.json.
    whole: dict[str, object] = {
        "temperature": 0,
        "top_p": 1,
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1,
    }
    whole |= {"presence_penalty": 0, "frequency_penalty": 0, "stop_token_ids": [1]}
    whole |= {"model": "tiny"}
    assert served.bodies
    assert all(body.items() >= whole.items() for body in served.bodies)
    assert read_json(tmp_path / "served" / "results.json")["provenance"]["served"] == "tiny"


def test_what_a_server_cannot_do_is_refused(folder: Path, served: _Served, tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        request = _request(folder, tmp_path / "h.jsonl", **({"backend": served.backend} | changes))
        with pytest.raises(InputError, match=match):
            evaluate_model(request, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refused("cannot be cut", mask=tmp_path / "x.mask.safetensors")
    refused("cannot be attacked", attack="finetune")
    refused("does not answer", backend="openai:http://127.0.0.1:9/v1")
    for wrong, match in (
        ((500, "no room"), "refuses a request"),
        ((200, "<html>"), "not JSON"),
        ((200, "[]"), "no JSON object"),
        ((200, "{}"), "holds no reply"),
    ):
        served.wrong = wrong
        refused(match)


def test_only_this_machine_is_asked_unless_asked_for() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert parse_backend(f"openai:http://{host}:8000/v1").port == 8000
    for text in ("vllm", "openai:ftp://127.0.0.1/v1", "openai:http://127.0.0.1:x/v1", "openai:"):
        with pytest.raises(InputError, match="cannot read the backend"):
            parse_backend(text)
    for host in ("example.org", "10.0.0.1", "127.0.0.1.example.org", "0.0.0.0"):
        with pytest.raises(InputError, match="not on this machine"):
            parse_backend(f"openai:https://{host}/v1#name")
        assert parse_backend(f"openai:https://{host}/v1#name", allow_remote=True).model == "name"
