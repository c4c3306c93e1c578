"""Completions that score their prompts, of several prompts at once, and the best of several, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fakes.server_process import ServerProcess

PROMPTS = ["The capital of France is", "Water boils at", "Once upon a time"]


def post(college: ServerProcess, **fields: Any) -> httpx.Response:
    body = {"model": "general", "max_tokens": 4, "temperature": 0, "repeat_penalty": 1.0, **fields}
    return httpx.post(f"{college.url}/v1/completions", json=body, timeout=120)


def got(college: ServerProcess, **fields: Any) -> Any:
    reply = post(college, **fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(college: ServerProcess, **fields: Any) -> tuple[int, str, str]:
    reply = post(college, **fields)
    error = reply.json()["error"]
    return reply.status_code, error["param"], error["message"]


def ids_of(college: ServerProcess, text: str) -> list[int]:
    reply = httpx.post(f"{college.url}/tokenize", json={"model": "general", "content": text}, timeout=120)
    ids: list[int] = reply.json()["tokens"]
    return ids


class TestEcho:
    def test_prompt_and_answer_are_one_text_with_one_entry_a_token(self, college: ServerProcess) -> None:
        body = got(college, prompt=PROMPTS[0], echo=True, logprobs=2)
        (choice,) = body["choices"]
        assert choice["text"].startswith(PROMPTS[0])
        scores = choice["logprobs"]
        n_tokens = body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
        assert {len(scores[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {n_tokens}
        assert "".join(scores["tokens"]) == choice["text"]
        assert (scores["token_logprobs"][0], scores["top_logprobs"][0]) == (None, None)
        for token, value, top in list(
            zip(*(scores[n] for n in ("tokens", "token_logprobs", "top_logprobs")), strict=True)
        )[1:]:
            assert top[token] == value
            assert 2 <= len(top) <= 3
        for token, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(token)

    def test_the_openai_package_reads_it(self, college: ServerProcess) -> None:
        read = college.openai().completions.create(
            model="general", prompt=PROMPTS[0], echo=True, logprobs=1, max_tokens=0
        )
        (choice,) = read.choices
        assert choice.text == PROMPTS[0]
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert len(choice.logprobs.token_logprobs) == read.usage.prompt_tokens  # type: ignore[union-attr]
        assert read.usage.completion_tokens == 0  # type: ignore[union-attr]

    def test_a_stream_says_the_same(self, college: ServerProcess) -> None:
        whole = got(college, prompt=PROMPTS[0], echo=True, logprobs=1)["choices"][0]
        reply = post(college, prompt=PROMPTS[0], echo=True, logprobs=1, stream=True)
        chunks = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        assert "".join(choice["text"] for choice in choices) == whole["text"]
        tokens = [token for choice in choices for token in (choice["logprobs"] or {"tokens": []})["tokens"]]
        assert tokens == whole["logprobs"]["tokens"]

    def test_without_log_probabilities_it_is_the_text_alone(self, college: ServerProcess) -> None:
        choice = got(college, prompt=PROMPTS[0], echo=True)["choices"][0]
        assert choice["text"].startswith(PROMPTS[0])
        assert choice["logprobs"] is None

    def test_more_scores_than_a_request_may_have_are_refused(self, college: ServerProcess) -> None:
        asked = {"prompt": [[5] * 400] * 100, "echo": True, "logprobs": 20, "max_tokens": 0}
        status, param, message = refused(college, **asked)
        assert (status, param) == (400, "logprobs")
        assert "500,000" in message


class TestTokenIds:
    def test_they_are_the_text_that_they_were_made_of(self, college: ServerProcess) -> None:
        by_text = got(college, prompt=PROMPTS[0], echo=True, logprobs=0)
        by_ids = got(college, prompt=ids_of(college, PROMPTS[0]), echo=True, logprobs=0)
        assert by_ids["choices"][0]["text"] == by_text["choices"][0]["text"]
        assert by_ids["usage"]["prompt_tokens"] == by_text["usage"]["prompt_tokens"]

    def test_an_unknown_one_is_refused(self, college: ServerProcess) -> None:
        status, param, message = refused(college, prompt=[[1, 2_000_000_000]])
        assert (status, param) == (400, "prompt")
        assert "2000000000" in message

    def test_the_fallback_answers_them_for_auto(self, college: ServerProcess) -> None:
        assert got(college, prompt=ids_of(college, PROMPTS[0]), model="auto")["model"]

    def test_what_a_client_needs_to_make_them_is_told(self, college: ServerProcess) -> None:
        facts = httpx.get(f"{college.url}/tokenizer_info", params={"model": "narrow"}, timeout=60).json()
        assert facts["eos_token"] == "<|im_end|>"
        assert facts["model_max_length"] == 256
        assert "im_start" in facts["chat_template"]


class TestSeveralPrompts:
    def test_choices_are_numbered_prompt_by_prompt(self, college: ServerProcess) -> None:
        alone = [got(college, prompt=prompt) for prompt in PROMPTS]
        body = got(college, prompt=PROMPTS, n=2)
        assert [choice["index"] for choice in body["choices"]] == list(range(6))
        assert [choice["text"][:8] for choice in body["choices"][::2]] == [
            one["choices"][0]["text"][:8] for one in alone
        ]
        assert body["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
        assert body["usage"]["completion_tokens"] == 2 * sum(one["usage"]["completion_tokens"] for one in alone)

    def test_a_stream_of_them_ends_once(self, college: ServerProcess) -> None:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        reply = post(college, prompt=PROMPTS, **options)
        lines = [line[6:] for line in reply.text.split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        texts = ["", "", ""]
        ended = []
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            texts[choice["index"]] += choice["text"]
            ended += [choice["index"]] if choice["finish_reason"] else []
        assert sorted(ended) == [0, 1, 2]
        assert all(texts)
        whole = got(college, prompt=PROMPTS)
        assert chunks[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
        assert sum("coe" in chunk for chunk in chunks) == 2, "the last choice's last chunk, and the counts"

    @pytest.mark.parametrize("stream", [False, True])
    def test_one_that_fails_fails_the_call(self, college: ServerProcess, stream: bool) -> None:
        reply = post(college, prompt=[*PROMPTS, "word " * 2000, *PROMPTS], stream=stream)
        assert reply.status_code == (200 if stream else 400)
        assert "context_length_exceeded" in reply.text
        assert got(college, prompt=PROMPTS[0])["choices"], "and the server goes on"

    def test_the_first_one_chooses_for_auto(self, college: ServerProcess) -> None:
        reply = post(college, model="auto", prompt=PROMPTS)
        assert reply.status_code == 200
        assert "first prompt" in reply.headers["x-coe-note"]


class TestBestOf:
    def test_all_of_them_are_counted(self, college: ServerProcess) -> None:
        best = got(college, prompt=PROMPTS[2], temperature=1.2, n=2, best_of=6, logprobs=0, ignore_eos=True)
        assert [choice["index"] for choice in best["choices"]] == [0, 1]
        means = [
            sum(values) / len(values) for choice in best["choices"] if (values := choice["logprobs"]["token_logprobs"])
        ]
        assert means == sorted(means, reverse=True)
        shown = sum(len(choice["logprobs"]["tokens"]) for choice in best["choices"])
        assert best["usage"]["completion_tokens"] > shown

    def test_it_is_refused_where_it_cannot_be(self, college: ServerProcess) -> None:
        assert refused(college, prompt="x", n=3, best_of=2)[:2] == (400, "best_of")
        assert refused(college, prompt="x", best_of=2, stream=True)[:2] == (400, "best_of")
        assert refused(college, prompt="x", best_of=99)[:2] == (400, "best_of")


def test_a_model_that_cannot_fill_in_the_middle_says_so(college: ServerProcess) -> None:
    status, param, message = refused(college, prompt="def f(", suffix="):")
    assert (status, param) == (400, "suffix")
    assert "Qwen2.5-Coder" in message
    asked = {"model": "general", "input_prefix": "def f(", "input_suffix": "):"}
    reply = httpx.post(f"{college.url}/infill", json=asked, timeout=60)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == 400
