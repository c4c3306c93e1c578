"""Messages of Anthropic's API without a college: envelopes, their streams, and what a client makes of the events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from hypothesis import strategies as st

from coe.engine.request import CallPiece, Delta, Event, Finish, Finished
from coe.server.api.anthropic.replies import MessageEnvelope
from coe.server.api.anthropic.requests import parse_messages
from coe.server.roster.models import Specialist
from coe.server.runtime.answer import Answer, Step
from coe.server.runtime.choice import Choice
from coe.server.runtime.college import College
from coe.server.runtime.metrics import Metrics
from fakes.college import NOBODY, FakeCollege


def end(reason: Finish = Finish.STOP, *, prompt: int = 7, completion: int = 3, **more: Any) -> Finished:
    return Finished("", reason, prompt, 2, completion, **more)


def envelope(*, thinking: Any = "off", **fields: Any) -> MessageEnvelope:
    about = {"name": "math", "file": "x.gguf", "thinking": thinking, "context_tokens": 512}
    hi = [{"role": "user", "content": "Hi"}]
    request = parse_messages({"messages": hi, "thinking": {"type": "adaptive"}, **fields})
    choice = Choice(Specialist.model_validate(about), 0.5, "why")
    return MessageEnvelope(Answer(cast(College, FakeCollege([])), request, choice, Metrics(lambda: NOBODY)))


THINKS = {"mode": "budget", "budget": 100}


def events(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    """The events of frames, each named as its type."""
    found = []
    for frame in frames:
        name, data, *rest = frame.decode().split("\n")
        assert rest == ["", ""]
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def stream_frames(one: MessageEnvelope, script: Sequence[Event]) -> list[bytes]:
    frames = [*one.opening()]
    for event in script:
        frames += one.frames(Step(0, event))
    return [*frames, *one.closing()]


def streamed(one: MessageEnvelope, script: Sequence[Event]) -> list[dict[str, Any]]:
    return events(stream_frames(one, script))


def put_together(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A message, as a client makes it of events; it holds to the order of them."""
    first, *middle, last_but_one, last = found
    message: dict[str, Any] = first["message"]
    assert (first["type"], last_but_one["type"], last["type"]) == ("message_start", "message_delta", "message_stop")
    is_open, arguments = False, ""
    for event in middle:
        kind = event["type"].removeprefix("content_block_")
        if kind == "start":
            assert not is_open
            assert event["index"] == len(message["content"])
            is_open, arguments = True, ""
            message["content"].append(dict(event["content_block"]))
            continue
        assert is_open
        assert event["index"] == len(message["content"]) - 1
        block = message["content"][-1]
        if kind == "stop":
            is_open = False
            if block["type"] == "tool_use":
                block["input"] = json.loads(arguments or "{}")
            continue
        delta = event["delta"]
        if delta["type"] == "input_json_delta":
            assert block["type"] == "tool_use"
            arguments += delta["partial_json"]
        elif delta["type"] == "signature_delta":
            block["signature"] = delta["signature"]
        else:
            assert delta["type"] == f"{block['type']}_delta"
            block[block["type"]] += delta[block["type"]]
    assert not is_open
    return {**message, **last_but_one["delta"], "usage": {**message["usage"], **last_but_one["usage"]}, "coe": {}}


PIECES = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.text("a \n", max_size=4)),
        st.tuples(st.just("reasoning"), st.text("a \n", max_size=4)),
        st.tuples(st.just("call"), st.integers(1, 9)),
    ),
    max_size=12,
)


def scripted(pieces: Sequence[tuple[str, Any]]) -> list[Delta]:
    """Deltas of pieces; the arguments of a call come in parts of so many characters."""
    deltas, n_calls = [], 0
    for kind, value in pieces:
        if kind == "call":
            written = json.dumps({"path": f"/{n_calls}"})
            parts = [written[at : at + value] for at in range(0, len(written), value)]
            deltas.append(Delta("", calls=(CallPiece(n_calls, "Read"),)))
            deltas += [Delta("", calls=(CallPiece(n_calls, None, part),)) for part in parts]
            n_calls += 1
        else:
            deltas.append(Delta("", **{kind: value}))
    return deltas
