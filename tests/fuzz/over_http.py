"""python -m fuzz.over_http: requests made from the server's own OpenAPI document, and broken on purpose, for a while.

schemathesis makes the requests and judges each answer by the document: no 5xx, media types, bodies and `Allow` as
described. Beside that the server must live, be ready, answer a plain chat and have kept its memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx
import yaml

from coe.engine.process import rss_bytes
from coe.server.roster.builtin import demo_roster
from fakes.server_process import ServerProcess, children_of

_GROWTH_BYTES: Final = 64 * 2**20  # of a process, once it has been warm
_REQUEST_S: Final = 240  # a client may ask for all the tokens that a context holds, beside others that do
# A body that the document allows may be refused for what no schema says: a prompt beyond the context, a JSON schema
# that no answer can be held to. One that it forbids may be taken: extras are ignored.
_UNCHECKED: Final = "positive_data_acceptance,negative_data_rejection"


def main() -> int:
    """The command line. Gives 1 where an answer or the server broke its word."""
    parser = argparse.ArgumentParser(prog="fuzz.over_http", description="Requests from the OpenAPI document.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on (10)")
    parser.add_argument("--seed", type=int, default=None, help="what the requests follow from; drawn when left out")
    asked = parser.parse_args()
    seed = int(time.time()) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="coe-fuzz-") as scratch, ServerProcess(short_demo(Path(scratch))) as server:
        # The first part touches what fills once: mapped weights, vocabularies of grammars, caches.
        code = _schemathesis(server.url, seed, asked.minutes * 15, scratch)
        faults = _still_serves(server)
        before = _memory(server)
        code |= _schemathesis(server.url, seed + 1, asked.minutes * 45, scratch)
        faults += _still_serves(server)
        after = _memory(server)
        for name in before.keys() & after.keys():  # workers come and go, since requests unload models, too
            print(f"{name}: {before[name] >> 20} MiB before, {after[name] >> 20} MiB after")
            if after[name] - before[name] > _GROWTH_BYTES:
                faults.append(f"{name} has grown by {(after[name] - before[name]) >> 20} MiB")
        log = server.log()
        if "Traceback" in log:
            faults.append("the log holds a traceback:\n" + log[log.index("Traceback") :][:4000])
        print("\n".join(faults) or "the server serves on, and has kept its memory")
        return int(bool(faults) or code != 0)


def short_demo(folder: Path) -> Path:
    """The demo's roster with short answers and without its build; its files stay where they are."""
    roster = yaml.safe_load(demo_roster().read_text())
    roster["models_dir"] = str(folder)
    roster["defaults"]["max_tokens"] = 16
    roster["specialists"] = [entry for entry in roster["specialists"] if "build" not in entry]
    for entry in roster["specialists"]:
        if "mask" in entry:
            entry["mask"] = str(demo_roster().with_name("masks") / Path(entry["mask"]).name)
    path = folder / "roster.yaml"
    path.write_text(yaml.safe_dump(roster, sort_keys=False))
    return path


def _schemathesis(url: str, seed: int, seconds: float, folder: str) -> int:
    """Its exit code: 0 where every answer was as described."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"),
        *("--phases", "coverage,fuzzing", "--max-time", str(max(1, round(seconds))), "--seed", str(seed)),
        *("--exclude-checks", _UNCHECKED, "--request-timeout", str(_REQUEST_S)),
        *("--warnings", "off", "--generation-database", "none"),
    ]
    return subprocess.run(command, cwd=folder, check=False).returncode


def _still_serves(server: ServerProcess) -> list[str]:
    """What is wrong with a server that should be well."""
    if server.process.poll() is not None:
        return [f"the server ended with exit code {server.process.returncode}:\n{server.log()[-4000:]}"]
    try:
        ready = server.http.get("/ready")
        chat = server.chat("What is 27 + 35?", model="math", max_tokens=8)
    except httpx.HTTPError as error:
        return [f"the server no longer answers: {error!r}"]
    faults = [] if ready.status_code == 200 else [f"/ready says {ready.status_code}: {ready.text}"]
    return faults if chat.status_code == 200 else [*faults, f"a plain chat gets {chat.status_code}: {chat.text}"]


def _memory(server: ServerProcess) -> dict[str, int]:
    """Resident bytes of the server and its children, by name and process id."""
    if server.process.poll() is not None:
        return {}
    pids = [server.process.pid, *children_of(server.process.pid)]
    return {f"{Path(f'/proc/{pid}/comm').read_text().strip()} {pid}": rss_bytes(pid) for pid in pids}


if __name__ == "__main__":
    sys.exit(main())
