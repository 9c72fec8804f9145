"""Headless Chromium, driven by the DevTools protocol: what a page says on its console, whom it asks, where the focus goes.

The test is skipped with a printed reason where the machine has no Chromium; in CI (`AOS_CI=1`) it fails.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 30.0


def chromium() -> str:
    """The program, or skip; in CI fail."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = f"no Chromium on this machine (looked for {', '.join(NAMES)}); Debian: apt install chromium"
        if os.environ.get("AOS_CI") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Page:
    """One tab. ``errors``: console errors, exceptions, failed loads; ``hosts``: whom it asked."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket, self._session, self._next = socket, session, 0
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.loaded = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._next += 1
        number = self._next
        self._socket.send(
            json.dumps({"id": number, "sessionId": self._session, "method": method, "params": params})
        )
        while True:
            message = json.loads(self._socket.recv(PATIENCE_S))
            self._note(message)
            if message.get("id") == number and message.get("sessionId") == self._session:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded += 1
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str([value.get("value") for value in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            url = urlsplit(params["request"]["url"])
            if url.scheme in ("http", "https", "ws", "wss"):
                self.hosts.add(url.netloc)

    def open(self, url: str) -> None:
        before = self.loaded
        assert "errorText" not in (answer := self.send("Page.navigate", url=url)), answer
        self.until(lambda: self.loaded > before)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, which may be a promise."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str | Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (self.run(condition) if isinstance(condition, str) else condition()):
            assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {condition}"
            self.send("Runtime.evaluate", expression="new Promise(r => setTimeout(r, 25))", awaitPromise=True)

    def size(self, width: int, height: int = 900) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def scheme(self, name: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def key(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text
            )

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser(directory: Path) -> Iterator[Page]:
    """A fresh Chromium with a profile in ``directory`` and one tab."""
    program, profile = chromium(), directory / "profile"
    # No sandbox: CI runs as root in a container; the only pages are our own.
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    quiet = (
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
    )
    process = subprocess.Popen(
        [program, *options, *quiet, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        told = profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE_S
        while not (told.is_file() and len(lines := told.read_text().splitlines()) == 2):
            assert process.poll() is None, "Chromium ended at its start"
            assert time.monotonic() < deadline, f"Chromium did not start within {PATIENCE_S:g} s"
            time.sleep(0.02)
        with connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_size=None, proxy=None) as socket:
            yield Page(socket, _attach(socket))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _attach(socket: ClientConnection) -> str:
    def ask(number: int, method: str, **params: Any) -> dict[str, Any]:
        socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(socket.recv(PATIENCE_S))).get("id") != number:
            pass
        found: dict[str, Any] = message["result"]
        return found

    target = ask(1_000_001, "Target.createTarget", url="about:blank")["targetId"]
    return str(ask(1_000_002, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
