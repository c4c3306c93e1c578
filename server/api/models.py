"""The models as clients list them: every specialist, its aliases, and `auto`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from coe.router.encoder import STATES, Embeds

from ..roster.models import Specialist
from ..roster.values import AUTO, names_among
from ..runtime.availability import Servable, Unavailable
from ..runtime.college import College
from ..runtime.errors import RequestError, UnknownModelError
from .anthropic.dialect import VERSION_HEADER
from .openai.described import ERROR
from .openapi import gives

_OBJECT: Final = {"type": "object"}
_EMBEDS: Final = ("embedding", "rerank")
_LIST: Final = {
    "type": "object",
    "required": ["object", "data", "has_more", "first_id", "last_id"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _OBJECT},
        "has_more": {"type": "boolean"},
        "first_id": {"type": ["string", "null"]},
        "last_id": {"type": ["string", "null"]},
    },
}
_MOST: Final = 1000  # of a page, as Anthropic has it
_PAGING: Final[Mapping[str, Any]] = {
    "parameters": [
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": _MOST}},
        {"name": "after_id", "in": "query", "schema": {"type": "string"}},
        {"name": "before_id", "in": "query", "schema": {"type": "string"}},
    ]
}


def add_models(app: FastAPI, college: College) -> None:
    """Serve the list, and each model by its name or an alias."""
    created = int(time.time())
    created_at = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def card(name: str) -> dict[str, Any]:
        """What OpenAI's clients and Anthropic's want to know of every model."""
        return {
            "id": name,
            "object": "model",
            "type": "model",
            "created": created,
            "created_at": created_at,
            "owned_by": "college-of-experts",
        }

    def described(name: str, specialist: Specialist | None) -> dict[str, Any]:
        if specialist is None:
            return {**card(name), **({} if name == AUTO else {"root": AUTO}), **_of_auto(college)}
        root = {} if name == specialist.name else {"root": specialist.name}
        return {**card(name), **root, **_of_specialist(college, specialist.name)}

    def as_asked(request: Request, model: dict[str, Any]) -> dict[str, Any]:
        """Anthropic's clients know `capabilities` as an object of fields of its own, which says nothing of ours."""
        return {**model, "capabilities": None} if VERSION_HEADER.decode() in request.headers else model

    @app.get("/v1/models", responses=gives(_LIST, ERROR), openapi_extra=dict(_PAGING))
    async def models(request: Request) -> dict[str, Any]:
        """Every specialist, each alias, and `auto`; what cannot be served says why."""
        entries = [college.catalog.availability[name].entry for name in college.roster.names]
        cards = {name: described(name, None) for name in (AUTO, *names_among(college.roster.router.aliases))}
        cards |= {
            name: described(name, entry) for entry in entries for name in (entry.name, *names_among(entry.aliases))
        }
        if (encoder := college.embeddings.encoder) is not None:
            names = [encoder.name, *college.roster.router.encoder_aliases]
            free = [name for name in names if college.embeddings.is_encoder(name)]
            cards |= {name: {**card(name), **_of_encoder(college, encoder, name)} for name in free}
        page, has_more = _page(list(cards), request.query_params)
        return {
            "object": "list",
            "data": [as_asked(request, cards[name]) for name in page],
            "has_more": has_more,
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }

    @app.get("/v1/models/{name:path}", responses=gives(_OBJECT, ERROR))
    async def model(request: Request, name: str) -> dict[str, Any]:
        """One specialist, by its name or an alias."""
        return as_asked(request, found(name))

    def found(name: str) -> dict[str, Any]:
        if not name.strip("/"):
            raise HTTPException(404)  # /v1/models with a slash too many
        encoder = college.embeddings.encoder
        if encoder is not None and college.embeddings.is_encoder(name):
            return {**card(name), **_of_encoder(college, encoder, name)}
        if college.roster.called(name) is None:
            known = ", ".join([AUTO, *college.roster.names])
            raise UnknownModelError(f"There is no model {name!r}. Known: {known}.", param="model")
        return described(name, college.roster.find(name))


