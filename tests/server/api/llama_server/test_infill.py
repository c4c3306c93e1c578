"""llama-server's /infill: bodies in, objects and frames out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coe.engine.request import Finish
from coe.server.api.llama_server.dialect import INFILL
from coe.server.api.llama_server.requests import parse_infill
from coe.server.runtime.errors import Part, RequestError, failure_of
from fakes.college import FakeLease, ServedCollege, asking, post, script

ASKED = {"input_prefix": "def f(", "input_suffix": "):\n", "model": "math"}


def test_a_body_of_an_editor() -> None:
    """As llama.vscode sends them."""
    request = parse_infill(
        {
            **ASKED, "prompt": "a, ", "n_predict": 32, "top_k": 40, "top_p": 0.99, "cache_prompt": True, "n_indent": 4,
            "input_extra": [{"filename": "a.py", "text": "x = 1"}], "samplers": ["top_k", "infill"],
            "t_max_prompt_ms": 500,
        }
    )  # fmt: skip
    assert (request.prompt, request.suffix, request.max_tokens) == ("def f(a, ", "):\n", 32)
    assert request.snippets == ({"filename": "a.py", "text": "x = 1"},)
    assert request.overrides == {"top_k": 40, "top_p": 0.99}
    assert len(request.notes) == 2


def test_what_stands_on_one_side_may_be_left_out() -> None:
    assert parse_infill({"input_prefix": "x"}).suffix == ""
    assert parse_infill({"input_suffix": "x"}).prompt == ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_prefix": None, "input_suffix": None}, "input_prefix"),
        ({"input_prefix": 5}, "input_prefix"),
        ({"input_suffix": ["x"]}, "input_suffix"),
        ({"input_extra": "x"}, "input_extra"),
        ({"input_extra": [{"filename": "a"}]}, "input_extra[0].text"),
        ({"input_extra": [{"text": "x"}] * 1001}, "input_extra"),
        ({"n_predict": 1.5}, "n_predict"),
        ({"temperature": 9}, "temperature"),
    ],
    ids=str,
)
def test_bad_input_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_infill({**ASKED, **fields})
    assert refusal.value.param == param
    body = INFILL.error_body(failure_of(refusal.value))
    assert body["error"]["code"] == 400
    assert body["error"]["type"] == "invalid_request_error"


def test_every_part_of_a_request_that_it_has_is_named() -> None:
    for part, name in ((Part.INPUT, "input_prefix"), (Part.SUFFIX, "input_suffix")):
        assert INFILL.error_body(failure_of(RequestError("?", param=part)))["error"]["param"] == name


async def test_a_whole_answer() -> None:
    lease = FakeLease([script("a, b", Finish.STOP)], "math")
    client = asking(ASKED)
    await post(ServedCollege([lease]), client, "/infill")
    body = json.loads(client.body)
    assert (body["content"], body["stop"], body["stop_type"], body["model"]) == ("a, b", True, "eos", "math")
    assert (body["tokens_evaluated"], body["tokens_predicted"]) == (5, 4)
    assert lease.requests[0].suffix == "):\n"


async def test_a_stream() -> None:
    client = asking({**ASKED, "stream": True})
    await post(ServedCollege([FakeLease([script("a, b", Finish.LENGTH)], "math")]), client, "/infill")
    frames = [json.loads(frame.removeprefix(b"data: ")) for frame in client.body.split(b"\n\n") if frame]
    assert [(frame["content"], frame["stop"]) for frame in frames] == [("a, b", False), ("", True)]
    assert frames[-1]["stop_type"] == "limit"
