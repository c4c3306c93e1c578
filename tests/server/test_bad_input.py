"""Bad bodies, bad rosters, bad model files: each gets a clear message, and the server serves on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx
import pytest

from fakes.server_process import ServerProcess, run_coe, write_roster


def refused(response: httpx.Response, status: int = 400) -> tuple[str, Any]:
    """Message and field of a refusal in OpenAI's envelope."""
    assert response.status_code == status, response.text[:500]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 1000
    return error["message"], error["param"]


@pytest.fixture(autouse=True)
def still_serving(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every bad body the server answers a good one."""
    yield
    if "college" in request.fixturenames:
        college: ServerProcess = request.getfixturevalue("college")
        assert college.chat(max_tokens=1).status_code == 200
        assert college.leases() == 0


def test_a_body_that_is_not_json(college: ServerProcess) -> None:
    message, _ = refused(college.post(b'{"messages": [}'))
    assert "not JSON" in message
    assert "line 1, column 15" in message


def test_an_empty_body(college: ServerProcess) -> None:
    assert "not JSON" in refused(college.post(b""))[0]


def test_a_body_that_is_not_utf_8(college: ServerProcess) -> None:
    assert "UTF-8" in refused(college.post(b'{"model": "\xff\xfe"}'))[0]


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"17", b"null"])
def test_json_that_is_no_object(college: ServerProcess, body: bytes) -> None:
    assert "JSON object" in refused(college.post(body))[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 7),
        ("model", ""),
        ("messages", "Hi"),
        ("messages", None),
        ("messages", [7]),
        ("stream", "yes"),
        ("max_tokens", "many"),
        ("max_tokens", -2),
        ("max_tokens", 1.5),
        ("temperature", "hot"),
        ("temperature", -1),
        ("temperature", True),
        ("top_p", -0.1),
        ("top_k", -2),
        ("top_k", 2**31),
        ("n", 0),
        ("n", 1000),
        ("seed", 1.5),
        ("stop", 5),
        ("stop", ["x"] * 17),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("response_format", "json"),
        ("response_format", {"type": "xml"}),
        ("top_logprobs", 3),
        ("stream_options", 7),
    ],
)
def test_a_wrong_value_is_named(college: ServerProcess, field: str, value: Any) -> None:
    _, param = refused(college.chat(**{field: value}))
    assert str(param).startswith(field)


def test_empty_messages(college: ServerProcess) -> None:
    assert refused(college.chat(messages=[]))[1] == "messages"


def test_a_missing_field(college: ServerProcess) -> None:
    assert refused(college.post(b'{"model": "general"}'))[1] == "messages"
    assert refused(college.post(b'{"model": "general"}', "/v1/completions"))[1] == "prompt"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({}, "messages[0].role"),
        ({"role": "emperor", "content": "x"}, "messages[0].role"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [5]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "tool", "content": 5}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0]"),
    ],
)
def test_a_wrong_message_is_named_with_its_place(college: ServerProcess, message: dict[str, Any], param: str) -> None:
    assert refused(college.chat(messages=[message]))[1] == param


def test_10_mb_of_text_is_a_413(college: ServerProcess) -> None:
    message, _ = refused(college.chat("long " * 2_000_000), 413)
    assert "8,388,608 bytes" in message


def test_7_mb_of_text_is_told_that_it_does_not_fit(college: ServerProcess) -> None:
    message, _ = refused(college.chat("long " * 1_400_000, model="auto"))
    assert "maximum context length is" in message


def test_a_nul_character(college: ServerProcess) -> None:
    message, param = refused(college.post(b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}'))
    assert "NUL" in message
    assert param == "messages[0].content"
    assert "not JSON" in refused(college.post(b'{"messages": [{"role": "user", "content": "a\x00b"}]}'))[0]


@pytest.mark.parametrize("body", [b'{"model": "\\ud800"}', b'{"messages": [{"\\udfff": 1}]}'])
def test_a_lone_surrogate(college: ServerProcess, body: bytes) -> None:
    assert "surrogate" in refused(college.post(body))[0]


def test_a_surrogate_pair_is_a_character_like_any_other(college: ServerProcess) -> None:
    body = b'{"model": "general", "max_tokens": 1, "messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
    assert college.post(body).status_code == 200


@pytest.mark.parametrize("depth", [101, 900, 100_000])
def test_deep_nesting(college: ServerProcess, depth: int) -> None:
    assert "nested" in refused(college.post(b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"))[0]
    assert "nested" in refused(college.post(b'{"a":' * depth + b"1" + b"}" * depth))[0]


def test_deep_nesting_under_long_keys(college: ServerProcess) -> None:
    key = b'{"' + b"k" * 10_000 + b'":'
    assert "nested" in refused(college.post(key * 500 + b"1" + b"}" * 500))[0]


HI = b'"messages": [{"role": "user", "content": "Hi"}]'


@pytest.mark.parametrize("digits", [30, 4000])
def test_huge_integers_are_taken_where_they_mean_something(college: ServerProcess, digits: int) -> None:
    number = int("9" * digits)
    assert college.chat(seed=number, max_tokens=1).status_code == 200
    assert college.chat("hello " * 220, model="narrow", max_tokens=number).status_code == 200
    assert refused(college.chat(top_k=number))[1] == "top_k"
    assert refused(college.chat(logit_bias={str(number): 1}))[1] == "logit_bias"


def test_an_integer_of_more_digits_than_python_reads(college: ServerProcess) -> None:
    assert "more digits than are read" in refused(college.post(b'{"seed": ' + b"9" * 5000 + b", " + HI + b"}"))[0]


def test_numbers_that_are_none(college: ServerProcess) -> None:
    for word in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
        assert refused(college.post(b'{"temperature": ' + word + b", " + HI + b"}"))[1] == "temperature"


@pytest.mark.slow
def test_a_roster_with_unknown_keys_stops_the_server(tmp_path: Path) -> None:
    result = run_coe("serve", "--roster", str(write_roster(tmp_path, {"general": {"temprature": 1}})))
    assert result.returncode == 1
    assert "temprature" in result.stderr
    assert "sampling" in result.stderr or "temperature" in result.stderr


@pytest.mark.slow
def test_a_roster_with_duplicate_names_stops_the_server(tmp_path: Path) -> None:
    roster = write_roster(tmp_path, {"general": {}, "math": {"aliases": ["sums"]}, "other": {"aliases": ["sums"]}})
    result = run_coe("serve", "--roster", str(roster))
    assert result.returncode == 1
    assert "sums" in result.stderr


@pytest.mark.slow
def test_a_roster_with_nothing_servable_stops_the_server_and_says_why(tmp_path: Path) -> None:
    nowhere: dict[str, Any] = {"package": None, "pattern": None, "file": "nowhere.gguf"}
    specialists = {"one": nowhere, "two": {"context_tokens": 8192}}
    roster = write_roster(tmp_path, specialists, pool={"vram_budget": "10 MiB"})
    result = run_coe("serve", "--port", "0", "--roster", str(roster))
    assert result.returncode == 1
    assert "Nothing in the roster can be served" in result.stderr
    assert "nowhere.gguf" in result.stderr
    assert "the budget is 10 MiB" in result.stderr
    assert "raise pool.vram_budget" in result.stderr


@pytest.mark.slow
def test_a_roster_that_is_not_there_stops_the_server(tmp_path: Path) -> None:
    result = run_coe("serve", "--roster", str(tmp_path / "none.yaml"))
    assert result.returncode == 1
    assert "none.yaml" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[ServerProcess]:
    """A server whose roster names one good file and several that are none."""
    folder = tmp_path_factory.mktemp("damaged")
    models = folder / "models"
    models.mkdir()
    (models / "header.gguf").write_bytes(smollm2.read_bytes()[:100_000])
    shutil.copyfile(smollm2, models / "tensors.gguf")
    with (models / "tensors.gguf").open("r+b") as file:
        file.truncate(60_000_000)
    (models / "text.gguf").write_text("This is not a model.\n" * 100)
    (models / "empty.gguf").write_bytes(b"")
    writer = gguf.GGUFWriter(models / "unheard.gguf", "unheard-of")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    names = ("header", "tensors", "text", "empty", "unheard")
    bad = {name: {"package": None, "pattern": None, "file": f"{name}.gguf"} for name in names}
    with ServerProcess(write_roster(folder, {"general": {}, **bad})) as server:
        yield server


@pytest.mark.parametrize("name", ["header", "tensors", "text", "empty", "unheard"])
def test_a_damaged_model_is_unavailable_with_the_reason_and_the_others_serve(damaged: ServerProcess, name: str) -> None:
    facts = damaged.http.get(f"/v1/models/{name}").json()["coe"]
    assert facts["available"] is False
    assert f"{name}.gguf" in facts["reason"]
    assert facts["remedy"]
    assert facts["reason"] in damaged.announcement
    message, _ = refused(damaged.chat(model=name), 503)
    assert facts["reason"] in message
    assert damaged.chat().status_code == 200


def test_an_unknown_architecture_is_named(damaged: ServerProcess) -> None:
    assert "unheard-of" in json.dumps(damaged.http.get("/v1/models/unheard").json())
