"""`coe route`: the supervisor's decision on one text, without loading any model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from coe.router.conversation import Conversation
from coe.router.supervisor import Decision

from .college import supervisor_of
from .roster import Roster, RosterError, load_roster

_SHOWN = 5  # of the ranking; --json prints all of it


def route_text(path: Path, text: str, *, as_json: bool, out: Console, err: Console) -> int:
    """Print the decision. Returns the exit code."""
    try:
        roster = load_roster(path)
    except RosterError as error:
        for problem in error.problems:
            err.print(str(problem), markup=False)
        return 1
    decision = asyncio.run(_decide(roster, text))
    if as_json:
        out.print_json(json.dumps(asdict(decision)))
        return 0
    out.print(f"{decision.specialist}  (confidence {decision.confidence:.2f}: {decision.reason})", markup=False)
    for ranked in decision.ranking[:_SHOWN]:
        out.print(f"  {ranked.score:6.3f}  {ranked.specialist}", markup=False)
    return 0


async def _decide(roster: Roster, text: str) -> Decision:
    supervisor = supervisor_of(roster)
    await supervisor.start()
    try:
        return await supervisor.decide(
            Conversation.from_messages([{"role": "user", "content": text}]),
            session_id=None,
            warm=(),
            available=roster.names,
        )
    finally:
        supervisor.close()
