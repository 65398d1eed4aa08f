"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # it is root's
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--window-size=1400,1400",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


class Page:
    """The browser's page."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self._socket, self._ids = socket, itertools.count(1)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise LookupError(answer["exceptionDetails"]["exception"].get("description", expression))
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> Any:
        """Waits until the expression gives what is true; pages that are just changing give nothing."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(LookupError, AssertionError):
                if found := self.value(expression):
                    return found
            shown = time.monotonic() < deadline or self.text()[:2000]
            assert shown is True, f"waited {seconds:.0f} s for {expression}; the page says: {shown}"
            time.sleep(0.2)

    def go(self, url: str) -> None:
        """Opens a page and waits until it is whole."""
        self._call("Page.navigate", url=url)
        self.until(f"document.readyState == 'complete' && location.href.startsWith({json.dumps(url)})")

    def click(self, selector: str, text: str = "") -> None:
        """Clicks the first that is seen, can be used and has the text, as soon as there is one."""
        self.until(f"(e => e && (e.click(), true))({_visible(selector, text)})")

    def fill(self, selector: str, text: str) -> None:
        """Writes into a field, as typing does for the page's scripts."""
        events = "['input', 'change'].forEach(n => e.dispatchEvent(new Event(n, {bubbles: true})))"
        found = _visible(selector, "")
        self.until(f"(e => e && (e.value = {json.dumps(text)}, {events}, true))({found})")

    def type(self, text: str) -> None:
        """Presses keys, wherever the page listens for them."""
        for letter in text:
            key = (
                {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
                if letter == "\n"
                else {"key": letter}
            )
            more = {"text": "\r" if letter == "\n" else letter}
            self._call("Input.dispatchKeyEvent", type="keyDown", **key, **more)
            self._call("Input.dispatchKeyEvent", type="keyUp", **key)

    def text(self, selector: str = "body") -> str:
        """What a person reads there."""
        return self.value(f"(document.querySelector({json.dumps(selector)}) || document.body).innerText")

    def picture(self, file: Path) -> None:
        """Writes what a person sees, as PNG."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))


def _visible(selector: str, text: str) -> str:
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.getClientRects().length"
        f" && !e.disabled && e.textContent.includes({json.dumps(text)}))"
    )


@contextlib.contextmanager
def browser(home: Path) -> Iterator[Page]:
    """Ended, with all of its processes, in the end."""
    profile = home / "profile"
    with (home / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["chromium", *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=log,
            stderr=log,
            env={"HOME": str(home), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        )
    try:
        with contextlib.closing(_connect(process, profile / "DevToolsActivePort")) as socket:
            page = Page(socket)
            page._call("Page.enable")
            yield page
    finally:
        process.terminate()
        process.wait(20)


def _connect(process: subprocess.Popen[bytes], port_file: Path) -> websocket.WebSocket:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "chromium has ended; see its chromium.log"
        assert time.monotonic() < deadline, "chromium does not say where it listens"
        with contextlib.suppress(OSError, ValueError, StopIteration):
            port = int(port_file.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                page = next(target for target in json.load(answer) if target["type"] == "page")
            return websocket.create_connection(page["webSocketDebuggerUrl"], timeout=120)
        time.sleep(0.1)
