"""A browser driven over the WebDriver protocol (https://www.w3.org/TR/webdriver2/): the little of it that a page needs.

Chromium and its driver are Debian's: apt install chromium chromium-driver.
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx

ENTER: Final = "\ue007"
_POLL_S: Final = 0.5
_START_S: Final = 60


class NotSeenError(Exception):
    """What was waited for did not come."""


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T], within_s: float) -> T:
    """The first result of `look` that is true. Raises NotSeenError."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(_POLL_S)
    raise NotSeenError(f"{what} was not seen within {within_s:g} s")


def answers(url: str) -> bool:
    """Whether a server answers at an address."""
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


class Browser:
    """One headless window."""

    def __init__(self, *, width: int, height: int) -> None:
        """Raises NotSeenError when there is no driver, or it does not start."""
        driver = shutil.which("chromedriver")
        if driver is None:
            raise NotSeenError("There is no chromedriver here. Debian: apt install chromium chromium-driver")
        port = free_port()
        self._driver = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
        self._session = ""
        # In a container root has no sandbox, and /dev/shm is small.
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"]
        wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}
        try:
            wait_for("the driver", lambda: answers(f"http://127.0.0.1:{port}/status"), _START_S)
            made = self._send("POST", "/session", {"capabilities": wanted})
        except BaseException:
            self._driver.kill()
            raise
        self._session = f"/session/{made['sessionId']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._send("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait()

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self._http.request(method, self._session + path, json=body)
        value = response.json()["value"]
        if response.is_error:
            raise NotSeenError(f"{value['error']}: {value['message'].splitlines()[0]}")
        return value

    def open(self, url: str) -> None:
        """Go to an address."""
        self._send("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body of JavaScript returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def write(self, selector: str, text: str) -> None:
        """Click on an element, and type."""
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        element = next(iter(found.values()))
        self._send("POST", f"/element/{element}/click", {})
        self._send("POST", f"/element/{element}/value", {"text": text})

    def save_screenshot(self, path: Path) -> None:
        """A PNG of the window."""
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))
