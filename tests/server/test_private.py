"""What a running server keeps to itself: it reports to nobody, writes into our own folders for the user alone, and no
key, token or prompt comes into a log, an error, a metric or a file."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from fakes.server_process import GIVE_UP_S, GREEDY, ServerProcess, write_roster

pytestmark = pytest.mark.server

SECRETS = {
    "HF_TOKEN": "hf_MARK1secret",
    "CHAT": "MARK2secret",
    "ADMIN": "MARK3secret",
    "OPENAI_API_KEY": "MARK4secret",
    "https_proxy": "http://me:MARK5secret@127.0.0.1:1",
}
WORDS = "MARK6prompt"
WRONG_KEY = "MARK7guess"

# Every process of ours runs it first: what Python opens for writing, and whom it speaks to.
WATCH = """
import os, sys
_out = os.open({out!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def _hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        os.write(_out, f"write {{os.path.abspath(os.fsdecode(args[0]))}}\\n".encode())
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        os.write(_out, f"speak {{args[1]!r}}\\n".encode())
    elif event == "socket.getaddrinfo":
        os.write(_out, f"speak {{args[0]!r}}\\n".encode())
sys.addaudithook(_hook)
"""


@dataclass
class Watched:
    """A server that is watched, with a home and a folder for temporary files of its own."""

    server: ServerProcess
    folder: Path
    chat: httpx.Client
    admin: httpx.Client

    def events(self, kind: str) -> list[str]:
        """What its processes have done so far."""
        lines = (self.folder / "events").read_text().splitlines()
        return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(f"{kind} ")]

    def files(self) -> list[Path]:
        """All that lies in its folders now."""
        return [path for name in ("home", "tmp", "served") for path in (self.folder / name).rglob("*")]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Started with the sentence encoder, all secrets set, and told to log everything; it has answered already."""
    folder = tmp_path_factory.mktemp("watched")
    for name in ("home", "tmp", "watch"):
        (folder / name).mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH.format(out=str(folder / "events")))
    keys = {"api_keys_env": "CHAT", "admin_keys_env": "ADMIN"}
    roster = write_roster(folder / "served", {"general": {}}, router={"encoder": "auto"}, server=keys)
    environment = {
        **SECRETS,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": f"{folder / 'watch'}:{':'.join(sys.path)}",
        "XDG_CACHE_HOME": "",
        "XDG_STATE_HOME": "",
        "XDG_CONFIG_HOME": "",
        "MPLCONFIGDIR": "",
        "HF_HOME": "",
    }
    with ServerProcess(roster, "-vv", env=environment) as server:
        clients = [
            httpx.Client(base_url=server.url, timeout=GIVE_UP_S, headers={"authorization": f"Bearer {SECRETS[name]}"})
            for name in ("CHAT", "ADMIN")
        ]
        found = Watched(server, folder, *clients)
        ask(found.chat, f"What is 27 + 35? {WORDS}").raise_for_status()
        yield found
        for client in clients:
            client.close()


def ask(client: httpx.Client, text: str, **fields: object) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **GREEDY, **fields}
    return client.post("/v1/chat/completions", json=body)


def test_it_speaks_to_nobody(watched: Watched) -> None:
    assert watched.events("write"), "the watch sees nothing"
    ours = watched.server.url.removeprefix("http://").partition(":")[0]
    assert [whom for whom in watched.events("speak") if ours not in whom] == []


def test_it_writes_into_our_own_folders_only(watched: Watched) -> None:
    home = watched.folder / "home"
    allowed = [home / ".cache" / "coe", home / ".local" / "state" / "coe", watched.folder / "tmp", Path("/dev/null")]
    written = {Path(path) for path in watched.events("write")} - {watched.folder / "events"}
    strange = {path for path in written if not any(path.is_relative_to(folder) for folder in allowed)}
    assert {path for path in strange if "__pycache__" not in path.parts and path.parts[1] != "proc"} == set()
    # What native code wrote, which Python's audit does not see: onnxruntime's device id was such.
    left = {path for path in home.rglob("*") if path.is_file()}
    assert {path for path in left if not any(path.is_relative_to(folder) for folder in allowed)} == set()
    assert {path.name for path in home.iterdir()} <= {".cache", ".local"}


