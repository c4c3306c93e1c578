"""A model that answers no chats is passed by for them, and says so where it is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coe.engine.errors import ModelTemplateError, UnavailableError
from coe.engine.pool.pool import Pool
from coe.engine.request import Tool
from coe.engine.spec import LoadSpec
from coe.router.choose import Decision, Ranked
from coe.router.client_tasks import DEFAULT
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
        self.remembered: list[str] = []
        self.tasks = DEFAULT

    def current(self, *_: Any) -> None:
        return None

    async def decide(self, *_: Any, available: list[str], **__: Any) -> Any:
        self.available = available
        ranking = tuple(Ranked(name, 0.5) for name in available)
        return Decision(available[0], 1.0, "first", ranking, "math", "ngrams")

    def remember(self, _: Any, __: Any, name: str) -> None:
        self.remembered.append(name)


def chooser(
    contexts: Mapping[str, int] | None = None,
    *,
    tools: str = "auto",
    ignoring: Sequence[str] = (),
    **faults: ModelTemplateError | None,
) -> tuple[Chooser, Supervisor]:
    """tools: of the first. ignoring: those that leave tools out."""
    sizes = contexts or {}
    entries: list[dict[str, Any]] = [
        {"name": name, "file": "m.gguf", "domains": ["math"], "context_tokens": sizes.get(name, 4096)}
        for name in faults
    ]
    entries[0]["tools"] = tools
    for entry in entries:
        if entry["name"] in ignoring:
            entry["tools"] = "ignore"
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


def said(n_chars: int) -> Request:
    return Request("auto", messages=({"role": "user", "content": "x" * n_chars},))


async def test_a_prompt_that_is_surely_too_long_passes_a_small_context_over() -> None:
    choosing, supervisor = chooser({"small": 2048, "large": 8192}, small=None, large=None)
    assert (await choosing.choose(said(8_000), None)).specialist.name == "small"
    choice = await choosing.choose(said(17_000), None)
    assert choice.specialist.name == "large"
    assert choice.reason == "first; small holds 2048 tokens, the prompt has about 2125: large answers"
    assert supervisor.remembered == ["large"]
    assert (await choosing.choose(said(100_000), None)).specialist.name == "small"  # the worker has the last word


async def test_what_a_tokens_characters_were_is_learnt() -> None:
    choosing, _ = chooser({"small": 2048, "large": 8192}, small=None, large=None)
    for _ in range(20):
        choosing.measured("small", said(2_000), 1_000)  # two characters a token, as in Thai
    assert (await choosing.choose(said(8_000), None)).specialist.name == "large"
    assert (await choosing.choose(said(4_000), None)).specialist.name == "small"


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


async def test_tools_that_are_left_out_take_no_room() -> None:
    choosing, _ = chooser({"deaf": 2048, "large": 8192}, tools="ignore", deaf=None, large=None)
    many: Any = {**CHAT, "tools": tuple(Tool(f"tool_{at}", "x" * 1_000) for at in range(24))}
    for _ in range(20):
        choosing.measured("deaf", Request("auto", **many), 30)  # too little text to tell
        choice = await choosing.choose(Request("auto", **many), None)
        assert (choice.specialist.name, choice.reason) == ("deaf", "first")
    assert (await choosing.choose(said(17_000), None)).specialist.name == "large"


async def test_one_that_leaves_tools_out_holds_what_another_cannot() -> None:
    choosing, _ = chooser({"small": 2048, "deaf": 1024}, ignoring=["deaf"], small=None, deaf=None)
    many: Any = {**CHAT, "tools": tuple(Tool(f"tool_{at}", "x" * 1_000) for at in range(24))}
    choice = await choosing.choose(Request("auto", **many), None)
    assert choice.specialist.name == "deaf"
    assert choosing.passing_over(Request("auto", **many), choice, "5000", 5_000, ["deaf"]) is None
