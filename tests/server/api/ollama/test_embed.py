"""Ollama's two paths for embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from fastapi import FastAPI, Request

from coe.server.api.common.fields import MAX_INT
from coe.server.api.ollama.embed import add_embed
from coe.server.api.uploads import BoundUploads, Uploads
from coe.server.runtime.college import College
from coe.server.runtime.embedding import Result, Wanted
from coe.server.runtime.encoder_thread import Vectors
from fakes.asgi import Client
from fakes.college import asking
from fakes.listed_college import Listed, answered


class Embeds:
    """Gives each text as many ones as it has characters."""

    def __init__(self) -> None:
        self.asked: list[tuple[Wanted, list[str]]] = []

    async def __call__(self, request: Request, wanted: Wanted, names: Sequence[str]) -> Result:
        self.asked.append((wanted, list(names)))
        rows = np.array([[float(len(text)), 0.0] for text in wanted.texts], np.float32)
        return Result("encoder", Vectors(rows, tuple(map(len, wanted.texts)), cut=(0,)))


async def embedded(path: str, body: Mapping[str, Any]) -> tuple[Embeds, Client]:
    app, embeds = FastAPI(), Embeds()
    add_embed(app, cast(College, Listed()), embeds)
    app.add_middleware(BoundUploads, uploads=Uploads(2**20))
    client = asking(body)
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "query_string": b""}
    await app({**scope, "headers": client.headers}, client.receive, client.send)
    return embeds, client


async def test_texts_become_vectors() -> None:
    embeds, client = await embedded("/api/embed", {"model": "all:latest", "input": ["abc", "a"], "truncate": False})
    told = json.loads(client.body)
    assert told["embeddings"] == [[3.0, 0.0], [1.0, 0.0]]
    assert (told["model"], told["prompt_eval_count"]) == ("all:latest", 4)
    assert embeds.asked == [(Wanted("all:latest", ("abc", "a")), ["input[0]", "input[1]"])]
    assert (b"x-coe-note", b"the end was left out of input[0]") in client.got[0]["headers"]


async def test_the_older_path_has_one_vector() -> None:
    embeds, client = await embedded("/api/embeddings", {"model": "all", "prompt": "abc"})
    assert json.loads(client.body) == {"embedding": [3.0, 0.0]}
    assert embeds.asked == [(Wanted("all", ("abc",), cut_to=MAX_INT), ["prompt"])]


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/api/embed", {"model": "all"}, {"model": "all", "embeddings": []}),
        ("/api/embed", {"model": "all", "input": []}, {"model": "all", "embeddings": []}),
        ("/api/embeddings", {"model": "all", "prompt": ""}, {"embedding": []}),
    ],
)
async def test_nothing_is_nothing(path: str, body: dict[str, Any], told: dict[str, Any]) -> None:
    embeds, client = await embedded(path, body)
    assert (json.loads(client.body), embeds.asked) == (told, [])


@pytest.mark.parametrize(
    "body", [{"input": [1, 2]}, {"input": ["a", ""]}, {"input": "a", "dimensions": -1}, {"input": {}}]
)
async def test_what_cannot_be_embedded_is_refused(body: dict[str, Any]) -> None:
    status, _, told = await answered(Listed(), "/api/embed", body)
    assert (status, isinstance(told["error"], str)) == (400, True)
