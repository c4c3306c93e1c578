"""Options: what reaches the sampler, and what is noted."""

from __future__ import annotations

from typing import Any

import pytest

from coe.server.api.common.fields import MAX_INT
from coe.server.api.ollama.durations import keep_alive_s
from coe.server.api.ollama.options import option_notes
from coe.server.api.ollama.requests import parse_chat
from coe.server.runtime.errors import RequestError
from coe.server.runtime.request import Request


def with_options(**options: Any) -> Request:
    return parse_chat({"messages": [{"role": "user", "content": "Hi"}], "options": options}).request


def test_each_goes_to_its_place() -> None:
    sampling = {
        "temperature": 0.5,
        "top_k": 10,
        "top_p": 0.9,
        "min_p": 0.1,
        "repeat_last_n": 32,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
    }
    request = with_options(**sampling, num_predict=7, num_ctx=2048, seed=3, stop=["END"])
    assert request.overrides == sampling
    assert (request.max_tokens, request.wanted_context, request.seed, request.stop) == (7, 2048, 3, ("END",))
    assert request.notes == ()


def test_whole_numbers_may_come_as_floats() -> None:
    request = with_options(num_predict=7.0, top_k=40.0, seed=3.0, num_ctx=4096.0)
    assert (request.max_tokens, request.overrides, request.seed) == (7, {"top_k": 40}, 3)
    assert request.wanted_context == 4096


@pytest.mark.parametrize("most", [-1, -2, -1.0, None])
def test_no_bound_of_ones_own(most: Any) -> None:
    assert with_options(num_predict=most).max_tokens is None


def test_values_that_stand_for_others() -> None:
    request = with_options(seed=-1, top_k=-1, repeat_last_n=-1, stop="END")
    assert (request.seed, request.overrides) == (None, {"top_k": 0, "repeat_last_n": MAX_INT})
    assert request.stop == ("END",)


def test_what_is_sent_out_of_habit_is_not_worth_a_note() -> None:
    habits = {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "tfs_z": 1, "typical_p": 1.0, "num_gpu": None}
    assert option_notes({**habits, "penalize_newline": True}) == ()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"num_gpu": 33, "num_thread": 8}, ["roster", "num_gpu, num_thread"]),
        ({"mirostat": 2}, ["mirostat not served"]),
        ({"typical_p": 0.7}, ["typical_p not served"]),
        ({"max_tokens": 5}, ["max_tokens (write num_predict) not known"]),
        ({"topK": 5}, ["topK (write top_k) not known"]),
        ({f"o{i}": 1 for i in range(9)}, ["o4 and 4 more not known"]),
    ],
)
def test_what_is_asked_for_in_vain_is_noted(asked: dict[str, Any], named: list[str]) -> None:
    (note,) = with_options(**asked).notes
    assert all(name in note for name in named), note


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (None, None), ("", None), (0, 0), (300, 300), (-1, -1), (1.5, 1.5), ("0", 0), ("10", 10), ("-1", -1),
        ("5m", 300), ("1h30m", 5400), ("-1m", -60), ("300ms", 0.3), ("0s", 0), ("1.5h", 5400), ("+2s", 2),
    ],
)  # fmt: skip
def test_a_duration(written: Any, seconds: float | None) -> None:
    assert keep_alive_s(written) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("written", ["soon", "5 m", "m", "--5m", "5m!", "5x", "٣", True, [], "1" * 65, "-", "1e5"])
def test_what_is_none(written: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        keep_alive_s(written)
    assert refusal.value.param == "keep_alive"
