"""API keys of two kinds, for asking and for administering: where they come from, and the middleware that wants them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from coe.engine.files import private_folder, read_bounded, state_folder, written_beside

from ..roster.models import Roster
from ..runtime.errors import NoKeyError, NotAdminError, RequestError, failure_of
from .dialect import Dialect, error_response

CHAT_VARIABLE: Final = "COE_API_KEYS"  # read where the roster names no other place
ADMIN_VARIABLE: Final = "COE_ADMIN_KEYS"
ADMIN_KEY: Final = "coe.administers"  # in a scope: whether its request changes the server
_KEY: Final = "coe.key"  # in a scope: the key that let its request in
_NOT_ADMIN_KEY: Final = "coe.not_admin"  # in a scope: why its request may not administer
_OPEN_PATHS: Final = ("/health", "/ready", "/api/hello")
_MADE: Final = ("api-key", "admin-key")  # files in the state folder, with a key each
_MOST_KEYS_BYTES: Final = 2**20
_MOST_GIVEN: Final = 4  # keys of one request


@dataclass(frozen=True)
class Keys:
    """The keys that are accepted. Without any, everybody may do everything.

    chat:  may ask and look. admin: may do that, and what changes the server: unload models, begin builds.
    """

    chat: frozenset[str] = frozenset()
    admin: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.chat or self.admin)

    def __repr__(self) -> str:  # a key is never shown, not even in a traceback
        return f"Keys({len(self.chat)} for asking, {len(self.admin)} for administering)"


def read_keys(roster: Roster) -> Keys:
    """Keys from the places that the roster names, else from COE_API_KEYS and COE_ADMIN_KEYS.

    Raises ValueError when a place that the roster names is empty or cannot be read.
    """
    settings = roster.server
    return Keys(
        _read(roster, "api_keys", settings.api_keys_env, settings.api_keys_file, CHAT_VARIABLE),
        _read(roster, "admin_keys", settings.admin_keys_env, settings.admin_keys_file, ADMIN_VARIABLE),
    )


def key_variables(roster: Roster) -> tuple[str, ...]:
    """Environment variables that may hold keys."""
    named = (roster.server.api_keys_env, roster.server.admin_keys_env)
    return (CHAT_VARIABLE, ADMIN_VARIABLE, *(name for name in named if name is not None))


def forget_keys(roster: Roster) -> None:
    """Take the keys out of this process's environment once they were read: no child is to inherit them."""
    for name in key_variables(roster):
        os.environ.pop(name, None)


def readable_by_others(roster: Roster) -> list[Path]:
    """The files of keys that other users of the machine can read."""
    named = (roster.server.api_keys_file, roster.server.admin_keys_file)
    paths = [roster.resolve(name) for name in named if name is not None]
    return [path for path in paths if path.exists() and path.stat().st_mode & 0o077]


def made_keys() -> tuple[Keys, tuple[Path, Path]]:
    """A key of each kind, made at the first call and kept for the user alone; and the files that they stand in.

    Raises OSError where the state folder cannot be written.
    """
    folder = state_folder()
    private_folder(folder)
    chat, admin = (folder / name for name in _MADE)
    return Keys(frozenset({_made(chat)}), frozenset({_made(admin)})), (chat, admin)


def _made(path: Path) -> str:
    if path.exists():
        path.chmod(0o600)
        if key := path.read_text().strip():
            return key
    key = f"coe-{secrets.token_urlsafe(32)}"
    with written_beside(path, private=True) as beside:
        beside.write_text(f"{key}\n")
    return key


def _read(roster: Roster, setting: str, variable: str | None, file: str | None, usual: str) -> frozenset[str]:
    keys: set[str] = set()
    if variable is None and file is None:
        return frozenset(_listed(os.environ.get(usual, "")))
    if variable is not None:
        found = _listed(os.environ.get(variable, ""))
        if not found:
            raise ValueError(
                f"server.{setting}_env names {variable}, which is empty or not set. "
                "Set it to keys with commas between them, or remove the line."
            )
        keys |= found
    if file is not None:
        path = roster.resolve(file)
        try:
            lines = read_bounded(path, _MOST_KEYS_BYTES).decode().splitlines()
        except UnicodeDecodeError as error:  # its text would hold bytes of the file
            raise ValueError(f"server.{setting}_file: {path} is not UTF-8.") from error
        except OSError as error:
            raise ValueError(f"server.{setting}_file: {path} cannot be read: {error.strerror}.") from error
        found = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
        if not found:
            raise ValueError(f"server.{setting}_file: {path} holds no key. Write one a line, or remove the setting.")
        keys |= found
    return frozenset(keys)


def _listed(text: str) -> set[str]:
    return {key.strip() for key in text.split(",") if key.strip()}


def given_keys(scope: Scope) -> list[bytes]:
    """The keys that a request carries: as a bearer token, and in x-api-key, as Anthropic's clients have it."""
    found = []
    for name, value in scope["headers"]:
        scheme, _, key = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            found.append(key.strip())
        elif name == b"x-api-key":
            found.append(value.strip())
    return [key for key in found if key][:_MOST_GIVEN]


def given_key(scope: Scope) -> bytes:
    """The key by which a request was let in, else the first that it carries; empty for none."""
    return scope.get(_KEY) or next(iter(given_keys(scope)), b"")


def require_admin(scope: Scope) -> None:
    """For what changes the server at a path that answers. Raises NotAdminError for a key that may only ask."""
    scope[ADMIN_KEY] = True
    if (refusal := scope.get(_NOT_ADMIN_KEY)) is not None:
        raise refusal


class RequireKey:
    """Every path but those that say the server is there wants `Authorization: Bearer KEY` or `x-api-key: KEY`; keys
    are compared in constant time.

    What is posted or deleted anywhere but at `answering`, the paths that answer, changes the server: it wants a key for
    that. A path that ends in a slash stands for all below it.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, answering: Collection[str], dialect_at: Callable[[Scope], Dialect]
    ) -> None:
        self._app = app
        self._dialect_at = dialect_at
        self._answering = answering
        self._below = tuple(path for path in answering if path.endswith("/"))
        self._chat = [key.encode() for key in keys.chat]
        self._admin = [key.encode() for key in keys.admin]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        error = self._refusal(scope) if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS else None
        if error is None:
            await self._app(scope, receive, send)
            return
        failure = failure_of(error)
        await error_response(self._dialect_at(scope), failure, scope)(scope, receive, send)

    def _refusal(self, scope: Scope) -> RequestError | None:
        # Look at all of them: an early end would tell which one was nearly right. A client may carry a stale one beside
        # its good one.
        keys = given_keys(scope)
        chat = [key for key in keys for known in self._chat if compare_digest(key, known)]
        admin = [key for key in keys for known in self._admin if compare_digest(key, known)]
        scope[_KEY] = next(iter((*admin, *chat)), b"")
        if not (chat or admin):
            return NoKeyError("A valid API key is needed: send Authorization: Bearer KEY, or x-api-key: KEY.")
        if admin:
            return None
        refusal = NotAdminError(
            "This key is for asking. What changes the server wants one for administering: "
            + (
                "see server.admin_keys_env and server.admin_keys_file of the roster."
                if self._admin
                else "there is none yet, set server.admin_keys_env or server.admin_keys_file in the roster, or "
                f"{ADMIN_VARIABLE}."
            )
        )
        asks = scope["path"] in self._answering or scope["path"].startswith(self._below)
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or asks:
            scope[_NOT_ADMIN_KEY] = refusal
            return None
        return refusal
