"""A model that answers no chats is passed by for them, and says so where it is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from coe.engine.errors import ModelTemplateError, UnavailableError
from coe.engine.pool.pool import Pool
from coe.engine.request import Tool
from coe.engine.spec import LoadSpec
from coe.server.roster.model_files import Location
from coe.server.roster.models import Roster
from coe.server.runtime.availability import Servable
from coe.server.runtime.catalog import Catalog
from coe.server.runtime.chooser import Chooser
from coe.server.runtime.errors import Part, RequestError
from coe.server.runtime.request import Request
from coe.server.runtime.resolve import Resolved

MUTE = ModelTemplateError("The model file carries no chat template.", "Take another.")
CHAT = {"messages": ({"role": "user", "content": "Hi"},)}


class Supervisor:
    """Takes the first that it may."""

    def __init__(self) -> None:
        self.available: list[str] = []

    def current(self, *_: Any) -> None:
        return None

    async def decide(self, *_: Any, available: list[str], **__: Any) -> Any:
        self.available = available
        return SimpleNamespace(specialist=available[0], reason="", confidence=1.0)


def chooser(tools: str = "auto", **faults: ModelTemplateError | None) -> tuple[Chooser, Supervisor]:
    """tools: of the first."""
    entries = [{"name": name, "file": "m.gguf", "domains": ["math"]} for name in faults]
    entries[0]["tools"] = tools
    roster = Roster.model_validate({"specialists": entries})
    items = {
        entry.name: Servable(entry, cast(Location, None), cast(LoadSpec, None), None, faults[entry.name])
        for entry in roster.specialists
    }
    pool = SimpleNamespace(
        is_warm=lambda name: False,
        ready_in_s=lambda name: 0.0,
        is_resident=lambda name: False,
        prompt_tokens_per_s=lambda name: None,
        shared_with=lambda name: (name,),
    )
    catalog = Catalog(roster, Resolved(items, (), {}, (), {}), cast(Pool, pool))
    builds: Any = SimpleNamespace(can_come=lambda name: False)
    supervisor = Supervisor()
    return Chooser(roster, catalog, cast(Pool, pool), cast(Any, supervisor), builds), supervisor


async def test_auto_sends_chats_only_where_they_are_answered() -> None:
    choosing, supervisor = chooser(mute=MUTE, talks=None)
    assert (await choosing.choose(Request("auto", **cast(Any, CHAT)), None)).specialist.name == "talks"
    assert supervisor.available == ["talks"]
    assert (await choosing.choose(Request("auto", prompt="Once"), None)).specialist.name == "mute"


async def test_one_that_is_named_for_a_chat_blames_the_model() -> None:
    choosing, _ = chooser(mute=MUTE, talks=None)
    with pytest.raises(ModelTemplateError, match=r"mute cannot answer chats: .* Take another"):
        await choosing.choose(Request("mute", **cast(Any, CHAT)), None)
    assert (await choosing.choose(Request("mute", prompt="Once"), None)).specialist.name == "mute"


async def test_where_none_answers_chats_auto_says_so_and_none_stands_in() -> None:
    choosing, _ = chooser(mute=MUTE, silent=MUTE)
    with pytest.raises(UnavailableError, match="No model of the roster answers chats"):
        await choosing.choose(Request("auto", **cast(Any, CHAT)), None)
    assert choosing.stand_in("mute") is None
    assert choosing.stand_in("mute", chats=False) is not None


async def test_auto_passes_over_who_refuses_the_tools_of_a_request() -> None:
    choosing, supervisor = chooser(tools="refuse", proud=None, handy=None)
    with_tools: Any = {**CHAT, "tools": (Tool("f"),)}
    await choosing.choose(Request("auto", **with_tools), None)
    assert supervisor.available == ["handy"]
    await choosing.choose(Request("auto", **CHAT), None)
    assert supervisor.available == ["proud", "handy"]
    alone, _ = chooser(tools="refuse", proud=None)
    with pytest.raises(RequestError, match="no specialist of the roster takes any") as refusal:
        await alone.choose(Request("auto", **with_tools), None)
    assert refusal.value.param is Part.TOOLS
