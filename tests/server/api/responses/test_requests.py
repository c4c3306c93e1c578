"""Bodies of the Responses API: what they come to, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response

from coe.engine.request import Patience
from coe.server.api.responses.requests import Parsed, parse_response
from coe.server.api.responses.store import Item, Stored
from coe.server.runtime.errors import RequestError
from coe.server.runtime.request import Request

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def parsed(**body: Any) -> Parsed:
    return parse_response({"input": "Hi", **body})


def request(**body: Any) -> Request:
    return parsed(**body).request


def refused(**body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(**body)
    return caught.value


# --- input ----------------------------------------------------------------------------------------------------------


def test_a_text_is_a_message_of_the_user_and_instructions_come_first() -> None:
    assert request(instructions="Be kind.").messages == (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    )


def test_roles_and_parts() -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "three"}], "id": "msg_1"},
        {"role": "user", "content": "four"},
    ]
    assert request(input=items).messages == (
        {"role": "system", "content": "Be"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    )


TURN = [
    {"role": "user", "content": "Weather?"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": '{"at": "Rome"}'},
    {"type": "function_call", "call_id": "call_2", "name": "wait", "namespace": "team", "arguments": ""},
    {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "waited"}]},
    {"type": "function_call_output", "call_id": "call_1", "output": "sunny", "id": "fco_1"},
]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [0, 3, 1, 4, 2, 5, 6], [0, 2, 3, 4, 1, 5, 6]])
def test_what_stands_between_results_is_one_turn_in_whatever_order(order: list[int]) -> None:
    messages = request(input=[TURN[index] for index in order]).messages or ()
    assert messages[1] == {
        "role": "assistant",
        "content": "I look.",
        "reasoning": "Hm",
        "tool_calls": [
            {"id": "call_1", "name": "look", "arguments": {"at": "Rome"}},
            {"id": "call_2", "name": "team__wait", "arguments": {}},
        ],
    }
    assert [(message["name"], message["content"]) for message in messages[2:]] == [
        ("look", "sunny"),
        ("team__wait", "waited"),
    ]


def test_calls_after_a_result_are_another_turn() -> None:
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a", "output": "1"}
    again = [{**call, "call_id": "b"}, {**output, "call_id": "b"}]
    messages = request(input=[{"role": "user", "content": "Go"}, call, output, *again]).messages or ()
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "tool"]


def test_a_text_for_a_tool_comes_back_as_its_argument() -> None:
    items = [
        {"role": "user", "content": "Mend it"},
        {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
    ]
    messages = request(input=items).messages or ()
    assert messages[1]["tool_calls"] == [{"id": "c", "name": "apply_patch", "arguments": {"input": "*** Begin"}}]
    assert messages[2]["name"] == "apply_patch"


def test_summaries_are_not_read_as_thinking() -> None:
    told = {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "Loading, 40 %"}]}
    messages = request(input=[TURN[0], told, *TURN[3:]]).messages or ()
    assert "reasoning" not in messages[1]


def test_what_a_local_model_has_no_use_for_is_left_out_and_noted() -> None:
    seen = {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_image", "image_url": "x"}]}
    found = request(input=[*TURN[:5], seen, {"type": "web_search_call", "id": "ws_1", "status": "completed"}])
    assert found.notes == (
        "parts of type input_image, items of type web_search_call in the input are not served and were left out",
    )
    assert "an image" in (found.messages or ())[2]["content"]


def test_parts_of_an_answer_that_are_no_text_do_not_end_its_conversation() -> None:
    parts = [{"type": "output_text", "text": "Hello"}, {"type": "output_audio", "data": "x"}]
    found = request(input=[TURN[0], {"role": "assistant", "content": parts}, {"role": "user", "content": "?"}])
    assert (found.messages or ())[1]["content"] == "Hello"
    assert "output_audio" in found.notes[0]


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([3], "input[0]"),
        ([{"content": "Hi"}], "input[0]"),
        ([{"role": "tool", "content": "Hi"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "input[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}], "input[0].content[0]"),
        ([{"type": "function_call", "arguments": "{}"}], "input[0].name"),
        ([{"type": "function_call_output", "output": 3}], "input[0].output"),
        ([{"type": "compaction", "encrypted_content": "x"}], "input[0]"),
        ([{"id": "msg_1"}], "input[0]"),
        ([{"type": "item_reference", "id": "msg_1"}], "input[0]"),
        ([], "input"),
        ([{"type": "web_search_call", "id": "ws"}], "input"),
        ("missing", "input"),
    ],
)
def test_an_input_at_fault_is_named(items: Any, param: str) -> None:
    body = {} if items == "missing" else {"input": items}
    with pytest.raises(RequestError) as caught:
        parse_response(body)
    assert caught.value.param == param


# --- going on -------------------------------------------------------------------------------------------------------


def test_a_response_is_gone_on_from_without_its_instructions() -> None:
    output: list[Item] = [{"type": "message", "id": "msg_1", "role": "assistant", "content": "Hello"}]
    before = Stored({"id": "resp_1", "output": output}, [{"role": "user", "content": "Hi"}])
    found = parse_response(
        {"input": "And now?", "instructions": "Be kind.", "previous_response_id": "resp_1"}, {"resp_1": before}.get
    )
    assert [message["content"] for message in found.request.messages or ()] == ["Be kind.", "Hi", "Hello", "And now?"]
    assert len(found.items) == 3
    assert found.items_size > 0


def test_a_response_that_is_not_kept_is_refused_in_openais_words() -> None:
    error = refused(previous_response_id="resp_9")
    assert (error.status, error.code, error.param) == (400, "previous_response_not_found", "previous_response_id")
    assert error.message.startswith("Previous response with id 'resp_9' not found.")


def test_an_item_that_is_referred_to_stands_in_its_place() -> None:
    kept: dict[str, Item] = {"msg_1": {"type": "message", "id": "msg_1", "role": "assistant", "content": "Hello"}}
    items = [
        {"role": "user", "content": "Hi"},
        {"type": "item_reference", "id": "msg_1"},
        {"role": "user", "content": "?"},
    ]
    found = parse_response({"input": items}, known=kept.get)
    assert (found.request.messages or ())[1] == {"role": "assistant", "content": "Hello"}
    assert found.items[1] == kept["msg_1"]


# --- fields ---------------------------------------------------------------------------------------------------------


def test_what_the_api_names_and_what_chats_take_beside_it() -> None:
    found = request(
        model="math",
        stream=True,
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        seed=3,
        stop="END",
        loop_guard="strict",
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_logprobs=4,
        reasoning={"effort": "none", "summary": "auto"},
    )
    assert (found.model, found.stream, found.max_tokens, found.seed, found.stop) == ("math", True, 9, 3, ("END",))
    assert found.overrides == {"temperature": 0.5, "top_p": 0.9, "top_k": 5}
    assert (found.top_logprobs, found.wants_thinking, found.loop_guard) == (4, False, Patience.STRICT)
    assert found.notes == ()


def test_left_out_is_left_open() -> None:
    found = request(reasoning={"summary": "auto"}, include=[], text={}, tools=[], metadata={}, store=None)
    assert (found.top_logprobs, found.wants_thinking, found.response_format, found.max_tokens) == (None,) * 4
    assert (found.model, found.stream, found.n) == ("auto", False, 1)


@pytest.mark.parametrize(("store", "stores"), [(None, True), (True, True), (False, False)])
def test_answers_are_kept_unless_the_client_does_not_want_that(store: bool | None, stores: bool) -> None:
    assert parsed(store=store).stores is stores


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True},
        {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}},
    ],
)
def test_a_format_has_its_schema_beside_its_type(form: dict[str, Any]) -> None:
    found = parsed(text={"format": form})
    assert found.request.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
    }
    assert found.echo["text"]["format"] == {"type": "json_schema", "name": "answer", "strict": True, "schema": SCHEMA}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"messages": [{}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"maxOutputTokens": 3}, "maxOutputTokens"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": -5}, "max_output_tokens"),
        ({"truncation": "middle"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.json_schema"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]}, "tools[0].tools[0].name"),
        ({"tools": [{"type": "namespace", "tools": []}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
    ],
)
def test_a_field_at_fault_is_named(body: dict[str, Any], param: str) -> None:
    assert refused(**body).param == param


@pytest.mark.parametrize(
    "body",
    [
        {"background": False, "conversation": None, "n": 1, "max_tool_calls": 3, "service_tier": "auto"},
        {"stream_options": {"include_obfuscation": False}, "prompt_cache_retention": "24h", "user": "me"},
        {"client_metadata": {"a": "b"}, "truncation": "disabled", "text": {"verbosity": "medium"}},
    ],
)
def test_what_asks_for_nothing_is_taken_without_a_word(body: dict[str, Any]) -> None:
    assert request(**body).notes == ()


def test_what_is_passed_over_is_noted() -> None:
    notes = request(truncation="auto", text={"verbosity": "low"}).notes
    assert notes == ("truncation is not served and was ignored", "text.verbosity is not served and was ignored")


# --- tools ----------------------------------------------------------------------------------------------------------

FUNCTION = {"type": "function", "name": "look", "description": "Looks", "parameters": SCHEMA, "strict": True}
NAMESPACE = {"type": "namespace", "name": "team", "description": "", "tools": [{"type": "function", "name": "wait"}]}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}
CUSTOM = {"type": "custom", "name": "apply_patch", "description": "Patches", "format": GRAMMAR}


def test_functions_namespaces_and_texts_are_functions_to_a_model() -> None:
    found = parsed(tools=[FUNCTION, NAMESPACE, CUSTOM, {"type": "web_search", "external_web_access": True}])
    look, wait, patch = found.request.tools
    assert (look.name, look.description, look.parameters, look.strict) == ("look", "Looks", SCHEMA, True)
    assert (wait.name, wait.parameters["properties"]) == ("team__wait", {})
    assert patch.strict
    assert patch.parameters["required"] == ["input"]
    assert "start: /x/" in patch.description
    assert found.request.notes == ("tools of type web_search are not served and were left out",)
    assert (found.tools.named("team__wait").namespace, found.tools.named("team__wait").name) == ("team", "wait")
    assert found.tools.named("apply_patch").custom
    assert [tool["type"] for tool in found.echo["tools"]] == ["function", "namespace", "custom"]


@pytest.mark.parametrize(
    ("choice", "only", "required"),
    [
        ("auto", (), False),
        ("required", (), True),
        ({"type": "function", "name": "look"}, ("look",), True),
        ({"type": "function", "name": "wait", "namespace": "team"}, ("team__wait",), True),
        ({"type": "custom", "name": "apply_patch"}, ("apply_patch",), True),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "apply_patch"}]},
            ("apply_patch",),
            False,
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]},
            ("look",),
            True,
        ),
    ],
)
def test_choices(choice: Any, only: tuple[str, ...], required: bool) -> None:
    use = request(tools=[FUNCTION, NAMESPACE, CUSTOM], tool_choice=choice).tool_use
    assert (tuple(use.only), use.required) == (only, required)


def test_none_forbids_calls_and_leaves_the_prompt_as_it_was() -> None:
    found = request(tools=[FUNCTION], tool_choice="none")
    assert [tool.name for tool in found.tools] == ["look"]
    assert found.tool_use.forbidden


def test_what_is_repeated_is_as_the_openai_package_has_it() -> None:
    found = parsed(
        tools=[FUNCTION, NAMESPACE, CUSTOM],
        tool_choice={"type": "function", "function": {"name": "look"}},
        text={"format": {"type": "json_schema", "schema": SCHEMA}},
        reasoning={"effort": "low", "summary": "auto"},
        metadata={"a": "b"},
        user="me",
    )
    response = {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [], **found.echo}
    assert Response.model_validate(response).tool_choice.name == "look"  # type: ignore[union-attr]
