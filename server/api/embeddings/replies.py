"""Answers with embeddings and with ranks, as JSON. Written a vector at a time: all of a large batch at once would hold
the interpreter's lock, and the event loop with it, for most of a second."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.embedding import Result


def embeddings_body(result: Result, *, as_base64: bool) -> bytes:
    """OpenAI's list of embeddings. as_base64: each as its float32, little-endian, in base64."""
    write = _base64 if as_base64 else _numbers
    items = (
        b'{"object":"embedding","index":%d,"embedding":%s}' % (index, write(row))
        for index, row in enumerate(result.vectors.rows)
    )
    rest = json.dumps({"model": result.model, "usage": _usage(result)}, separators=(",", ":"))
    return b'{"object":"list","data":[' + b",".join(items) + b"]," + rest[1:].encode()


def _numbers(row: NDArray[np.float32]) -> bytes:
    # Nine digits tell any two float32 apart.
    return ("[" + ",".join(["%.9g" % number for number in row.tolist()]) + "]").encode()  # noqa: UP031 - the quickest


def _base64(row: NDArray[np.float32]) -> bytes:
    return b'"' + base64.b64encode(row.astype("<f4").tobytes()) + b'"'


def rerank_body(
    result: Result, documents: Sequence[str] | None, top_n: int, request_id: str, *, bare: bool = False
) -> bytes:
    """The documents' indexes by their cosine similarity to the first text, the query; the best first.

    documents: to be told again; None to leave them out. bare: as TEI writes it, a list of indexes and scores.
    """
    query, *rest = result.vectors.rows
    scores = np.stack(rest) @ query
    order = np.argsort(-scores, kind="stable")[:top_n]
    ranks = [(int(index), float(min(max(scores[index], 0.0), 1.0))) for index in order]
    body: Any
    if bare:
        body = [
            {"index": index, "score": score, **({"text": documents[index]} if documents is not None else {})}
            for index, score in ranks
        ]
    else:
        results = [
            {
                "index": index,
                "relevance_score": score,
                **({"document": {"text": documents[index]}} if documents is not None else {}),
            }
            for index, score in ranks
        ]
        body = {"id": request_id, "object": "list", "model": result.model, "results": results, "usage": _usage(result)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _usage(result: Result) -> dict[str, int]:
    total = sum(result.vectors.tokens)
    return {"prompt_tokens": total, "total_tokens": total}
