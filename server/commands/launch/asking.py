"""What a running server says of itself, as far as clients have to be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import httpx

from coe.engine.files import state_folder

from ...api.keys import CHAT_VARIABLE
from ...roster.values import AUTO
from .._url import is_here, server_url, why_none
from .values import Model, Served

_LOOK_S: Final = 30.0  # a server that is changing specialists answers in between


class LaunchError(Exception):
    """A client cannot be launched; says why, and what to do."""


def ask_server(url: str, key: str, model: str, transport: httpx.BaseTransport | None = None) -> Served:
    """What the server at an address offers. key: "" for none. model: what the client is to ask for, or an alias.

    Raises LaunchError where no server of ours answers, where it wants another key, and for a model that it has not.
    """
    try:
        url = server_url(url)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    if not (key.isascii() and key.isprintable()):
        raise LaunchError("That is no key of a server: it has line breaks, or characters that no header can hold.")
    try:
        client = httpx.Client(
            base_url=url,
            timeout=_LOOK_S,
            headers={"authorization": f"Bearer {key}"} if key else {},
            transport=transport,
            trust_env=not is_here(url),
        )
    except (ImportError, ValueError) as error:  # a proxy that is none
        raise LaunchError(f"{url} cannot be asked through this proxy: {error}") from error
    try:
        with client:
            response = client.get("/v1/models")
            if response.status_code == httpx.codes.UNAUTHORIZED:
                raise LaunchError(
                    f"{url} wants {'another key' if key else 'a key'}: give one with --key, or in {CHAT_VARIABLE}."
                    f"{_made_here()}"
                )
            cards = response.raise_for_status().json()["data"]
            by_name = {str(card["id"]): card for card in cards if card["coe"]["available"]}
            refused = {str(card["id"]): card["coe"] for card in cards if not card["coe"]["available"]}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise LaunchError(why_none(url, error)) from error
    return served_of(url, key, model, by_name, refused)


def served_of(
    url: str, key: str, model: str, cards: Mapping[str, Mapping[str, Any]], refused: Mapping[str, Mapping[str, Any]]
) -> Served:
    """A server's cards, by their names, as a client is told of them. refused: why some cannot be served.

    Raises LaunchError for a model that is none of these, and where none can be served.
    """
    models = {name: _model(name, card) for name, card in cards.items()}
    if (chosen := models.get(model)) is None:
        if about := refused.get(model):
            raise LaunchError(f"{model} cannot be served there. {about.get('reason')} {about.get('remedy')}")
        known = ", ".join(name for name, card in cards.items() if "root" not in card)
        raise LaunchError(f"There is no model {model!r} at {url}. Served are: {known}.")
    if chosen.context_tokens == 0:
        raise LaunchError(f"No specialist can be served at {url} yet. Its /v1/models says why of each.")
    if not _chats(cards[model]):
        raise LaunchError(f"{model} answers no chats. Name another with --model; its /v1/models says what each can do.")
    named = [one for name, one in models.items() if name != model and "root" not in cards[name] and _chats(cards[name])]
    # `auto` first, where it is not what was chosen.
    embeds = any("embedding" in card["capabilities"] for card in cards.values())
    return Served(url, key, chosen, tuple(sorted(named, key=lambda one: one.name != AUTO)), embeds)


def _made_here() -> str:
    """Where the key stands that a server here made for itself, as a further sentence; "" where none did."""
    file = state_folder() / "api-key"
    return f" One that a server here made for itself stands in {file}." if file.is_file() else ""


def _chats(card: Mapping[str, Any]) -> bool:
    return "chat" in card["capabilities"]


def _model(name: str, card: Mapping[str, Any]) -> Model:
    return Model(name, str(card["display_name"]), int(card["max_model_len"]), "tools" in card["capabilities"])
