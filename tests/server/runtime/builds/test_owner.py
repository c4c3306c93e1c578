"""The owner of a server's builds, on a disk that a test writes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from coe.server.runtime.builds.owner import Builds
from fakes.rosters import load

ROSTER = """
parent: {model: random, file: parent.gguf}
specialists:
  - {name: small, domains: [law], build: {corpus: [sums.jsonl], experts: 4}}
"""


def test_two_refreshes_at_the_same_time_adopt_a_new_file_once(tmp_path: Path) -> None:
    roster = load(tmp_path, ROSTER)
    out = roster.specialists[0].built_path(roster.models_path)
    out.parent.mkdir(parents=True)
    adopted = []

    async def adopt(name: str) -> bool:
        await asyncio.sleep(0)
        adopted.append(name)
        return True

    async def refresh() -> None:
        owner = Builds(roster, None, adopt)  # type: ignore[arg-type]
        await asyncio.gather(owner._refresh(), owner._refresh())
        out.write_text("built")
        await asyncio.gather(owner._refresh(), owner._refresh())
        assert not owner.is_missing("small")

    asyncio.run(refresh())
    assert adopted == ["small"]
