"""Open WebUI as people use it: its page in a real browser, in front of the demo, with the settings that it comes with.

Each message of its page brings some 36 tools, and each answer is followed by requests for a title, tags and follow-up
messages. Ends with 1 when an answer does not come, or is another than it should be. Needs Open WebUI in an environment
of its own, Chromium and its driver: `make test-open-webui`.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from _webdriver import ENTER, Browser, NotSeenError, answers, free_port, wait_for

ROOT: Final = Path(__file__).resolve().parents[1]
OPEN_WEBUI: Final = ROOT / ".build/open-webui/bin/open-webui"
START_S: Final = 300
ANSWER_S: Final = 60
# A model of 135 million weights reads six thousand tokens of tools on two busy cores.
READING_S: Final = 600
CHORES: Final = ("title", "tags", "follow-ups")

_ANSWERS: Final = "return [...document.querySelectorAll('.chat-assistant')].map(it => it.innerText)"
_BUTTON: Final = (
    "const it = [...document.querySelectorAll('button, [role=menuitem]')]"
    ".filter(it => it.innerText.trim() === arguments[0] || it.ariaLabel === arguments[0]).pop();"
    "if (it && arguments[1]) it.click(); return !!it"
)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def college(folder: Path) -> Iterator[tuple[str, Path]]:
    """The demo, served: its address, and its log."""
    url, log = f"http://127.0.0.1:{free_port()}", folder / "coe.log"
    command = [sys.executable, "-m", "coe.server.cli", "serve", "--roster", "demo", "--port", url.rpartition(":")[2]]
    with log.open("w") as file, ended(subprocess.Popen(command, stdout=file, stderr=file, text=True)):
        wait_for("the demo", lambda: answers(f"{url}/ready"), START_S)
        yield url, log


@contextmanager
def open_webui(command: Path, folder: Path, openai_url: str) -> Iterator[str]:
    """Open WebUI with its own defaults, in front of an address: where its page is."""
    url = f"http://127.0.0.1:{free_port()}"
    settings = {
        "DATA_DIR": str(folder / "data"),
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "for a test",
        "OPENAI_API_BASE_URL": openai_url,
        "OPENAI_API_KEY": "anything",
        "ENABLE_OLLAMA_API": "False",
        "OFFLINE_MODE": "True",  # it downloads no model for searching documents
        "HF_HUB_OFFLINE": "1",
        "ANONYMIZED_TELEMETRY": "False",
    }
    (folder / "data").mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    serve = [str(command), "serve", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    with (folder / "open-webui.log").open("w") as log:
        process = subprocess.Popen(serve, stdout=log, stderr=log, text=True, env=env, cwd=folder)
        with ended(process):
            wait_for("Open WebUI", lambda: answers(f"{url}/health") or process.poll() is not None, START_S)
            if process.poll() is not None:
                raise NotSeenError(f"Open WebUI ended with {process.returncode}")
            yield url


class Page:
    """A chat of Open WebUI's page."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url

    def begin(self, model: str) -> None:
        """A new chat with a model."""
        self._browser.open(f"{self._url}/?model={model}")
        chosen = f"Selected model: {model}"
        wait_for(f"a chat with {model}", lambda: self._has(chosen), ANSWER_S)
        if self._has("Okay, Let's Go!"):  # the news of the release
            self.click("Okay, Let's Go!")

    def _has(self, button: str) -> bool:
        return bool(self._browser.run(_BUTTON, button, False))

    def click(self, button: str) -> None:
        """The last button of a name. Raises NotSeenError when none comes."""
        wait_for(f"the button {button}", lambda: self._browser.run(_BUTTON, button, True), ANSWER_S)

    def answers(self) -> list[str]:
        """The text of each answer that is shown."""
        return [str(text).strip() for text in self._browser.run(_ANSWERS)]

    def send(self, text: str) -> None:
        """Write a message, and send it."""
        self._browser.write("#chat-input", text)
        self._browser.write("#chat-input", ENTER)
        wait_for("that an answer begins", lambda: self._has("Stop") or self._is_done(), ANSWER_S)

    def stop(self) -> None:
        """Stop an answer under way. The page knows its name some time after it shows the button."""

        def stopped() -> bool:
            self._browser.run(_BUTTON, "Stop", True)
            return not self._has("Stop")

        wait_for("that the answer stops", stopped, ANSWER_S)

    def _is_done(self) -> bool:
        return self._has("Regenerate") and not self._has("Stop")

    def answer(self, text: str, within_s: float) -> str:
        """The answer to a message, when it is whole. Raises NotSeenError."""
        before = len(self.answers())
        self.send(text)

        def newest() -> str:
            found = self.answers()
            return found[-1] if self._is_done() and len(found) > before else ""

        return wait_for(f"an answer to {text!r}", newest, within_s)

    def regenerate(self, within_s: float) -> str:
        """Another answer to the last message. Raises NotSeenError."""
        self.click("Regenerate")
        self.click("Try Again")
        wait_for("a second answer", lambda: "2/2" in self._browser.run("return document.body.innerText"), within_s)
        return wait_for("another answer", lambda: self.answers()[-1] if self._is_done() else "", within_s)


def drive(page: Page, browser: Browser, log: Path, screenshot: Path | None) -> None:
    """A chat with `auto`, a second message, another try, an answer that is stopped, and one with the tools."""
    page.begin("auto")
    expect("a message", page.answer("What is the capital of Egypt?", ANSWER_S), "Cairo")
    expect("a second message", page.answer("What is 27 + 35?", ANSWER_S), "62")
    expect("another try", page.regenerate(ANSWER_S), "62")
    for chore in CHORES:
        line = f"own task ({chore})"
        wait_for(f"a request for {chore}", lambda line=line: line in log.read_text(), READING_S)  # type: ignore[misc]
        print(f"ok    a request for {chore} was recognised")
    if screenshot is not None:
        browser.save_screenshot(screenshot)

    page.begin("general")
    page.send("Tell me a long story about a lighthouse.")
    page.stop()
    wait_for("that the server ends a stopped answer", lambda: "| cancelled" in log.read_text(), ANSWER_S)
    print("ok    a stopped answer ends at the server, too")

    page.begin("general")
    print(f"ok    with tools, general says: {page.answer('Say hello.', READING_S)[:100]!r}")
    lengths = [int(n) for n in re.findall(r"general +named in the request .*\| (\d+) prompt", log.read_text())]
    if max(lengths, default=0) < 3000:
        raise NotSeenError(f"the tools were not in the prompt: {lengths}")


def expect(what: str, text: str, part: str) -> None:
    """Raises NotSeenError when an answer lacks a part."""
    if part not in text:
        raise NotSeenError(f"{what} was answered by {text!r}, which says nothing of {part}")
    print(f"ok    {what}: {text.splitlines()[-1]!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Drive Open WebUI's page in front of the demo.")
    parser.add_argument("--open-webui", type=Path, default=OPEN_WEBUI, help="its command")
    parser.add_argument("--screenshot", type=Path, help="where to keep a picture of the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with (
                college(folder) as (coe, log),
                open_webui(options.open_webui.absolute(), folder, f"{coe}/v1") as url,
                Browser(width=1100, height=720) as browser,
            ):
                page = Page(browser, url)
                drive(page, browser, log, options.screenshot)
        except NotSeenError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            for file in (folder / "coe.log", folder / "open-webui.log"):
                if file.exists():
                    print(f"--- {file.name}", *file.read_text().splitlines()[-40:], sep="\n", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
