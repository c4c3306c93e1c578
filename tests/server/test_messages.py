"""Anthropic's API of the running server: reuse of an agent's turns, counts that move nobody, lists of models."""

from __future__ import annotations

import json
from typing import Any

from fakes.server_process import ServerProcess

VERSION = {"anthropic-version": "2023-06-01"}
SKY: Any = [{"role": "user", "content": "Why is the sky blue?"}]


def posted(server: ServerProcess, path: str, **body: Any) -> Any:
    reply = server.http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def warm(server: ServerProcess) -> set[str]:
    models = server.http.get("/v1/models").json()["data"]
    return {model["id"] for model in models if model["coe"].get("warm")}


def test_an_agents_turn_is_found_in_the_cache(college: ServerProcess) -> None:
    """Whatever a client changes about the way in which it writes the same."""
    environment = "# Environment\n" + "You work on Linux, in a folder of files. " * 8
    tools = [{"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}]

    def turn(version: str, environment: Any, *more: Any) -> Any:
        billing = f"x-anthropic-billing-header: cc_version=2.1.332.{version}; cc_entrypoint=cli;"
        return posted(
            college,
            "/v1/messages?beta=true",
            model="general",
            max_tokens=4,
            temperature=0,
            system=[text(billing), text("You are an agent.", cache_control={"type": "ephemeral"})],
            tools=tools,
            messages=[{"role": "user", "content": [text("Go.")]}, {"role": "system", "content": environment}, *more],
        )

    first = turn("1c9", [text(environment, cache_control={"type": "ephemeral"})])["usage"]
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a.py"}
    second = turn("4e9", environment, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]})[
        "usage"
    ]
    n_first = first["input_tokens"] + first["cache_read_input_tokens"]
    assert n_first > 100
    assert second["cache_read_input_tokens"] >= n_first - 8  # the end of a prompt may be cut otherwise


def test_a_count_moves_nobody(one_room: ServerProcess) -> None:
    posted(one_room, "/v1/messages", model="narrow", max_tokens=1, messages=SKY)
    assert warm(one_room) == {"narrow"}
    counted = posted(one_room, "/v1/messages/count_tokens?beta=true", model="auto", messages=SKY)
    assert warm(one_room) == {"narrow"}
    used = posted(one_room, "/v1/messages", model="narrow", max_tokens=1, messages=SKY)["usage"]
    assert counted == {"input_tokens": used["input_tokens"] + used["cache_read_input_tokens"]}


def test_models_have_the_fields_of_both_dialects(college: ServerProcess) -> None:
    listed = college.http.get("/v1/models", params={"limit": 2}).json()
    assert (listed["object"], listed["has_more"], len(listed["data"])) == ("list", True, 2)
    assert (listed["first_id"], listed["last_id"]) == (listed["data"][0]["id"], listed["data"][1]["id"])
    for model in listed["data"]:
        assert {"object": model["object"], "type": model["type"]} == {"object": "model", "type": "model"}
        assert {"id", "created", "created_at", "display_name", "max_input_tokens"} <= model.keys()
    rest = college.http.get("/v1/models", params={"after_id": listed["last_id"]}).json()
    assert not {model["id"] for model in rest["data"]} & {model["id"] for model in listed["data"]}
    refused = college.http.get("/v1/models", params={"limit": 0}, headers=VERSION)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    unknown = college.http.get("/v1/models/nobody", headers=VERSION)
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")


def test_capabilities_of_ours_are_not_told_as_anthropics(college: ServerProcess) -> None:
    def told(path: str, **headers: str) -> Any:
        return college.http.get(path, headers=headers).json()

    assert "completion" in told("/v1/models/general")["capabilities"]
    assert told("/v1/models/general", **{"anthropic-version": "2023-06-01"})["capabilities"] is None
    assert told("/v1/models", **{"anthropic-version": "2023-06-01"})["data"][0]["capabilities"] is None


def test_a_stream_ends_as_it_says(college: ServerProcess) -> None:
    body = {"model": "general", "max_tokens": 8, "messages": SKY, "stream": True}
    reply = college.http.post("/v1/messages", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    names = [line.removeprefix("event: ") for line in reply.text.splitlines() if line.startswith("event: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line.startswith("data: ")]
    assert names == [event["type"] for event in events]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert events[-2]["coe"]["specialist"] == "general"
    assert events[-2]["usage"]["output_tokens"] == 8


def test_a_prompt_that_is_too_long_is_told_in_the_words_that_agents_know(college: ServerProcess) -> None:
    body = {"model": "narrow", "max_tokens": 8, "messages": [{"role": "user", "content": "word " * 400}]}
    reply = college.http.post("/v1/messages", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("prompt is too long: ")
    assert reply.json()["error"]["message"].endswith(" tokens > 255 maximum")
