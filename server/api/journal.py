"""The journal of requests: lines for refusals, answers that did not end well, slow requests and administration; in
flight, times and counts.

A line holds who asked (by address, and the fingerprint of the key), what for and how it ended, and nothing of a body.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import urllib.parse
from ipaddress import ip_address
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..runtime.line_limit import LineLimit
from ..runtime.metrics import Metrics, RunningRequest
from .dialect import CODE_KEY
from .keys import ADMIN_KEY, given_key
from .paths import shown

_log = logging.getLogger("coe.journal")

RUNNING_KEY: Final = "coe.running"  # of the ASGI scope: the RunningRequest
OUTCOME_KEY: Final = "coe.outcome"  # of the ASGI scope: of an answer whose status said too little
REQUEST_ID_KEY: Final = "coe.request_id"  # of the ASGI scope
_ADMIN_PATHS: Final = ("/v1/pool/", "/v1/builds/")
_FINGERPRINT_CHARS: Final = 8


class Journal:
    """ASGI middleware around everything but the naming of requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics, slow_s: float) -> None:
        """slow_s: a request that takes longer has a line of its own; 0 for none."""
        self._app = app
        self._metrics = metrics
        self._slow_s = slow_s
        self._refusals, self._ends = LineLimit(), LineLimit()
        self._slow, self._denied = LineLimit(), LineLimit()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = RunningRequest(scope.get(REQUEST_ID_KEY, ""), "other", time.perf_counter())
        scope[RUNNING_KEY] = request
        self._metrics.running.requests[id(request)] = request
        status, code = 0, "-"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Paths as they are written in the routes: those of clients would be labels without end.
                request.route = getattr(scope.get("route"), "path", "other")
                self._metrics.requested(request.route, status)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except BaseException as error:
            if not status:
                status, code = (500, "internal_error") if isinstance(error, Exception) else (499, "client_gone")
            raise
        finally:
            del self._metrics.running.requests[id(request)]
            self._write(scope, request, status or 499, scope.get(CODE_KEY, code))

    def _write(self, scope: Scope, request: RunningRequest, status: int, code: str) -> None:
        took_s = time.perf_counter() - request.since
        outcome = scope.get(OUTCOME_KEY) or _outcome(status)
        if request.specialist != "-" or request.model != "-":
            self._metrics.ended(request.specialist, outcome, took_s)
        who = _who(scope)
        # What is refused before it has met its route is named by what was asked for.
        place = _word(scope["path"]) if request.route == "other" else request.route
        if status >= 400 and status != 499 and request.route not in ("/ready", "/health"):
            _limited(
                self._refusals,
                f"refused {scope['method']} {place} with {status} {code}: model {request.model}, {who}",
            )
        elif request.end:  # the client had its status, and perhaps text, before that was known
            _limited(
                self._ends,
                f"{outcome}: {scope['method']} {request.route} ended with {request.end} after {took_s:.1f} s: "
                f"model {request.model}, answered by {request.specialist}, {who}",
            )
        elif 0 < self._slow_s < took_s:
            _limited(
                self._slow,
                f"slow: {scope['method']} {request.route} took {took_s:.1f} s, {outcome}: model {request.model}, "
                f"answered by {request.specialist}, {who}",
            )
        changes = scope["method"] not in ("GET", "HEAD", "OPTIONS") and scope["path"].startswith(_ADMIN_PATHS)
        if changes or scope.get(ADMIN_KEY):
            what = _word(scope.get("path_params", {}).get("name") or request.model)
            line = f"administration: {scope['method']} {place} of {what} {who}: {status} {outcome}"
            if status < 400:
                _log.info("%s", line)
            else:  # it changed nothing, and anybody can bring about as many as they like
                _limited(self._denied, line)


def about(scope: Scope, *, model: str | None = None, specialist: str | None = None, end: str | None = None) -> None:
    """Note which model a request names, which specialist answers it, and how the answer ended where its status cannot
    say it; each once it is known."""
    request: RunningRequest | None = scope.get(RUNNING_KEY)
    if request is not None:
        # Not at the response's start alone: who looks for what hangs looks before that.
        request.route = getattr(scope.get("route"), "path", request.route)
        request.model = request.model if model is None else model
        request.specialist = request.specialist if specialist is None else specialist
        request.end = request.end if end is None else end


def _word(text: str) -> str:
    """A client's text as one word: with spaces in it a path could say the rest of the line itself."""
    return re.sub(r"\s", lambda space: urllib.parse.quote(space[0]), shown(text))


def _outcome(status: int) -> str:
    if status == 499:
        return "left"
    return "failed" if status >= 500 else "refused" if status >= 400 else "answered"


def _limited(limit: LineLimit, line: str) -> None:
    if (shown_line := limit.line(line)) is not None:
        _log.info("%s", shown_line)


def _who(scope: Scope) -> str:
    """The address, and the key's fingerprint: of a hash, so that the log gives no key away."""
    address = (scope.get("client") or ("-",))[0]
    who = f"from {address}"
    if (behind := _forwarded_for(scope)) is not None:
        who += f" (which says for {behind})"
    key = given_key(scope)
    if not key:
        return who
    return f"{who} with key {hashlib.sha256(key).hexdigest()[:_FINGERPRINT_CHARS]}"


def _forwarded_for(scope: Scope) -> str | None:
    """The address that a proxy in front names, the last one added; no text that is no address. Anybody may send it."""
    given = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    try:
        address = ip_address(given[-1].rpartition(b",")[2].strip().decode("ascii")) if given else None
    except ValueError:
        return None
    return str(address) if address is not None and not getattr(address, "scope_id", None) else None
