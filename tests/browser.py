"""A browser that does what a person does: Chromium by its own protocol over a pipe, no driver.

`--remote-debugging-pipe` reads commands from descriptor 3 and writes answers to descriptor 4, as
JSON with a zero byte at the end of each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (path := shutil.which(name))
    ),
    None,
)
NONE = "no browser: put Chromium on the path to test reports in it"
PATIENCE = 60.0


class Page:
    """A page of a running browser."""

    def __init__(self, to: int, back: int) -> None:
        """Take the ends of the pipes, and open a page."""
        self._to, self._back = to, back
        self._number = 0
        self._rest = b""
        self.session = ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        # Without it a page that nobody looks at draws no focus.
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)

    def send(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come first are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            received = os.read(self._back, 1 << 20)
            if not received:
                raise RuntimeError("the browser has gone")
            self._rest += received
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def open(self, file: Path, width: int = 1200) -> float:
        """Open a file and return the seconds until it is laid out and painted."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.events = [
            event for event in self.events if event.get("method") != "Page.loadEventFired"
        ]
        start = time.perf_counter()
        self.send("Page.navigate", url=file.as_uri())
        limit = start + PATIENCE
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            if time.perf_counter() > limit:
                raise RuntimeError("the page does not load")
            self.events.append(self._read())
        self.run("document.body.offsetHeight")
        return time.perf_counter() - start

    def run(self, code: str) -> Any:
        """Return the value of an expression in the page; promises are waited for."""
        answer = self.send("Runtime.evaluate", expression=code, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key and let it go."""
        event: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.send("Input.dispatchKeyEvent", **event, **down)
        self.send("Input.dispatchKeyEvent", **event, type="keyUp")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Run a browser while the block runs."""
    to_read, to = os.pipe()
    back, back_write = os.pipe()
    words = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--remote-debugging-pipe", f"--user-data-dir={profile}",
    ]  # fmt: skip
    # The shell puts the pipes where the browser expects them; plain sh knows descriptors to 9.
    shell = f"exec {shlex.join(words)} 3<&{to_read} 4>&{back_write}"
    process = subprocess.Popen(
        ["bash", "-c", shell], pass_fds=(to_read, back_write),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_read)
    os.close(back_write)
    try:
        yield Page(to, back)
    finally:
        os.close(to)
        os.close(back)
        process.terminate()
        process.wait(timeout=30)