def _page(ids: Sequence[str], asked: Mapping[str, str]) -> tuple[Sequence[str], bool]:
    """The part of a list that is asked for, as Anthropic's clients do, and whether there is more of it.

    Raises RequestError naming the parameter.
    """
    limit = asked.get("limit", str(_MOST))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= _MOST):
        raise RequestError(f"limit: give a whole number from 1 to {_MOST:,}.", param="limit")
    most = int(limit)
    for name in ("after_id", "before_id"):
        if name in asked and asked[name] not in ids:
            raise RequestError(f"{name}: the list has no model {asked[name][:60]!r}.", param=name)
    if "before_id" in asked:
        rest = ids[: ids.index(asked["before_id"])]
        return rest[-most:], len(rest) > most
    rest = ids[ids.index(asked["after_id"]) + 1 :] if "after_id" in asked else ids
    return rest[:most], len(rest) > most


def _sizes(context_tokens: int) -> dict[str, Any]:
    """The context, by the names under which clients look for it: vLLM's, OpenRouter's, llama.cpp's, Anthropic's."""
    return {
        "max_model_len": context_tokens,
        "context_length": context_tokens,
        "meta": {"n_ctx": context_tokens},
        "max_input_tokens": context_tokens,
        "max_tokens": context_tokens,
    }


def capabilities_of(item: Servable | Unavailable) -> list[str]:
    """What may be asked of it, in words that clients know from Ollama.

    `insert` is filling the middle, `structured` an answer by a JSON schema.
    """
    if isinstance(item, Unavailable):
        return []
    if item.entry.embeddings:
        return list(_EMBEDS)
    found = ["completion", "structured", *(["insert"] if item.infill else [])]
    if item.chat_fault is None:
        found.append("chat")
        found += ["tools"] if item.entry.tools not in ("ignore", "refuse") else []
        found += ["thinking"] if item.entry.thinking.mode != "off" else []
    return found


def _of_encoder(college: College, encoder: Embeds, name: str) -> dict[str, Any]:
    """The sentence encoder that is on board."""
    root = {} if name == encoder.name else {"root": encoder.name}
    return {
        **root,
        "display_name": encoder.name,
        **_sizes(encoder.positions),
        "capabilities": list(_EMBEDS),
        "coe": {
            "description": "The sentence encoder that the supervisor reads questions with.",
            "aliases": list(college.roster.router.encoder_aliases),
            "dimensions": STATES,
            "available": True,
        },
    }


def _of_auto(college: College) -> dict[str, Any]:
    """It passes over who cannot hold a prompt or takes no tools: what any of them can, it can."""
    items = [college.catalog.availability[name] for name in college.catalog.answering(chats=False)]
    most = max((item.entry.context_tokens for item in items), default=0)
    able = dict.fromkeys(word for item in items for word in capabilities_of(item))
    about = "The supervisor chooses a specialist."
    return {
        "display_name": "Automatic",
        **_sizes(most),
        "capabilities": list(able),
        "coe": {"description": about, "available": True},
    }


def _of_specialist(college: College, name: str) -> dict[str, Any]:
    """OpenAI's fields, those by which clients learn more, and what is ours under `coe`."""
    item = college.catalog.availability[name]
    specialist = item.entry
    facts: dict[str, Any] = {
        "description": specialist.description,
        "domains": list(specialist.domains),
        "aliases": list(specialist.aliases),
        "context_tokens": specialist.context_tokens,
        "thinking": specialist.thinking.mode,
        "quant": specialist.quant,
        "beta": specialist.beta,
        "notice": college.roster.notice_of(specialist),
        "licence": specialist.licence,
        "available": not isinstance(item, Unavailable),
    }
    if isinstance(item, Unavailable):
        facts |= {"reason": item.reason, "remedy": item.remedy}
    else:
        facts["warm"] = college.pool.is_warm(name)
        facts["chats"] = item.chat_fault is None and not specialist.embeddings
        if not specialist.embeddings:
            facts["tools"] = item.tools
        if item.spec.cpu_expert_layers:
            facts["cpu_expert_layers"] = item.spec.cpu_expert_layers
        if item.doubts:
            facts["warnings"] = list(item.doubts)
    if name in college.builds:
        facts["build"] = college.builds.progress(name).line()
    context_tokens = specialist.context_tokens
    if not isinstance(item, Unavailable) and item.embedding is not None:
        facts |= {"dimensions": item.embedding.dimensions, "shorter": list(specialist.dimensions)}
        facts["context_tokens"] = context_tokens = item.embedding.input_tokens
    if item.footprint is not None:
        facts["vram_bytes"] = item.footprint.total_bytes
    shown = name.replace("-", " ").replace("_", " ")
    return {
        "display_name": shown[:1].upper() + shown[1:],
        **_sizes(context_tokens),
        "capabilities": capabilities_of(item),
        "coe": facts,
    }
