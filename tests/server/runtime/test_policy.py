"""A specialist's rules applied to a request."""

from __future__ import annotations

from typing import Any

import pytest

from coe.engine.spec import ThinkingMode
from coe.router.client_tasks import ClientTask
from coe.server.api.openai.requests import parse_chat
from coe.server.roster.models import Specialist
from coe.server.runtime.errors import Part, RequestError, RuleError
from coe.server.runtime.policy import Rules, drawn, rules_for
from coe.server.runtime.request import Request


def rules(specialist: dict[str, Any] | None = None, **fields: Any) -> Rules:
    entry = Specialist.model_validate({"name": "math", "file": "x.gguf", **(specialist or {})})
    return rules_for(parse_chat({"messages": [{"role": "user", "content": "Hi"}], **fields}).request, entry)


def test_the_roster_gives_the_defaults() -> None:
    found = rules({"sampling": {"temperature": 0.3, "top_k": 7}, "max_tokens": 50})
    assert (found.sampling.temperature, found.sampling.top_k, found.max_tokens) == (0.3, 7, 50)
    assert found.notes == ()


def test_a_request_overrides_field_by_field() -> None:
    found = rules({"sampling": {"temperature": 0.3, "top_k": 7}, "max_tokens": 50}, top_k=9, max_tokens=20)
    assert (found.sampling.temperature, found.sampling.top_k, found.max_tokens) == (0.3, 9, 20)


@pytest.mark.parametrize(("asked", "noted"), [(0.79, False), (0.8, True), (0.99, True)])
def test_a_temperature_is_noted_from_0_8(asked: float, noted: bool) -> None:
    found = rules(temperature=asked)
    assert found.sampling.temperature == asked
    assert bool(found.notes) is noted


def test_a_temperature_of_1_is_lowered_unless_the_roster_says_otherwise() -> None:
    found = rules(temperature=1.0)
    assert found.sampling.temperature == 0.99
    assert found.notes == ("temperature 1 was lowered to 0.99",)


def test_a_roster_may_refuse_what_is_above_its_bound() -> None:
    bounds = {"sampling_bounds": {"max_temperature": 0.5, "on_excess": "refuse"}}
    assert rules(bounds, temperature=0.5).sampling.temperature == 0.5
    with pytest.raises(RequestError, match=r"at most 0\.5, 0\.6") as refusal:
        rules(bounds, temperature=0.6)
    assert refusal.value.param == "temperature"


def test_a_roster_may_allow_what_is_above_its_bound() -> None:
    found = rules({"sampling_bounds": {"on_excess": "allow"}}, temperature=1.5)
    assert found.sampling.temperature == 1.5
    assert "loops" in found.notes[0]


@pytest.mark.parametrize(
    ("roster", "asked", "found", "noted"),
    [
        ({}, None, "normal", ""),
        ({}, True, "normal", ""),
        ({}, "normal", "normal", ""),
        ({}, False, None, ""),
        ({}, "strict", "strict", ""),
        ({}, "patient", "patient", ""),
        ({"loop_guard": False}, None, None, ""),
        ({"loop_guard": False}, "strict", "strict", ""),
        ({"loop_guard": "patient"}, None, "patient", ""),
        ({"loop_guard": True}, None, "normal", ""),
        ({"sampling_bounds": {"max_patience": "patient"}}, False, "patient", "loop_guard false was changed to patient"),
        ({"sampling_bounds": {"max_patience": "patient"}}, "strict", "strict", ""),
        ({"sampling_bounds": {"max_patience": True}}, "patient", "normal", "loop_guard patient was changed to normal"),
        ({"loop_guard": False, "sampling_bounds": {"max_patience": "strict"}}, False, None, ""),
        ({"sampling_bounds": {"max_patience": "strict", "on_excess": "allow"}}, False, None, ""),
    ],
)
def test_a_request_says_how_patient_the_loop_guard_is(
    roster: dict[str, Any], asked: Any, found: str | None, noted: str
) -> None:
    got = rules(roster, loop_guard=asked)
    assert got.loop_guard == found
    assert got.notes == ((noted,) if noted else ())


def test_a_roster_may_refuse_more_patience() -> None:
    bounds = {"sampling_bounds": {"max_patience": "normal", "on_excess": "refuse"}}
    with pytest.raises(RequestError, match="at most normal, false") as refusal:
        rules(bounds, loop_guard=False)
    assert refusal.value.param == "loop_guard"


def test_a_second_try_of_what_was_not_drawn_is_drawn() -> None:
    greedy = rules(temperature=0)
    again = drawn(greedy)
    assert again.sampling.temperature > 0
    assert len(again.notes) == 1
    assert drawn(again) == again


