"""Tokens, prompts and properties of the running server, as clients of llama-server and vLLM ask for them."""

from __future__ import annotations

from typing import Any

import httpx

from fakes.server_process import ServerProcess

HELLO = [{"role": "user", "content": "Hello"}]


def post(college: ServerProcess, path: str, **body: Any) -> httpx.Response:
    return httpx.post(college.url + path, json=body, timeout=120)


def got(college: ServerProcess, path: str, **body: Any) -> Any:
    reply = post(college, path, **body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_text_goes_to_tokens_and_back(college: ServerProcess) -> None:
    for text in ("Hello, world", "çà et là — 東京 🙂", "  two  spaces\n\n"):
        tokens = got(college, "/tokenize", content=text, model="general")
        assert tokens["count"] == len(tokens["tokens"]) > 0
        back = got(college, "/detokenize", tokens=tokens["tokens"], model="general")
        assert back["content"] == back["prompt"] == text


def test_the_pieces_of_a_text_are_its_bytes(college: ServerProcess) -> None:
    pieces = got(college, "/tokenize", content="東京 tower", with_pieces=True)["tokens"]
    read = b"".join(bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces)
    assert read.decode() == "東京 tower"


def test_control_tokens_of_a_text_are_read_unless_it_says_not(college: ServerProcess) -> None:
    marked = "<|im_start|>user"
    assert got(college, "/tokenize", content=marked)["count"] < 3
    assert got(college, "/tokenize", content=marked, parse_special=False)["count"] > 3


def test_a_chat_has_the_tokens_that_its_answer_counts(college: ServerProcess) -> None:
    answer = got(college, "/v1/chat/completions", model="general", messages=HELLO, max_tokens=1)
    assert got(college, "/tokenize", model="general", messages=HELLO)["count"] == answer["usage"]["prompt_tokens"]


def test_a_chats_prompt_is_the_templates(college: ServerProcess) -> None:
    prompt = got(college, "/apply-template", messages=HELLO, model="general")["prompt"]
    assert "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n" in prompt


def test_the_tools_of_a_chat_are_part_of_its_prompt(college: ServerProcess) -> None:
    chat = {"model": "general", "messages": HELLO, "tools": [{"type": "function", "function": {"name": "look_up"}}]}
    answer = got(college, "/v1/chat/completions", **chat, max_tokens=1)
    assert got(college, "/tokenize", **chat)["count"] == answer["usage"]["prompt_tokens"]
    assert "look_up" in got(college, "/apply-template", **chat)["prompt"]


def test_what_is_asked_before_a_chat(college: ServerProcess) -> None:
    props = httpx.get(f"{college.url}/props", params={"model": "narrow"}, timeout=60).json()
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert props["model_alias"] == "narrow"
    assert props["total_slots"] >= 1
    assert httpx.get(f"{college.url}/props", timeout=60).json()["model_alias"] == "general"


def test_bad_input_is_refused_by_its_name(college: ServerProcess) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"content": 3}, "content"),
        ("/tokenize", {"content": "x", "with_pieces": "yes"}, "with_pieces"),
        ("/tokenize", {"content": "x" * 1_000_001}, "content"),
        ("/tokenize", {"content": "x", "model": "nobody"}, "model"),
        ("/detokenize", {"tokens": ["x"]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/apply-template", {"messages": HELLO, "add_generation_prompt": False}, "add_generation_prompt"),
    ]
    for path, body, param in wrong:
        reply = post(college, path, **body)
        assert reply.status_code in (400, 404), reply.text
        assert reply.json()["error"]["param"] == param, reply.text
    assert got(college, "/detokenize", tokens=[2**31 - 1])["content"] == ""
    assert got(college, "/tokenize", content="")["tokens"] == []


def test_a_start_is_put_first_as_clients_of_vllm_say(demo_college: ServerProcess) -> None:
    def counted(**fields: Any) -> int:
        return int(got(demo_college, "/tokenize", model="math", **fields)["count"])

    assert counted(prompt="2 + 2") == counted(prompt="2 + 2", add_special_tokens=False) + 1
    assert counted(content="2 + 2") == counted(content="2 + 2", add_special_tokens=True) - 1
    assert post(demo_college, "/tokenize", model="math", prompt="2", add_special_tokens=1).status_code == 400


def test_the_special_tokens_and_the_template_are_told(demo_college: ServerProcess) -> None:
    facts = httpx.get(f"{demo_college.url}/tokenizer_info", params={"model": "math"}, timeout=120).json()
    assert (facts["bos_token"], facts["model"]) == ("<bos>", "math")
    assert facts["chat_template"]
    assert httpx.get(f"{demo_college.url}/tokenizer_info", params={"model": "nobody"}, timeout=60).status_code == 404
