"""Streamed answers: raw frames, and what the openai package makes of them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from fakes.server_process import ENDLESS, GREEDY, ServerProcess

HELLO: Any = [{"role": "user", "content": "Say hello"}]


def events(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a stream that ends as it should."""
    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    assert frames[-1] == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]


def test_the_raw_frames_begin_with_the_role_and_end_with_done(college: ServerProcess) -> None:
    response = college.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *_, last = events(response.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["coe"]["specialist"] == "general"
    assert last["coe"]["residency"] == response.headers["x-coe-residency"]
    assert len({(event["id"], event["object"], event["model"]) for event in events(response.text)}) == 1


def test_a_streams_pieces_are_the_whole_answer(college: ServerProcess) -> None:
    whole = college.chat("Count to ten", max_tokens=20).json()["choices"][0]
    pieces = [event["choices"][0] for event in events(college.chat("Count to ten", max_tokens=20, stream=True).text)]
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == whole["message"]["content"]
    assert pieces[-1]["finish_reason"] == whole["finish_reason"]


def test_the_openai_package_reads_a_stream_and_its_usage(college: ServerProcess) -> None:
    stream = college.openai().chat.completions.create(
        model="general", messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_async_client_reads_a_stream(college: ServerProcess) -> None:
    async with college.async_openai() as client:
        stream = await client.chat.completions.create(model="math", messages=HELLO, max_tokens=5, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts)


def test_several_choices_share_a_stream(college: ServerProcess) -> None:
    pieces = [event["choices"][0] for event in events(college.chat(stream=True, n=2, max_tokens=6).text)]
    for index in (0, 1):
        own = [piece for piece in pieces if piece["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(piece["delta"].get("content", "") for piece in own)
        assert [piece["finish_reason"] for piece in own if piece["finish_reason"]] == ["length"]


def test_logprobs_come_with_the_pieces_of_a_stream(college: ServerProcess) -> None:
    pieces = [
        event["choices"][0]
        for event in events(college.chat(stream=True, logprobs=True, top_logprobs=2, max_tokens=5).text)
    ]
    entries = [entry for piece in pieces if piece.get("logprobs") for entry in piece["logprobs"]["content"]]
    assert len(entries) == 5
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_plain_completions_stream_text(college: ServerProcess) -> None:
    stream = college.openai().completions.create(
        model="coding", prompt="The capital of France is", max_tokens=4, temperature=0, stream=True
    )
    assert "Paris" in "".join(chunk.choices[0].text for chunk in stream)


def test_bad_input_to_a_stream_is_still_a_clean_status(college: ServerProcess) -> None:
    assert college.chat("hello " * 300, model="narrow", stream=True).status_code == 400
    assert college.chat(model="nobody", stream=True).status_code == 404
    assert college.chat(stream=True, temperature="hot").status_code == 400


def test_a_stream_that_waits_for_its_model_begins_with_comments(one_room: ServerProcess) -> None:
    one_room.chat(model="general").raise_for_status()  # so that the other one is cold
    response = one_room.chat(model="narrow", stream=True)
    assert response.status_code == 200
    assert response.text.startswith(": ")
    assert "x-coe-specialist" in response.headers
    assert "x-coe-residency" not in response.headers, "not known yet"
    last = events(response.text)[-1]
    assert last["coe"]["residency"] == "loaded"
    assert last["choices"][0]["finish_reason"] == "length"


def test_the_openai_package_reads_a_stream_that_begins_with_comments(one_room: ServerProcess) -> None:
    one_room.chat(model="general").raise_for_status()
    stream = one_room.openai().chat.completions.create(model="narrow", messages=HELLO, max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_an_error_after_the_first_byte_is_a_frame_and_then_the_end(one_room: ServerProcess) -> None:
    one_room.chat(model="general").raise_for_status()
    response = one_room.chat("hello " * 300, model="narrow", stream=True)
    assert response.status_code == 200
    frames = [frame for frame in response.text.split("\n\n") if frame and not frame.startswith(":")]
    assert len(frames) == 1, "nothing after the error"
    error = json.loads(frames[0].removeprefix("data: "))["error"]
    assert error["code"] == "context_length_exceeded"
    assert one_room.leases() == 0


def test_the_openai_package_raises_the_error_of_a_stream_that_has_begun(one_room: ServerProcess) -> None:
    one_room.chat(model="general").raise_for_status()
    long: Any = [{"role": "user", "content": "hello " * 300}]
    stream = one_room.openai().chat.completions.create(model="narrow", messages=long, stream=True)
    with pytest.raises(openai.APIError, match="maximum context length is"):
        list(stream)


def test_a_stream_that_loops_ends_there_and_says_so(college: ServerProcess) -> None:
    body = {"model": "coding", "prompt": "the cat and the dog and " * 8, "stream": True, **ENDLESS, **GREEDY}
    last = events(college.http.post("/v1/completions", json=body).text)[-1]
    assert last["coe"]["loop"]["repeated"]
    assert last["choices"][0]["finish_reason"] == "length"