def test_what_it_writes_is_the_users_alone(watched: Watched) -> None:
    cache = watched.folder / "home" / ".cache" / "coe"
    ours = [path for path in (cache, *cache.rglob("*"), *(watched.folder / "tmp").rglob("*")) if path.exists()]
    assert {path for path in ours if stat.S_IMODE(path.stat().st_mode) & 0o077} == set()


def test_workers_get_no_secrets(watched: Watched) -> None:
    [worker] = watched.server.workers()
    environment = Path(f"/proc/{worker}/environ").read_bytes().decode()
    assert "HOME=" in environment
    assert "secret" not in environment
    assert "secret" not in Path(f"/proc/{worker}/cmdline").read_text()
    assert "ORT_DISABLE_TELEMETRY=1" in environment


def test_no_secret_and_no_prompt_is_written_or_said_anywhere(watched: Watched) -> None:
    said: list[str] = []
    guess = httpx.Client(base_url=watched.server.url, headers={"authorization": f"Bearer {WRONG_KEY}"})
    with guess:
        said.append(ask(guess, WORDS).text)
        said.append(guess.get(f"/v1/models?api_key={WRONG_KEY}").text)
    chat, path = watched.chat, "/v1/chat/completions"
    headers = {"x-session-id": WORDS, "user-agent": WORDS, "cookie": f"a={WORDS}", "referer": f"http://x/{WORDS}"}
    bad_bodies = [
        {"model": "general", "messages": WORDS},
        {"model": "general", "messages": [{"role": "user", "content": {"text": WORDS}}]},
        {"model": "general", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": WORDS}]}]},
        {"model": "general", "messages": [{"role": "user", "content": f"{WORDS} " * 2000}]},
        {"model": "general", "messages": [{"role": "user", "content": WORDS}], "max_tokens": -1},
        {"model": "general", "messages": [{"role": "user", "content": f"{WORDS}\ud800"}]},
        {"model": "general", "messages": [{"role": "user", "content": f"{WORDS}\0"}]},
        {
            "model": "general",
            "messages": [{"role": "user", "content": WORDS}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": WORDS}}},
        },
        {"model": "general", "messages": [{"role": "user", "content": WORDS}], "stop": [WORDS] * 1000},
    ]
    for body in bad_bodies:
        said.append(
            chat.post(path, content=json.dumps(body), headers={**headers, "content-type": "application/json"}).text
        )
    for raw in (f'{{"messages": "{WORDS}', f"{WORDS}", f'[{{"{WORDS}": 1}}]'):
        said.append(chat.post(path, content=raw, headers={"content-type": "application/json"}).text)
    assert ask(chat, WORDS, stream=True).status_code == 200
    assert chat.post("/v1/route", json={"text": WORDS}).status_code == 200
    assert chat.post("/v1/completions", json={"model": "general", "prompt": WORDS, "max_tokens": 4}).status_code == 200
    refused = chat.post("/v1/pool/unload", json={"model": "general"})
    assert refused.status_code == 403
    said += [refused.text, watched.admin.get("/metrics").text, watched.admin.get("/v1/pool").text]
    assert watched.admin.post("/v1/pool/unload", json={"model": WORDS}).status_code == 404
    said += [watched.server.log(), watched.server.announcement]
    said += [p.read_bytes().decode("utf-8", "replace") for p in watched.files() if p.is_file()]
    everything = "\n".join(said)
    for mark in (*SECRETS.values(), "secret@", WRONG_KEY):
        assert mark not in everything, f"{mark} in: {[text[:300] for text in said if mark in text]}"
    kept = "\n".join([watched.server.log(), *said[-len(watched.files()) :]])
    lines = [line for line in kept.splitlines() if WORDS in line and "There is no model" not in line]
    assert lines == [], "of prompts nothing is kept, though a refusal may quote its own request"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows what native code does, and is not installed")
def test_no_native_code_speaks_to_anybody_either(tmp_path: Path) -> None:
    program = """
from coe.server import cli  # what the command imports first
from coe.router.encoder import find_encoder, load_encoder
reader, _ = load_encoder(find_encoder("auto"))
reader.encode(["What is 27 + 35?"])
"""
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace), sys.executable, "-c", program],
        check=True,
        timeout=GIVE_UP_S,
    )
    assert [line for line in trace.read_text().splitlines() if "AF_INET" in line] == []
