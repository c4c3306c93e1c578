"""Responses, whole and streamed, as the openai package reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from coe.engine.request import CallPiece, Delta, Finish, Finished
from coe.server.api.responses.replies import ResponsesEnvelope, error_body
from coe.server.api.responses.requests import parse_response
from coe.server.roster.models import Specialist
from coe.server.runtime.answer import Answer, Outcome, Step
from coe.server.runtime.calls import ToolCall
from coe.server.runtime.choice import Choice
from coe.server.runtime.college import College
from coe.server.runtime.errors import Failure, Part
from coe.server.runtime.metrics import Metrics
from fakes.college import NOBODY, FakeCollege

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS = [
    {"type": "function", "name": "look"},
    {"type": "namespace", "name": "team", "description": "A team", "tools": [{"type": "function", "name": "wait"}]},
    {"type": "custom", "name": "patch"},
]


class Keeping:
    """Keeps every response."""

    def __init__(self) -> None:
        self.kept: list[Mapping[str, Any]] = []

    def __call__(self, response: Mapping[str, Any]) -> bool:
        self.kept.append(response)
        return True


def end(reason: Finish = Finish.STOP) -> Finished:
    return Finished("", reason, 7, 2, 3, reasoning_tokens=1)


def envelope(keep: Callable[[Mapping[str, Any]], bool] = lambda response: True, **fields: Any) -> ResponsesEnvelope:
    specialist = Specialist.model_validate({"name": "math", "file": "x.gguf", "thinking": "on"})
    parsed = parse_response({"input": "Hi", "tools": TOOLS, **fields})
    answer = Answer(
        cast(College, FakeCollege([])), parsed.request, Choice(specialist, 0.5, "why"), Metrics(lambda: NOBODY)
    )
    return ResponsesEnvelope(answer, parsed=parsed, keep=keep)


def events_of(frames: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for frame in frames:
        named, data = frame.decode().removesuffix("\n\n").split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert named == f"event: {event['type']}"
        yield event


def streamed(made: ResponsesEnvelope, deltas: Sequence[Delta], last: Finished) -> list[bytes]:
    steps = [Step(0, delta) for delta in deltas] + [Step(0, last)]
    return [*made.opening(), *(frame for step in steps for frame in made.frames(step)), *made.closing()]


def put_together(frames: Sequence[bytes]) -> Response:
    """What the openai package makes of a stream."""
    head = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, headers=head, content=b"".join(frames)))
    client = openai.OpenAI(api_key="none", base_url="http://x/v1", http_client=httpx2.Client(transport=transport))
    with client.responses.stream(model="m", input="Hi") as stream:
        for _ in stream:
            pass
        return stream.get_final_response()


PIECES = st.one_of(
    st.builds(lambda text: Delta("", reasoning=text), st.text(min_size=1, max_size=5)),
    st.builds(lambda text: Delta("", text), st.text(min_size=1, max_size=5)),
    st.builds(
        lambda name, text: (name, json.dumps({"input": text})),
        st.sampled_from(["look", "team__wait", "patch"]),
        st.text(max_size=5),
    ),
)


@st.composite
def deltas(draw: st.DrawFn) -> list[Delta]:
    """An answer in pieces: thinking, text and calls in any order, calls cut anywhere, deltas joined or not."""
    found: list[Delta] = []
    calls = 0
    for piece in draw(st.lists(PIECES, max_size=8)):
        if isinstance(piece, Delta):
            found.append(piece)
            continue
        name, arguments = piece
        cut = draw(st.integers(0, len(arguments)))
        told = (
            CallPiece(calls, name),
            CallPiece(calls, None, arguments[:cut]),
            CallPiece(calls, None, arguments[cut:]),
        )
        found += [Delta("", calls=told)] if draw(st.booleans()) else [Delta("", calls=(one,)) for one in told]
        calls += 1
    return found


@given(deltas())
def test_any_stream_is_valid_and_put_together_as_it_ends(pieces: list[Delta]) -> None:
    keeping = Keeping()
    frames = streamed(envelope(keeping), pieces, end())
    events = list(events_of(frames))
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = put_together(frames)
    assert final.status == "completed"
    last = events[-1]["response"]
    assert keeping.kept == [last]
    assert [item.model_dump(exclude_unset=True, exclude={"parsed_arguments", "content"}) for item in final.output] == [
        {name: value for name, value in item.items() if name != "content"} for item in last["output"]
    ]
    said = "".join(delta.text for delta in pieces)
    assert "".join(said.split()) == "".join(final.output_text.split())
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    assert len({item["id"] for item in done}) == len(done)


@given(deltas(), st.sampled_from([Finish.LENGTH, Finish.LOOP]))
def test_any_stream_may_be_cut(pieces: list[Delta], reason: Finish) -> None:
    events = list(events_of(streamed(envelope(), pieces, end(reason))))
    for event in events:
        EVENT.validate_python(event)
    last = events[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in last["response"]["output"][:-1]] == ["completed"] * max(
        0, len(last["response"]["output"]) - 1
    )


@given(deltas())
def test_any_stream_may_break(pieces: list[Delta]) -> None:
    keeping = Keeping()
    made = envelope(keeping)
    frames = [*made.opening(), *(frame for delta in pieces for frame in made.frames(Step(0, delta)))]
    events = list(events_of([*frames, *made.failed(Failure(503, "It died.", "server_error", "worker_died"))]))
    for event in events:
        EVENT.validate_python(event)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "It died."}
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert keeping.kept == []


def test_what_breaks_before_its_first_event_begins_all_the_same() -> None:
    failure = Failure(400, "Too long.", "invalid_request_error", "context_length_exceeded", Part.INPUT)
    events = list(events_of(envelope().failed(failure)))
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure(429, "", "rate_limit_error", "queue_full"), "rate_limit_exceeded"),
        (Failure(400, "", "invalid_request_error", "invalid_schema"), "invalid_prompt"),
        (Failure(422, "", "server_error", "schema_violated"), "server_error"),
    ],
)
def test_a_failure_has_a_code_that_clients_know_and_ours_beside_it(failure: Failure, code: str) -> None:
    (*_, last) = events_of(envelope().failed(failure))
    assert last["response"]["error"]["code"] == code
    assert last["response"]["coe"]["code"] == failure.code


def test_a_whole_response_is_complete_for_the_openai_package() -> None:
    calls = (ToolCall("look", '{"at": 1}'), ToolCall("team__wait", "{}"), ToolCall("patch", '{"input": "x"}'))
    body = envelope(metadata={"a": "b"}).body([Outcome(0, "Yes", end(Finish.CALLS), reasoning="Hm", calls=calls)])
    parsed = Response.model_validate(body)
    assert [item.type for item in parsed.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
        "custom_tool_call",
    ]
    assert parsed.output_text == "Yes"
    assert parsed.usage is not None
    assert parsed.usage.to_dict() == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 10,
    }
    assert (parsed.status, parsed.metadata, parsed.model) == ("completed", {"a": "b"}, "math")
    assert body["id"].startswith("resp_")
    assert body["coe"]["specialist"] == "math"


def test_whole_and_streamed_have_the_same_items() -> None:
    made = envelope()
    deltas = [
        Delta("", reasoning="Hm"),
        Delta("", "Yes"),
        Delta("", calls=(CallPiece(0, "look"), CallPiece(0, None, "{}"))),
    ]
    streamed(made, deltas, end(Finish.CALLS))
    calls = (ToolCall("look", "{}"),)
    whole = ResponsesEnvelope(made._answer, parsed=made._parsed, keep=lambda response: True)
    body = whole.body([Outcome(0, "Yes", end(Finish.CALLS), reasoning="Hm", calls=calls)])
    assert body["output"] == made._items.done


@pytest.mark.parametrize(("wanted", "kept", "store"), [(True, True, True), (True, False, False), (False, True, False)])
def test_store_says_what_was_kept(wanted: bool, kept: bool, store: bool) -> None:
    asked: list[Mapping[str, Any]] = []

    def keep(response: Mapping[str, Any]) -> bool:
        asked.append(response)
        return kept

    body = envelope(keep, store=wanted).body([Outcome(0, "Yes", end())])
    assert body["store"] is store
    assert len(asked) == wanted


def test_an_error_has_openais_envelope_and_this_apis_names() -> None:
    failure = Failure(400, "Too long.", "invalid_request_error", "context_length_exceeded", Part.INPUT)
    assert error_body(failure) == {
        "error": {
            "message": "Too long.",
            "type": "invalid_request_error",
            "param": "input",
            "code": "context_length_exceeded",
        }
    }
