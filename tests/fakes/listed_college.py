"""A college that lists models: two that can be served, and one that cannot; and a client that asks it once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from coe.engine.errors import UnavailableError
from coe.engine.pool.admission import State
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.status import PoolStatus, ResidentStatus
from coe.engine.spec import Footprint, LoadSpec, ModelFacts
from coe.server.api.app import NO_KEYS
from coe.server.api.keys import Keys
from coe.server.roster.model_files import Location
from coe.server.roster.models import Roster, Specialist
from coe.server.runtime.availability import Servable, Unavailable
from coe.server.runtime.choice import Choice
from coe.server.runtime.request import Request
from fakes.college import MATH, ServedCollege, asking, post

ENTRIES: Final[list[dict[str, Any]]] = [
    {"name": "math", "file": "math.gguf", "aliases": ["Sums:7b"], "system_prompt": "Be exact.", "max_tokens": 99},
    {"name": "law", "file": "law.gguf", "thinking": "on", "pin": True, "context_tokens": 32768, "tools": "ignore"},
    {"name": "gone", "file": "gone.gguf"},
]
MEMORY: Final = {"law": Memory({"CUDA0": 123, HOST: 7})}  # of residents beside which host memory is counted
FACTS: Final = ModelFacts("gemma4", 13_900_000_000, 30, 2816, "Q4_K_M", 15)


class Listed(ServedCollege):
    """A college with two specialists that can be served, and one whose file is not there."""

    def __init__(self, leases: list[Any] | None = None, folder: Path = Path(), ttl_s: float | None = None) -> None:
        super().__init__(leases or [])
        self.roster = Roster.model_validate({"specialists": ENTRIES, "pool": {"idle_ttl_s": ttl_s}})
        self.roster._path = folder / "roster.yaml"
        made: dict[str, Any] = {}
        for entry in self.roster.specialists:
            file = folder / str(entry.file)
            if entry.name == "gone":
                made[entry.name] = Unavailable(entry, "There is no file.", "Put it there.", Location(None))
            else:
                sizes = Footprint(100, 20, 3, host_bytes=7 if entry.name == "law" else 0)
                made[entry.name] = Servable(entry, Location(file, (file,)), LoadSpec(file), sizes)
        self.unloaded: list[str] = []
        self.residents: list[ResidentStatus] = []
        available = [name for name, item in made.items() if isinstance(item, Servable)]
        self.catalog = SimpleNamespace(
            availability=made, available=available, facts={"math": FACTS}, stamps=lambda name: (f"{name} 1",)
        )
        status = lambda: PoolStatus(Memory(), Memory(), tuple(self.residents), (), 0.0, 0, 0, 0, ())  # noqa: E731
        self.required: list[str] = []
        self.embeddings = SimpleNamespace(
            encoder=None, is_encoder=lambda name: name == "all-minilm", require=self.required.append
        )
        self.pool = SimpleNamespace(status=status, is_resident=lambda name: name == "law")

    async def unasked(self, request: Request) -> Choice:
        if request.model == "gone":
            raise UnavailableError("gone cannot be served.")
        return Choice(MATH, 1.0, "named in the request")

    async def unload(self, specialist: Specialist) -> tuple[bool, list[str]]:
        self.unloaded.append(specialist.name)
        return specialist.name == "math", []


def resident(name: str, state: State = State.WARM, idle_s: float = 0.0) -> ResidentStatus:
    return ResidentStatus(
        (name,), name, f"{name}.gguf", state, MEMORY.get(name, Memory.at(HOST, 123)), 0, 4, idle_s, 1.0, 2.0, False, {}
    )


async def answered(
    college: ServedCollege,
    path: str,
    body: Mapping[str, Any],
    *,
    keys: Keys = NO_KEYS,
    key: str = "",
    method: str = "POST",
) -> tuple[int, dict[str, str], Any]:
    """Status, headers, and the JSON, of lines a list."""
    client = asking(body, {"authorization": f"Bearer {key}"} if key else None)
    await post(college, client, path, keys=keys, method=method)
    headers = {name.decode(): value.decode() for name, value in client.got[0]["headers"]}
    if headers["content-type"] == "application/x-ndjson":
        return client.got[0]["status"], headers, [json.loads(line) for line in client.body.splitlines()]
    return client.got[0]["status"], headers, json.loads(client.body)
