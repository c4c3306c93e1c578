"""Bodies of requests for embeddings and ranks, and how answers are written."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from coe.server.api.embeddings.replies import embeddings_body, rerank_body
from coe.server.api.embeddings.requests import MAX_TEXTS, parse_embeddings, parse_rerank
from coe.server.runtime.embedding import Result
from coe.server.runtime.encoder_thread import Vectors
from coe.server.runtime.errors import RequestError


def refusal(parse: Any, body: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(body)
    return caught.value


def test_a_text_or_a_list_of_texts_is_taken() -> None:
    one = parse_embeddings({"input": "a", "model": "m"})
    assert (one.wanted.texts, one.names, one.base64) == (("a",), ["input"], False)
    two = parse_embeddings({"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8, "user": "u"})
    assert (two.wanted.texts, two.names, two.base64) == (("a", "b"), ["input[0]", "input[1]"], True)
    assert (two.wanted.model, two.wanted.dimensions, two.wanted.cut_to) == ("auto", 8, None)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "input", "missing"),
        ({"input": []}, "input", "not empty"),
        ({"input": ""}, "input", "empty"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": [1, 2]}, "input", "token ids"),
        ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
        ({"input": ["a", 1]}, "input", "token ids"),
        ({"input": {"text": "a"}}, "input", ""),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, "input", "2,048"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input": "a", "dimensions": 0}, "dimensions", ""),
        ({"input": "a", "dimensions": "8"}, "dimensions", ""),
        ({"input": "a", "encodingFormat": "float"}, "encodingFormat", "write encoding_format"),
        ({"input": "a", "embedding_types": ["int8"]}, "embedding_types", "encoding_format"),
        ({"input": "a", "normalize": False}, "normalize", "unit length"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", ""),
        ({"input": "a", "model": ""}, "model", ""),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_its_field(body: dict[str, Any], param: str, said: str) -> None:
    error = refusal(parse_embeddings, body)
    assert error.param == param
    assert said in error.message


def test_texts_may_be_cut_where_the_client_says_so() -> None:
    assert parse_embeddings({"input": "a", "truncate": False}).wanted.cut_to is None
    whole = parse_embeddings({"input": "a", "truncate": True}).wanted.cut_to
    assert whole == parse_embeddings({"input": "a", "truncate_prompt_tokens": -1}).wanted.cut_to
    assert parse_embeddings({"input": "a", "truncate_prompt_tokens": 7}).wanted.cut_to == 7
    assert parse_rerank({"query": "q", "documents": ["a"], "max_tokens_per_doc": 7}).wanted.cut_to == 7


def test_what_changes_texts_elsewhere_is_noted() -> None:
    (note,) = parse_embeddings({"input": "a", "input_type": "query", "task": ""}).notes
    assert note.startswith("input_type is not served")


def test_documents_are_texts_or_objects_with_one() -> None:
    call = parse_rerank({"query": "q", "documents": ["a", {"text": "b", "id": 3}], "top_n": 5})
    assert (call.wanted.texts, call.names) == (("q", "a", "b"), ["query", "documents[0]", "documents[1]"])
    assert (call.top_n, call.with_documents, call.bare) == (2, False, False)
    call = parse_rerank({"query": "q", "texts": ["a"], "top_n": 0, "return_text": True})
    assert (call.names[1], call.top_n, call.with_documents, call.bare) == ("texts[0]", 1, True, True)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a", ""]}, "documents[1]"),
        ({"query": "q", "documents": [{"image": "x"}]}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ({"query": "q", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields"),
        ({"query": "q", "documents": ["a"], "texts": ["a"]}, None),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_its_field(body: dict[str, Any], param: str | None) -> None:
    assert refusal(parse_rerank, body).param == param


ROWS = np.array([[1, 0], [0.6, 0.8], [1, 0], [-1, 0]], np.float32)
RESULT = Result("m", Vectors(ROWS, (3, 4, 5, 6)))


def test_numbers_come_back_as_the_very_float32_that_were_sent() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    rows[0, :3] = (1e-30, -0.0, 123456.79)
    result = Result("m", Vectors(rows, (1,) * 5))
    plain = json.loads(embeddings_body(result, as_base64=False))
    assert np.array_equal(np.array([one["embedding"] for one in plain["data"]], np.float32), rows)
    packed = json.loads(embeddings_body(result, as_base64=True))
    assert all(
        np.array_equal(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), row)
        for one, row in zip(packed["data"], rows, strict=True)
    )
    assert [one["index"] for one in packed["data"]] == [0, 1, 2, 3, 4]
    assert plain["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_ranks_are_cosines_the_best_first_and_none_below_0() -> None:
    ranked = json.loads(rerank_body(RESULT, ["x", "y", "z"], 3, "id"))
    assert [(one["index"], round(one["relevance_score"], 6)) for one in ranked["results"]] == [(1, 1), (0, 0.6), (2, 0)]
    assert [one["document"]["text"] for one in ranked["results"]] == ["y", "x", "z"]
    assert ranked["usage"] == {"prompt_tokens": 18, "total_tokens": 18}
    assert "document" not in json.loads(rerank_body(RESULT, None, 1, "id"))["results"][0]
    bare = json.loads(rerank_body(RESULT, None, 1, "id", bare=True))
    assert bare == [{"index": 1, "score": 1.0}]
