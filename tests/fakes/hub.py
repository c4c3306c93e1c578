"""A local server that plays the model hub: repositories in memory, ranges, redirects, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from coe.server.commands.pull import download

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """Repositories in memory, and what is wrong with them."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)  # may be listed, not downloaded
    listed_sha256: dict[str, str] = field(default_factory=dict)  # by file, where it is not the content's
    cuts: list[int] = field(default_factory=list)  # a download each: the connection ends after so many bytes
    failures: list[int] = field(default_factory=list)  # a download each: answered with this status
    broken: bool = False  # every download is answered with status 503
    ignore_ranges: bool = False
    elsewhere: bool = False  # downloads are redirected to another host, as to a content delivery network
    wanted_token: str | None = None
    downloads: list[dict[str, str]] = field(default_factory=list)  # the headers of each
    revisions: list[str] = field(default_factory=list)  # that were listed; "" for the newest
    outside_lfs: bool = False
    sent_bytes: int = 0  # of files, headers of answers left out
    changes: dict[int, dict[str, bytes]] = field(default_factory=dict)  # before the n-th download: files that change
    totals: list[int] = field(default_factory=list)  # a download each: the length that Content-Range gives the file
    etags: bool = True
    before_download: Callable[[], None] | None = None
    url: str = ""

    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("range") for headers in self.downloads]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # who asked has gone
            super().handle()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self.hub.revisions.append(revision)
            if revision not in ("", COMMIT, "v1"):
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            return self.list_repository(repo)
        found = re.fullmatch(r"(?:/cdn)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        assert found
        repo, revision, name = found.groups()
        assert revision == COMMIT
        if self.hub.elsewhere and not path.startswith("/cdn/"):
            other = self.hub.url.replace("127.0.0.1", "localhost")
            return self.answer(302, Location=f"{other}/cdn{self.path}")
        return self.send_file(repo, name)

    def list_repository(self, repo: str) -> None:
        files = self.hub.repositories.get(repo)
        token = self.headers.get("Authorization")
        if files is None or (self.hub.wanted_token and token != f"Bearer {self.hub.wanted_token}"):
            return self.answer(401, b"{}", X_Error_Code="RepoNotFound")
        siblings = []
        for name, content in files.items():
            sha256 = self.hub.listed_sha256.get(name, hashlib.sha256(content).hexdigest())
            lfs = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            sibling = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            siblings.append({**sibling, "lfs": lfs} if name.endswith(".gguf") and not self.hub.outside_lfs else sibling)
        body = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
        return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def send_file(self, repo: str, name: str) -> None:
        with self.hub.lock:
            self.hub.downloads.append({key.lower(): value for key, value in self.headers.items()})
            self.hub.repositories[repo] |= self.hub.changes.pop(len(self.hub.downloads), {})
        if self.hub.before_download:
            self.hub.before_download()
        if repo in self.hub.gated:
            return self.answer(403, b"Access is restricted", X_Error_Code="GatedRepo")
        if self.hub.broken:
            return self.answer(503)
        if self.hub.failures:
            return self.answer(self.hub.failures.pop(0))
        content = self.hub.repositories[repo][name]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        start, stop = 0, len(content)
        asked = None if self.hub.ignore_ranges else self.headers.get("Range")
        if asked and self.headers.get("If-Range", etag) != etag:
            asked = None
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(content)) + bool(last), len(content))
            if start >= len(content):
                return self.answer(416, Content_Range=f"bytes */{len(content)}")
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(stop - start))
        if self.hub.etags:
            self.send_header("ETag", etag)
        self.send_header("X-Repo-Commit", COMMIT)
        with self.hub.lock:
            total = self.hub.totals.pop(0) if self.hub.totals else len(content)
            cut = self.hub.cuts.pop(0) if self.hub.cuts else None
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.end_headers()
        body = content[start : stop if cut is None else min(stop, start + cut)]
        with self.hub.lock:
            self.hub.sent_bytes += len(body)
        self.wfile.write(body)
        self.close_connection = True
        return None


@contextmanager
def played(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub of this process, while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(download, "get_token", lambda: None)  # this machine may have a token
    monkeypatch.setattr(download, "RETRY_WAITS_S", (0.0, 0.0))
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


def interrupted(hub: FakeHub, command: Sequence[str], *, downloads: int = 1, answers: bool = True) -> tuple[int, str]:
    """A Ctrl-C for a Python process while its n-th download waits for an answer: its exit status, and all that it said.

    answers: whether that answer comes once the signal was sent; else not before the process has ended.
    """
    waiting, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        if len(hub.downloads) >= downloads:
            waiting.set()
            go_on.wait()

    hub.before_download = wait
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    waiting.wait()
    process.send_signal(signal.SIGINT)
    if answers:
        go_on.set()
    said, _ = process.communicate(timeout=120)
    hub.before_download = None
    go_on.set()
    return process.returncode, said