def test_the_rosters_own_temperature_is_nobodys_excess() -> None:
    assert rules({"sampling": {"temperature": 1.2}}).notes == ()


def test_thinking_cannot_be_switched_on() -> None:
    found = rules(think=True)
    assert found.thinking.mode is ThinkingMode.OFF
    assert found.notes == ("math does not think: thinking stays off",)


def test_thinking_can_be_switched_off() -> None:
    found = rules({"thinking": {"budget": 100}}, think=False)
    assert found.thinking.mode is ThinkingMode.OFF
    assert found.thinking.budget_tokens is None


def test_a_wish_for_thinking_leaves_the_budget_as_it_is() -> None:
    found = rules({"thinking": {"budget": 100}}, reasoning_effort="high")
    assert (found.thinking.mode, found.thinking.budget_tokens) == (ThinkingMode.BUDGET, 100)
    assert found.notes == ()


TOOLS = [{"type": "function", "function": {"name": "now"}}]


@pytest.mark.parametrize(("asked", "generic"), [("auto", False), ("native", False), ("generic", True)])
def test_the_roster_says_in_which_form_tools_are_called(asked: str, generic: bool) -> None:
    found = rules({"tools": asked}, tools=TOOLS, tool_choice="required")
    assert [tool.name for tool in found.tools] == ["now"]
    assert (found.tool_use.generic, found.tool_use.required) == (generic, True)
    assert found.notes == ()


def test_who_ignores_tools_says_so_where_there_are_some() -> None:
    found = rules({"tools": "ignore"}, tools=TOOLS)
    assert found.tools == ()
    assert "math calls no tools" in found.notes[0]
    assert rules({"tools": "ignore"}).notes == rules({"tools": "ignore"}, tools=TOOLS, tool_choice="none").notes == ()


@pytest.mark.parametrize(
    "demand",
    [
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "now"}}},
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [TOOLS[0]]}},
        {"functions": [{"name": "now"}], "function_call": {"name": "now"}},
    ],
    ids=["required", "named", "allowed", "function_call"],
)
def test_a_demanded_call_is_refused_by_who_calls_no_tools(demand: dict[str, Any]) -> None:
    with pytest.raises(RuleError, match="math calls no tools, and a call is demanded") as refusal:
        rules({"tools": "ignore"}, **demand)
    assert refusal.value.param is Part.TOOL_CHOICE
    assert "Ask another specialist" in refusal.value.message
    assert "Leave tool_choice (or function_call) at auto" in refusal.value.message
    with pytest.raises(RuleError, match="math takes none"):
        rules({"tools": "refuse"}, **demand)
    assert rules({}, **demand).tool_use.required


def test_who_refuses_tools_is_named_and_takes_requests_without() -> None:
    with pytest.raises(RequestError, match="math takes none") as refusal:
        rules({"tools": "refuse"}, tools=TOOLS)
    assert refusal.value.param is Part.TOOLS
    assert rules({"tools": "refuse"}, tools=TOOLS, tool_choice="none").tools == ()


@pytest.mark.parametrize(("asked", "noted"), [(512, False), (1024, False), (1025, True)])
def test_a_context_larger_than_the_specialists_is_noted(asked: int, noted: bool) -> None:
    entry = Specialist.model_validate({"name": "math", "file": "x.gguf", "context_tokens": 1024})
    found = rules_for(Request("math", prompt="Hi", wanted_context=asked), entry)
    assert any("1025" in note and "1024" in note for note in found.notes) is noted


@pytest.mark.parametrize(
    ("of_roster", "of_client", "bounds"),
    [
        (None, None, True),
        (None, 1_000, True),
        (None, 128, False),
        (None, 20, False),
        (64, None, False),
        (64, 500, True),
    ],
)
def test_a_clients_task_is_bounded_where_less_is_not_wanted(
    of_roster: int | None, of_client: int | None, bounds: bool
) -> None:
    task = ClientTask("title", 128)
    entry = Specialist.model_validate({"name": "math", "file": "x.gguf", "max_tokens": of_roster})
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": of_client}
    request = parse_chat(body).request
    found = rules_for(request, entry, task)
    assert found.task == (task if bounds else None)
    assert found.max_tokens == (of_roster if of_client is None else of_client)
    assert rules_for(request, entry, ClientTask("lunch")).task is None
    assert rules_for(request, entry).task is None


def test_what_was_left_out_of_a_body_is_noted() -> None:
    assert "web_search" in rules(tools=[*TOOLS, {"type": "web_search"}]).notes[0]
