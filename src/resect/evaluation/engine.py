"""An engine of vLLM in a process of its own: `--backend vllm`, or `vllm:PYTHON#OPTIONS`.

vLLM pins torch and transformers otherwise than resect, so that it lives in an environment of its
own, of which PYTHON is the interpreter: what RESECT_VLLM_PYTHON names, or else our own. resect need
not be installed there. Options are those of `vllm.LLM`, such as `tensor_parallel_size=2`.

The engine loads a checkpoint once. For each state of the weights it loads it again in place, with a
patch put into the tensors before they are sharded, fused or packed, on every device alike
(`resect.integrations.vllm_worker`). Requests and answers are those of `resect.evaluation.served`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any, NamedTuple

from resect.edit.checkpoint import fitted_to_files
from resect.edit.patch import save_patch
from resect.errors import InputError
from resect.evaluation.served import Asking, answers_through, refuse_unservable
from resect.model.files import entries, weight_files
from resect.model.imported import checkpoint_of
from resect.records import Reply
from resect.weights.mask import Mask

WORD = "vllm"
PYTHON = "RESECT_VLLM_PYTHON"
CHILD = "resect.integrations.vllm_engine"
# Seconds in which an engine has to end when it is asked to.
PATIENCE = 60.0
# How often we look whether it lives, in seconds.
GLANCE = 1.0
# Lines of its log that an error shows.
LINES = 6


@dataclass(frozen=True)
class EngineBackend:
    """Which vLLM to start, and how.

    Attributes:
        python: The interpreter of its environment.
        options: Arguments of `vllm.LLM`, over our own.
    """

    python: str
    options: Mapping[str, object] = field(default_factory=dict)


def is_engine(backend: str) -> bool:
    """Return whether a `--backend` asks for an engine that we start."""
    return backend.partition("#")[0].partition(":")[0] == WORD


def parse_engine(backend: str) -> EngineBackend:
    """Read `vllm`, `vllm:PYTHON`, `vllm#OPTIONS` or `vllm:PYTHON#OPTIONS`.

    Args:
        backend: The text; options are `NAME=VALUE,NAME=VALUE`, values in JSON or bare words.

    Raises:
        InputError: No interpreter with vLLM is known, it is no file, or options are not of this
            form.
    """
    place, _, listed = backend.partition("#")
    python = place.partition(":")[2] or os.environ.get(PYTHON, "")
    if not python and importlib.util.find_spec(WORD) is None:
        raise InputError(
            "vLLM is not installed beside resect",
            got=repr(backend),
            allowed="vllm:PYTHON, the interpreter of an environment with vLLM",
            fix=f"name it, or set {PYTHON}",
        )
    python = python or sys.executable
    if not Path(python).is_file():
        raise InputError(
            "no such interpreter", got=python, allowed="a path such as .venv/bin/python"
        )
    options: dict[str, object] = {}
    for pair in filter(None, listed.split(",")):
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError("cannot read an option of vLLM", got=pair, allowed="NAME=VALUE,...")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return EngineBackend(python, options)


class EngineReplies(NamedTuple):
    """What an engine said.

    Attributes:
        replies: Its replies by variant.
        engine: Version of vLLM, dtype and options, for the record.
        cut: The mask by the names of the checkpoint's files; None where nothing was cut.
    """

    replies: dict[str, list[Reply]]
    engine: dict[str, object]
    cut: Mask | None


def ask_engine(
    backend: EngineBackend,
    checkpoint: str,
    asking: Asking,
    mask: Mask | None = None,
    *,
    force: bool = False,
) -> EngineReplies:
    """Return the replies of a checkpoint, intact and cut, by an engine that is started for that.

    Args:
        backend: From `parse_engine`.
        checkpoint: A checkpoint folder, an adapter or a GGUF file.
        asking: What to ask.
        mask: What to cut; None asks the intact checkpoint alone.
        force: Cut at the mask's places although dtype or values differ.

    Raises:
        InputError: Something that an engine cannot answer, no folder of weights, or an engine that
            does not start or answer.
        MismatchError: The mask belongs to another checkpoint.
    """
    refuse_unservable(asking)
    folder = Path(checkpoint_of(checkpoint)).expanduser()
    cut = None if mask is None else fitted_to_files(checkpoint, mask, force=force)
    options = {
        "model": str(folder.resolve()),
        "dtype": _dtype(folder),
        # Weights are loaded again in place, and replies should not depend on a compiler.
        "enforce_eager": True,
        "disable_log_stats": True,
        **backend.options,
    }
    replies: dict[str, list[Reply]] = {}
    with tempfile.TemporaryDirectory() as scratch, started(backend, options, scratch) as engine:
        replies["intact"] = answers_through(engine.complete, asking)
        if cut is not None:
            patch = Path(scratch, "cut.patch.safetensors")
            save_patch(cut, patch)
            engine.ask({"patch": str(patch)})
            replies["cut"] = answers_through(engine.complete, asking)
    shown = {name: value for name, value in options.items() if name != "model"}
    return EngineReplies(replies, {**engine.version, **shown}, cut)


def _dtype(folder: Path) -> str:
    """Return the dtype of the largest tensor: of its own accord vLLM makes bfloat16 of float32.

    Raises:
        InputError: The folder has no safetensors weights.
    """
    largest = max(entries(weight_files(folder)).values(), key=lambda entry: entry.size)
    return str(largest.dtype).removeprefix("torch.")


class Engine:
    """A running engine.

    Attributes:
        version: What it says of itself.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        connection: Connection[bytes, bytes],
        log: IO[bytes],
    ) -> None:
        """Take over a process that has been started; `log` has its output."""
        self._process, self._connection, self._log = process, connection, log
        self.version: dict[str, object] = {}

    def complete(self, bodies: Sequence[Mapping[str, object]]) -> list[Mapping[str, Any]]:
        """Return the answers to requests as a server of completions takes them, in their order.

        Raises:
            InputError: The engine has ended.
        """
        answers: list[Mapping[str, Any]] = self.ask({"bodies": bodies})
        return answers

    def ask(self, message: Mapping[str, object]) -> Any:
        """Send a message and wait for the answer.

        Raises:
            InputError: The engine has ended.
        """
        try:
            self._connection.send_bytes(json.dumps(message).encode())
            return self._receive()
        except (EOFError, OSError) as error:
            raise InputError(
                "the engine of vLLM has ended",
                got=self._why(),
                fix="mend what its last lines say; options of vLLM go behind #",
            ) from error

    def _receive(self) -> Any:
        while not self._connection.poll(GLANCE):
            if self._process.poll() is not None:
                raise EOFError
        return json.loads(self._connection.recv_bytes())

    def _why(self) -> str:
        """Return the last lines of its log that speak of errors, or the last ones of all."""
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return "\n    ".join((errors or lines or ["nothing"])[-LINES:])


@contextlib.contextmanager
def started(
    backend: EngineBackend, options: Mapping[str, object], scratch: str
) -> Iterator[Engine]:
    """Run the block with an engine.

    Args:
        backend: Which vLLM.
        options: Arguments of `vllm.LLM`.
        scratch: A folder that lives as long.

    Raises:
        InputError: It does not start.
    """
    # The package alone: what is installed beside it here would hide what vLLM has there.
    Path(scratch, "resect").symlink_to(Path(__file__).resolve().parents[1])
    paths = [scratch, *filter(None, [os.environ.get("PYTHONPATH")])]
    mine, theirs = Pipe()
    with tempfile.TemporaryFile() as log, mine:
        try:
            process = subprocess.Popen(
                [backend.python, "-m", CHILD, str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(
                "cannot start the interpreter", got=f"{backend.python}: {error}"
            ) from error
        finally:
            theirs.close()
        engine = Engine(process, mine, log)
        try:
            engine.version = engine.ask(options)
            yield engine
        finally:
            mine.close()
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait until an engine has ended of itself, and end it and its workers if it does not."""
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
