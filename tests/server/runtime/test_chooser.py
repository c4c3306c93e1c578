"""A model that answers no chats is passed by for them, and says so where it is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coe.engine.errors import ModelTemplateError, UnavailableError
from coe.engine.pool.places import Memory
from coe.engine.pool.pool import Pool
from coe.engine.request import Tool, ToolUse
from coe.engine.spec import LoadSpec
from coe.router.choose import Decision, Ranked
from coe.router.client_tasks import DEFAULT
from coe.server.roster.model_files import Location
from coe.server.roster.models import Roster
from coe.server.runtime.availability import Servable
from coe.server.runtime.catalog import Catalog
from coe.server.runtime.chooser import Chooser
from coe.server.runtime.errors import Part, RequestError, UnknownModelError
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
        self.encoder = None

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
    bounds: Mapping[str, Mapping[str, Any]] | None = None,
    aliases: Sequence[str] = (),
    filling: Mapping[str, bool] | None = None,
    **faults: ModelTemplateError | None,
) -> tuple[Chooser, Supervisor]:
    """tools: of the first. ignoring: those that leave tools out. bounds: of sampling, by name. aliases: of `auto`.
    filling: whether they fill the middle, where it is known."""
    sizes = contexts or {}
    entries: list[dict[str, Any]] = [
        {"name": name, "file": "m.gguf", "domains": ["math"], "context_tokens": sizes.get(name, 4096)}
        for name in faults
    ]
    entries[0]["tools"] = tools
    for entry in entries:
        if entry["name"] in ignoring:
            entry["tools"] = "ignore"
        entry["sampling_bounds"] = (bounds or {}).get(entry["name"], {})
    router = {"aliases": list(aliases)}
    roster = Roster.model_validate({"specialists": entries, "fallback": None, "fallback_warm": True, "router": router})
    items = {
        entry.name: Servable(
            *(entry, cast(Location, None), cast(LoadSpec, None), None, faults[entry.name]),
            infill=(filling or {}).get(entry.name),
        )
        for entry in roster.specialists
    }
    pool = SimpleNamespace(
        is_warm=lambda name: False,
        ready_in_s=lambda name: 0.0,
        is_resident=lambda name: False,
        prompt_tokens_per_s=lambda name: None,
        shared_with=lambda name: (name,),
    )
    catalog = Catalog(roster, Resolved(Memory(), items, (), {}, (), {}), cast(Pool, pool))
    builds: Any = SimpleNamespace(can_come=lambda name: False)
    supervisor = Supervisor()
    return Chooser(roster, catalog, cast(Pool, pool), cast(Any, supervisor), builds), supervisor


async def test_auto_sends_chats_only_where_they_are_answered() -> None:
    choosing, supervisor = chooser(mute=MUTE, talks=None)
    assert (await choosing.choose(Request("auto", **cast(Any, CHAT)), None)).specialist.name == "talks"
    assert supervisor.available == ["talks"]
    assert (await choosing.choose(Request("auto", prompt="Once"), None)).specialist.name == "mute"


async def test_a_gap_goes_where_it_can_be_filled() -> None:
    choosing, supervisor = chooser(filling={"talks": False, "codes": True}, talks=None, codes=None, unknown=None)
    gap = Request("auto", prompt="def f(", suffix="):")
    assert (await choosing.choose(gap, None)).specialist.name == "codes"
    assert supervisor.available == ["codes", "unknown"]
    assert (await choosing.unasked(gap)).specialist.name == "codes"
    assert choosing.stand_in("codes", gap).name == "unknown"  # type: ignore[union-attr]
    assert (await choosing.choose(Request("auto", prompt="def f("), None)).specialist.name == "talks"
    named = await choosing.choose(Request("talks", prompt="def f(", suffix="):"), None)
    assert named.specialist.name == "talks", "its worker says that it cannot"


async def test_where_none_can_fill_a_gap_one_is_left_to_say_so() -> None:
    choosing, _ = chooser(filling={"talks": False}, talks=None)
    assert (await choosing.choose(Request("auto", prompt="a", suffix="b"), None)).specialist.name == "talks"


async def test_another_name_for_auto_asks_the_supervisor() -> None:
    choosing, supervisor = chooser(talks=None, aliases=["claude-*"])
    assert (await choosing.choose(Request("claude-opus-5-5", **cast(Any, CHAT)), None)).decision is not None
    assert supervisor.available == ["talks"]
    with pytest.raises(UnknownModelError, match=r"There is no model 'gpt-4'. Known: auto, talks\. .* router\.aliases"):
        await choosing.choose(Request("gpt-4", **cast(Any, CHAT)), None)


async def test_one_that_is_named_for_a_chat_blames_the_model() -> None:
    choosing, _ = chooser(mute=MUTE, talks=None)
    with pytest.raises(ModelTemplateError, match=r"mute cannot answer chats: .* Take another"):
        await choosing.choose(Request("mute", **cast(Any, CHAT)), None)
    assert (await choosing.choose(Request("mute", prompt="Once"), None)).specialist.name == "mute"


@pytest.mark.parametrize("model", ["auto", "talks"])
async def test_a_clients_task_is_known_whoever_is_asked(model: str) -> None:
    choosing, _ = chooser(talks=None)
    title = "Generate a title for this conversation:\nUSER: how do tides work?"
    choice = await choosing.choose(Request(model, messages=({"role": "user", "content": title},)), None)
    assert choice.task is not None
    assert (choice.task.name, choice.task.answer_tokens) == ("title", 128)
    assert (await choosing.choose(Request(model, **cast(Any, CHAT)), None)).task is None


async def test_where_none_answers_chats_auto_says_so_and_none_stands_in() -> None:
    choosing, _ = chooser(mute=MUTE, silent=MUTE)
    with pytest.raises(UnavailableError, match="No model of the roster answers chats"):
        await choosing.choose(Request("auto", **cast(Any, CHAT)), None)
    assert choosing.stand_in("mute", Request("mute", **cast(Any, CHAT))) is None
    assert choosing.stand_in("mute", Request("mute", prompt="Once")) is not None


def said(n_chars: int) -> Request:
    return Request("auto", messages=({"role": "user", "content": "x" * n_chars},))


async def test_a_prompt_that_is_surely_too_long_passes_a_small_context_over() -> None:
    choosing, supervisor = chooser({"small": 2048, "large": 8192}, small=None, large=None)
    assert (await choosing.choose(said(8_000), None)).specialist.name == "small"
    choice = await choosing.choose(said(17_000), None)
    assert choice.specialist.name == "large"
    assert choice.reason == "first; small holds 2048 tokens, the prompt has about 2125: large answers"
    assert supervisor.remembered[-1] == "large"
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
    choice = await choosing.choose(Request("auto", **with_tools), None)
    assert supervisor.available == ["handy"]
    assert choice.reason == "first; proud is passed over (tools: takes none)"
    assert supervisor.remembered == ["handy"]
    await choosing.choose(Request("auto", **CHAT), None)
    assert supervisor.available == ["proud", "handy"]
    alone, _ = chooser(tools="refuse", proud=None)
    with pytest.raises(RequestError, match=r"no specialist of the roster serves this: .* Send none") as refusal:
        await alone.choose(Request("auto", **with_tools), None)
    assert refusal.value.param is Part.TOOLS


DEMAND: Any = {**CHAT, "tools": (Tool("f"),), "tool_use": ToolUse(required=True)}


async def test_a_demanded_call_passes_over_who_calls_no_tools() -> None:
    choosing, supervisor = chooser(ignoring=["deaf"], deaf=None, handy=None)
    choice = await choosing.choose(Request("auto", **DEMAND), "chat-1")
    assert choice.specialist.name == "handy"
    assert choice.reason == "first; deaf is passed over (tool_choice: calls no tools, and a call is demanded)"
    assert supervisor.remembered == ["handy"], "the one that was passed over has not had the conversation"
    may_call: Any = {**CHAT, "tools": (Tool("f"),)}
    choice = await choosing.choose(Request("auto", **may_call), None)
    assert (choice.specialist.name, choice.reason) == ("deaf", "first"), "the humans' words choose, not the tools"
    nobody, _ = chooser(tools="refuse", ignoring=["deaf"], proud=None, deaf=None)
    with pytest.raises(RequestError, match="no specialist of the roster serves this"):
        await nobody.choose(Request("auto", **DEMAND), None)
    silent, _ = chooser(ignoring=["deaf"], deaf=None)
    with pytest.raises(RequestError, match="Leave tool_choice") as refusal:
        await silent.choose(Request("auto", **DEMAND), None)
    assert refusal.value.param is Part.TOOL_CHOICE


async def test_whatever_else_the_rules_of_one_refuse_is_asked_of_another() -> None:
    strict = {"max_temperature": 0.5, "on_excess": "refuse"}
    choosing, _ = chooser(bounds={"strict": strict}, strict=None, lenient=None)
    hot = Request("auto", **cast(Any, CHAT), overrides={"temperature": 0.7})
    choice = await choosing.choose(hot, None)
    assert choice.specialist.name == "lenient"
    assert choice.reason == "first; strict is passed over (temperature: takes at most 0.5, 0.7 was asked for)"
    alone, _ = chooser(bounds={"strict": strict}, strict=None)
    with pytest.raises(RequestError, match=r"temperature: no specialist of the roster serves this: strict takes"):
        await alone.choose(hot, None)


async def test_who_refuses_a_request_neither_stands_in_nor_lends_its_context() -> None:
    choosing, _ = chooser({"deaf": 8192}, ignoring=["deaf"], deaf=None, handy=None, small=None)
    request = Request("auto", **DEMAND)
    stand_in = choosing.stand_in("handy", request)
    assert stand_in is not None
    assert stand_in.name == "small"
    assert choosing.largest_context(request) == 4096
    choice = await choosing.choose(request, None)
    assert choosing.passing_over(request, choice, "5000", 5_000, [choice.specialist.name]) is None


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
