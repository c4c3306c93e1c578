"""The paths of the Responses API: answers that are kept, gone on from, looked at and forgotten, each by its own key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import httpx
import pytest

from coe.engine.errors import WorkerDiedError
from coe.engine.request import Accepted, CallPiece, Delta, Finish, Finished
from coe.server.api.app import NO_KEYS, make_app
from coe.server.api.keys import Keys
from coe.server.runtime.college import College
from fakes.college import LOOPED, SAID, FakeLease, Script, ServedCollege

PATH = "/v1/responses"
CALLED: Script = [
    Accepted("", 5),
    Delta("", calls=(CallPiece(0, "look"), CallPiece(0, None, "{}"))),
    Finished("", Finish.CALLS, 5, 0, 3),
]


class Served:
    """An application whose answers play scripts."""

    def __init__(self, *scripts: Script, keys: Keys = NO_KEYS, **server: Any) -> None:
        self.leases = [FakeLease([script], "math") for script in scripts]
        college = ServedCollege([*self.leases])
        college.roster = college.roster.model_copy(update={"server": college.roster.server.model_copy(update=server)})
        transport = httpx.ASGITransport(make_app(cast(College, college), keys))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def create(self, given: Any = "Hi", *, key: str = "none", **fields: Any) -> httpx.Response:
        return await self.http.post(PATH, json={"input": given, **fields}, headers=bearer(key))

    async def created(self, given: Any = "Hi", **fields: Any) -> dict[str, Any]:
        answer = (await self.create(given, **fields)).raise_for_status().json()
        assert isinstance(answer, dict)
        return answer

    async def get(self, path: str, key: str = "none") -> httpx.Response:
        return await self.http.get(f"{PATH}/{path}", headers=bearer(key))

    def heard(self, number: int = -1) -> list[Mapping[str, Any]]:
        """The conversation that a model was given."""
        return list(self.leases[number].requests[0].messages or ())


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_a_conversation_goes_on_from_a_response() -> None:
    served = Served(CALLED, SAID, SAID)
    tools = [{"type": "function", "name": "look"}]
    first = await served.created("Weather?", tools=tools, instructions="Be kind.")
    result = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "sunny"}
    second = await served.created([result], tools=tools, previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert [(message["role"], message["content"]) for message in served.heard(1)] == [
        ("user", "Weather?"),
        ("assistant", ""),
        ("tool", "sunny"),
    ]
    await served.created("And tomorrow?", previous_response_id=second["id"])
    assert [message["role"] for message in served.heard(2)] == ["user", "assistant", "tool", "assistant", "user"]


async def test_a_stream_is_kept_as_it_ended() -> None:
    served = Served(SAID)
    stream = await served.create(stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    last = stream.text.strip().split("\n\n")[-1]
    assert last.startswith("event: response.completed\n")
    name = last.split('"id":"')[1].split('"')[0]
    assert (await served.get(name)).json()["status"] == "completed"


async def test_what_is_kept_is_found_and_forgotten() -> None:
    served = Served(SAID)
    made = await served.created([{"role": "user", "content": "Hi"}, {"role": "developer", "content": "Be kind."}])
    assert (await served.get(made["id"])).json() == made
    deleted = await served.http.delete(f"{PATH}/{made['id']}")
    assert deleted.json() == {"id": made["id"], "object": "response", "deleted": True}
    for response in (await served.get(made["id"]), await served.http.delete(f"{PATH}/{made['id']}")):
        assert response.status_code == 404
        assert response.json()["error"]["message"] == f"Response with id '{made['id']}' not found."


async def test_input_items_come_in_pages() -> None:
    served = Served(SAID)
    given = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two", "id": "msg_2"},
        {"role": "user", "content": "three"},
    ]
    name = (await served.created(given))["id"]
    whole = (await served.get(f"{name}/input_items")).json()
    assert [item["content"][0]["text"] for item in whole["data"]] == ["three", "two", "one"]
    assert [item["content"][0]["type"] for item in whole["data"]] == ["input_text", "output_text", "input_text"]
    assert whole["has_more"] is False
    page = (await served.get(f"{name}/input_items?order=asc&limit=2")).json()
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], "msg_2")
    assert page["has_more"]
    rest = (await served.get(f"{name}/input_items?order=asc&after=msg_2")).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["three"]
    assert (await served.get(f"{name}/input_items?after={whole['last_id']}")).json()["data"] == []


@pytest.mark.parametrize("query", ["order=up", "limit=0", "limit=101", "limit=x", "after=nothing"])
async def test_a_wrong_page_is_refused_by_name(query: str) -> None:
    served = Served(SAID)
    name = (await served.created())["id"]
    response = await served.get(f"{name}/input_items?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == query.partition("=")[0]


async def test_what_is_not_to_be_kept_is_not() -> None:
    served = Served(SAID, SAID)
    made = await served.created(store=False)
    assert made["store"] is False
    assert (await served.get(made["id"])).status_code == 404
    again = await served.create(previous_response_id=made["id"])
    assert (again.status_code, again.json()["error"]["code"]) == (400, "previous_response_not_found")


async def test_without_room_nothing_is_kept_and_the_response_says_so() -> None:
    served = Served(SAID, max_stored_bytes=0)
    made = await served.created(store=True)
    assert made["store"] is False
    assert (await served.get(made["id"])).status_code == 404


async def test_each_key_has_a_store_of_its_own() -> None:
    served = Served(SAID, SAID, keys=Keys(chat=frozenset({"anna", "bert"})))
    made = await served.created(key="anna")
    for response in (
        await served.get(made["id"], "bert"),
        await served.get(f"{made['id']}/input_items", "bert"),
        await served.http.delete(f"{PATH}/{made['id']}", headers=bearer("bert")),
    ):
        assert response.status_code == 404
    assert (await served.create(key="bert", previous_response_id=made["id"])).status_code == 400
    referred = [{"type": "item_reference", "id": made["output"][0]["id"]}]
    assert (await served.create(referred, key="bert")).status_code == 400
    assert (await served.get(made["id"], "anna")).status_code == 200
    assert (await served.http.delete(f"{PATH}/{made['id']}", headers=bearer("anna"))).status_code == 200


async def test_without_a_key_nothing_opens_where_there_are_keys() -> None:
    served = Served(keys=Keys(chat=frozenset({"anna"})))
    for response in (await served.create(), await served.get("resp_1"), await served.http.delete(f"{PATH}/resp_1")):
        assert response.status_code == 401


async def test_items_are_referred_to_by_their_ids() -> None:
    served = Served(SAID, SAID)
    (item,) = (await served.created())["output"]
    await served.created([{"role": "user", "content": "Hi"}, {"id": item["id"]}, {"role": "user", "content": "?"}])
    assert [message["content"] for message in served.heard()] == ["Hi", "Hello", "?"]


async def test_a_broken_stream_fails_as_a_response_and_is_not_kept() -> None:
    broken: Script = [Accepted("", 5), Delta("", "Hel"), WorkerDiedError("it died")]
    stream = await Served(broken).create(stream=True)
    assert stream.status_code == 200
    last = stream.text.strip().split("\n\n")[-1]
    assert last.startswith("event: response.failed\n")
    assert '"code":"server_error"' in last
    assert "Hel" in last


async def test_a_loop_is_an_incomplete_response() -> None:
    stream = await Served(LOOPED).create(stream=True)
    last = stream.text.strip().split("\n\n")[-1]
    assert last.startswith("event: response.incomplete\n")
    assert '"loop":{"ended":true' in last


async def test_errors_below_the_path_are_openais() -> None:
    served = Served(SAID)
    name = (await served.created())["id"]
    cancelled = await served.http.post(f"{PATH}/{name}/cancel", headers=bearer("none"))
    assert cancelled.status_code == 400
    assert "background" in cancelled.json()["error"]["message"]
    assert (await served.http.post(f"{PATH}/resp_9/cancel", headers=bearer("none"))).status_code == 404
    assert (await served.get(f"{name}?stream=true")).json()["error"]["param"] == "stream"
    assert (await served.http.put(f"{PATH}/{name}")).status_code == 405
    refused = await served.create(7)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
