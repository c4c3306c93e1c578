"""Whole answers of the running server, as the openai package reads them."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import openai
import pytest

from fakes.server_process import ENDLESS, GREEDY, ServerProcess

EXTRA: dict[str, Any] = {"repeat_penalty": 1.0}
CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def prompt_tokens(college: ServerProcess, messages: list[dict[str, Any]], model: str = "coding", **more: Any) -> int:
    answer = college.openai().chat.completions.create(model=model, messages=messages, max_tokens=1, **more)
    assert answer.usage is not None
    return answer.usage.prompt_tokens


def test_a_chat_completion_is_what_the_openai_package_expects(college: ServerProcess) -> None:
    answer = college.openai().chat.completions.create(
        model="general", messages=user("What is the capital of France?"), max_tokens=12, temperature=0
    )
    assert answer.object == "chat.completion"
    assert answer.model == "general"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_the_async_client_gets_answers_to_several_requests_at_once(college: ServerProcess) -> None:
    async with college.async_openai() as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model=model, messages=user("Hello"), max_tokens=3)
                for model in ("general", "math", "coding")
            )
        )
    assert [answer.model for answer in answers] == ["general", "math", "coding"]
    assert all(answer.choices[0].message.content for answer in answers)


def test_n_gives_as_many_choices_and_counts_all_their_tokens(college: ServerProcess) -> None:
    answer = college.openai().chat.completions.create(
        model="general", messages=user("Tell me a story"), n=3, max_tokens=5
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in answer.choices)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 15


def test_an_answer_ends_before_a_stop_string(college: ServerProcess) -> None:
    # Both answers begin from the cache: a GPU rounds a prompt that is read at once, and one token of it, otherwise.
    college.chat("Count from one to ten", max_tokens=1)
    whole = college.chat("Count from one to ten", max_tokens=24).json()["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 :][:6]
    answer = college.chat("Count from one to ten", max_tokens=24, stop=[stop, "never said"]).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"]["content"] == whole[: whole.index(stop)]


def test_max_completion_tokens_goes_before_max_tokens(college: ServerProcess) -> None:
    answer = college.chat("Tell me a story", max_tokens=9, max_completion_tokens=3).json()
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


def test_the_same_seed_from_an_empty_cache_gives_the_same_answer(one_room: ServerProcess) -> None:
    def answer(seed: int) -> str:
        one_room.chat(model="narrow").raise_for_status()  # takes the room, so that the next one starts anew
        response = one_room.chat("Invent a name", seed=seed, temperature=0.99, top_p=1, max_tokens=16)
        assert response.headers["x-coe-residency"] == "loaded"
        content = response.json()["choices"][0]["message"]["content"]
        assert isinstance(content, str)
        return content

    first = answer(1)
    assert answer(1) == first
    assert answer(2) != first


def test_logprobs_carry_every_token_and_its_rivals(college: ServerProcess) -> None:
    answer = college.openai().chat.completions.create(
        model="general",
        messages=user("Say hello"),
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        extra_body=EXTRA,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    assert "".join(entry.token for entry in logprobs.content) == answer.choices[0].message.content
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert bytes(entry.bytes or []).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the likeliest"


def test_a_json_schema_binds_the_answer(college: ServerProcess) -> None:
    answer = college.openai().chat.completions.create(
        model="general",
        messages=user("Which city is the capital of France?"),
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY_SCHEMA}},
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert value["city"] in ("Paris", "Rome")
    assert isinstance(value["capital"], bool)


def test_json_object_gives_json_as_far_as_it_gets(college: ServerProcess) -> None:
    answer = college.chat(
        "Give me a JSON object with the key a and the value 1.",
        max_tokens=60,
        response_format={"type": "json_object"},
    ).json()["choices"][0]
    text = answer["message"]["content"]
    assert text.startswith("{")
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_schema_that_makes_no_grammar_is_a_400_that_names_the_field(college: ServerProcess) -> None:
    schema = {"name": "x", "schema": {"$ref": "#/definitions/nowhere"}}
    with pytest.raises(openai.BadRequestError) as refusal:
        college.openai().chat.completions.create(
            model="general",
            messages=user("x"),
            response_format={"type": "json_schema", "json_schema": schema},  # type: ignore[arg-type]
        )
    assert refusal.value.param == "response_format"


def test_plain_completions_continue_a_text(college: ServerProcess) -> None:
    answer = college.openai().completions.create(
        model="coding", prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2, extra_body=EXTRA
    )
    assert answer.object == "text_completion"
    (choice,) = answer.choices
    assert "Paris" in choice.text
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs or [])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_each_specialist_has_its_own_system_prompt(college: ServerProcess) -> None:
    general, math = (prompt_tokens(college, user("Hello"), model) for model in ("general", "math"))
    assert general != math


def test_a_clients_system_text_and_its_newer_name_reach_the_model(college: ServerProcess) -> None:
    system = {"role": "system", "content": "Speak like a pirate."}
    with_system = prompt_tokens(college, [system, *user("Hello")])
    assert with_system == prompt_tokens(college, [{**system, "role": "developer"}, *user("Hello")])
    assert with_system > prompt_tokens(college, [{**system, "content": "Hi."}, *user("Hello")])


def test_text_parts_are_read_as_one_text(college: ServerProcess) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    assert prompt_tokens(college, user(parts)) == prompt_tokens(college, user("Hello\nthere"))  # type: ignore[arg-type]


def test_extras_of_chat_clients_are_ignored(college: ServerProcess) -> None:
    extras = {"chat_id": "1", "background_tasks": {"title": True}, "store": False, "metadata": {"a": "b"}, "user": "me"}
    assert college.chat(**extras, tools=[], functions=None).status_code == 200


@pytest.mark.parametrize("field", ["function_call", "audio", "prediction", "web_search_options"])
def test_a_field_that_is_not_supported_is_named(college: ServerProcess, field: str) -> None:
    response = college.chat(**{field: [{"type": "function"}]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert field in response.json()["error"]["message"]


def test_an_image_is_told_that_vision_is_out_of_scope(college: ServerProcess) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="vision is out of scope") as refusal:
        prompt_tokens(college, user([{"type": "text", "text": "What is this?"}, image]))  # type: ignore[arg-type]
    assert refusal.value.param == "messages[0].content[1]"


def test_an_unknown_model_is_a_404_that_lists_the_known_ones(college: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        prompt_tokens(college, user("Hello"), "gpt-4")
    assert refusal.value.code == "model_not_found"
    assert all(name in refusal.value.message for name in ("auto", "general", "math", "coding", "narrow"))


def test_a_specialist_without_its_file_is_a_503_with_the_remedy(college: ServerProcess) -> None:
    response = college.chat(model="absent")
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "specialist_unavailable"
    assert "absent.gguf" in error["message"]
    assert "Put the file there" in error["message"]


def test_an_alias_names_its_specialist(college: ServerProcess) -> None:
    response = college.chat(model="maths")
    assert response.json()["model"] == "math"
    assert response.headers["x-coe-specialist"] == "math"


def test_auto_asks_the_supervisor_and_the_headers_say_what_it_decided(college: ServerProcess) -> None:
    response = college.chat("Solve the equation 3x + 7 = 22 for x. What is the derivative of x squared?", model="auto")
    assert response.status_code == 200
    assert response.headers["x-coe-specialist"] == "math"
    assert 0 < float(response.headers["x-coe-confidence"]) <= 1
    assert response.headers["x-coe-reason"]
    assert response.headers["x-coe-residency"] in ("warm", "loaded")
    assert float(response.headers["x-coe-wait-ms"]) >= 0
    facts = response.json()["coe"]
    assert facts["specialist"] == response.json()["model"] == "math"
    assert facts["residency"] == response.headers["x-coe-residency"]
    assert facts["retries"] == 0


def test_the_demo_sends_each_question_to_its_specialist(demo_college: ServerProcess) -> None:
    questions = {
        "math": "What is 34 + 51?",
        "chemistry": "What is the chemical symbol of iron?",
        "physics": "What is the SI unit of force?",
        "python": "What is the value of 3 * 4 in Python?",
        "facts": "What is the capital of Norway?",
        "general": "Suggest a simple dinner for four with rice and vegetables",
    }
    answers = {name: demo_college.chat(text, model="auto") for name, text in questions.items()}
    assert {name: answer.headers["x-coe-specialist"] for name, answer in answers.items()} == {n: n for n in questions}
    assert all(answer.json()["choices"][0]["message"]["content"] for answer in answers.values())


def test_programs_are_no_expressions(demo_college: ServerProcess) -> None:
    answer = demo_college.chat("Write a Python function that reverses a list", model="auto")
    assert answer.headers["x-coe-specialist"] == "general"


def test_a_second_turn_finds_the_first_in_the_cache(college: ServerProcess) -> None:
    first = [{"role": "user", "content": "Tell me about the tides of the sea and the moon."}]
    said = college.http.post(
        "/v1/chat/completions", json={"model": "general", "messages": first, "max_tokens": 8, **GREEDY}
    ).json()
    second = [*first, said["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    usage = college.http.post(
        "/v1/chat/completions", json={"model": "general", "messages": second, "max_tokens": 2, **GREEDY}
    ).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= said["usage"]["prompt_tokens"] - 1
    assert usage["prompt_tokens"] > usage["prompt_tokens_details"]["cached_tokens"]


def test_a_trailing_assistant_message_is_continued_not_closed(college: ServerProcess) -> None:
    asked = prompt_tokens(college, user("Say hello"))
    begun = prompt_tokens(college, [*user("Say hello"), {"role": "assistant", "content": "Sure"}])
    assert begun == asked + 1, "one token more, and no end of turn"


def test_the_closed_think_block_that_cards_ask_for_gives_way_to_the_specialists_policy(college: ServerProcess) -> None:
    asked = prompt_tokens(college, user("Say hello"))
    closed = [*user("Say hello"), {"role": "assistant", "content": "<think></think>\n"}]
    assert prompt_tokens(college, closed) == asked, "this model's family has no block to close"


@pytest.mark.parametrize(
    "wish",
    [
        {"think": True},
        {"enable_thinking": True},
        {"reasoning_effort": "high"},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ],
)
def test_a_client_cannot_switch_a_think_off_specialist_on(college: ServerProcess, wish: dict[str, Any]) -> None:
    response = college.chat(**wish)
    assert response.status_code == 200
    assert "thinking stays off" in response.headers["x-coe-note"]
    assert response.json()["coe"]["thinking"] == "off"
    assert "reasoning_content" not in response.json()["choices"][0]["message"]


def test_a_client_that_wants_no_thinking_gets_no_note(college: ServerProcess) -> None:
    assert "x-coe-note" not in college.chat(think=False, reasoning_effort="none").headers


def test_a_temperature_from_0_8_is_noted(college: ServerProcess) -> None:
    assert "x-coe-note" not in college.chat(temperature=0.79).headers
    assert "temperature 0.8" in college.chat(temperature=0.8).headers["x-coe-note"]


def test_a_temperature_above_the_bound_is_lowered_refused_or_allowed(college: ServerProcess) -> None:
    clamped = college.chat(model="general", temperature=1.5)
    assert "lowered to 0.99" in clamped.headers["x-coe-note"]
    assert "lowered to 0.99" in clamped.json()["coe"]["notes"][0]
    refused = college.chat(model="math", temperature=0.95)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "temperature"
    assert "0.9" in refused.json()["error"]["message"]
    allowed = college.chat(model="coding", temperature=1.5)
    assert allowed.status_code == 200
    assert "lowered" not in allowed.headers["x-coe-note"]


def test_a_prompt_that_cannot_fit_is_a_400_with_both_numbers(college: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        prompt_tokens(college, user("hello " * 300), "narrow")
    assert refusal.value.code == "context_length_exceeded"
    said = re.search(r"This model's maximum context length is (\d+) .* has (\d+)", refusal.value.message)
    assert said is not None
    assert int(said[1]) == 256
    assert int(said[2]) > 300


def test_running_out_of_context_ends_the_answer_with_length(college: ServerProcess) -> None:
    never = {"0": -100, "2": -100}  # the ends of a turn
    answer = college.chat("hello " * 220, model="narrow", max_tokens=None, logit_bias=never).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 256


def test_residents_change_places_when_the_budget_holds_one(one_room: ServerProcess) -> None:
    sizes = [
        model["coe"]["vram_bytes"] for model in one_room.http.get("/v1/models").json()["data"] if model["id"] != "auto"
    ]
    budget = one_room.pool()["budget_bytes"]
    assert max(sizes) < budget < sum(sizes)
    for model in ("general", "narrow", "general"):
        assert one_room.chat(model=model).status_code == 200
        assert [resident["specialists"] for resident in one_room.pool()["residents"]] == [[model]]
    assert one_room.chat(model="general").headers["x-coe-residency"] == "warm"
    assert one_room.metric("coe_evictions_total") >= 2


def test_a_whole_answer_that_loops_is_tried_again_and_then_goes_to_the_fallback(college: ServerProcess) -> None:
    loops = {"reason": "loop"}
    before = {name: college.metric("coe_answers_total", specialist=name, **loops) for name in ("coding", "general")}
    # Not by temperature 0: what is greedy and loops is drawn the second time, and may end.
    likeliest = {**GREEDY, "temperature": 0.5, "top_k": 1}
    body = {"model": "coding", "prompt": "the cat and the dog and " * 8, **ENDLESS, **likeliest}
    answer = college.http.post("/v1/completions", json=body).json()
    assert answer["coe"]["retries"] == 2
    assert answer["model"] == answer["coe"]["specialist"] == "general"
    assert answer["coe"]["chosen"] == "coding"
    assert answer["coe"]["loop"]["repeated"], "this model loops whoever is asked"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert college.metric("coe_answers_total", specialist="coding", reason="loop") == before["coding"] + 2
    assert college.metric("coe_answers_total", specialist="general", reason="loop") == before["general"] + 1


def test_no_token_at_all_reads_the_prompt_alone(college: ServerProcess) -> None:
    messages = user("Tell me about a river that nobody has told of before, please.")
    empty = college.openai().chat.completions.create(model="math", messages=messages, max_tokens=0)
    assert empty.choices[0].message.content == ""
    assert empty.choices[0].finish_reason == "length"
    assert empty.usage is not None
    assert empty.usage.completion_tokens == 0
    after = college.openai().chat.completions.create(model="math", messages=messages, max_tokens=2)
    assert after.usage is not None
    assert after.usage.prompt_tokens_details is not None
    assert (after.usage.prompt_tokens_details.cached_tokens or 0) >= after.usage.prompt_tokens - 1
