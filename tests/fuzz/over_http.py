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

_GROWTH_BYTES: Final = 256 * 2**20  # of the server and its workers, once they have been warm
_REQUEST_S: Final = 60
# A body that the document allows may be refused for what no schema says: a prompt beyond the context, a JSON schema that
# no answer can be held to. One that it forbids may be taken: extras are ignored.
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
        _still_serves(server)
        before = _memory(server)
        code = subprocess.run(_schemathesis(server.url, seed, asked.minutes * 60), cwd=scratch, check=False).returncode
        faults = [*_still_serves(server)]
        if server.process.poll() is None and (grown := _memory(server) - before) > _GROWTH_BYTES:
            faults.append(f"server and workers have grown by {grown / 2**20:.0f} MiB")
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


def _schemathesis(url: str, seed: int, seconds: float) -> list[str]:
    return [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"),
        *("--phases", "coverage,fuzzing", "--max-time", str(max(1, round(seconds))), "--seed", str(seed)),
        *("--exclude-checks", _UNCHECKED, "--request-timeout", str(_REQUEST_S), "--workers", "2"),
        *("--warnings", "off", "--generation-database", "none"),
    ]


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


def _memory(server: ServerProcess) -> int:
    """Resident bytes of the server and its workers."""
    pid = server.process.pid
    return sum(rss_bytes(one) for one in (pid, *children_of(pid)))


if __name__ == "__main__":
    sys.exit(main())
