"""What a web page may do here: guards against DNS rebinding and cross-site request forgery (CSRF).

A browser lends every page its reach: a page of a stranger can send requests to 127.0.0.1, and a name of the stranger's
that is made to point at 127.0.0.1 (DNS rebinding) even reads the answers. Three things of a request tell:

    Host            the name in the address bar. Names that the server does not answer to are refused. An IP address
                    cannot be made to point elsewhere, so every address is taken.
    Origin          the page that asks. One of another host or port is refused unless `server.cors_origins` names it,
    Sec-Fetch-Site  and so is what the browser itself calls cross-site, but for a link that a person follows.
    Content-Type    what changes or answers something wants application/json, which a page of another origin can only
                    send after a preflight that is refused. Old browsers send neither Origin nor Sec-Fetch-Site. A key
                    or X-Requested-With does as well, and so does a User-Agent of curl or Wget: a page can set none of
                    them on a request without a preflight, and no browser calls itself so.

Sources: RFC 9110, 7.2 and 15.5.20 (421); RFC 6454; the Fetch standard, "CORS-safelisted request-header", and the
Fetch Metadata request headers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.routing import Match, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from coe.engine.text import quoted

from ..runtime.errors import (
    ForeignHostError,
    ForeignOriginError,
    RequestError,
    SimpleRequestError,
    failure_of,
)
from .dialect import Dialect, error_response
from .paths import shown

_log = logging.getLogger(__name__)

ANY: Final = "*"
# What containers of Docker and of Podman call the machine that runs them; .internal belongs to nobody on the internet.
_LOCAL_NAMES: Final = ("localhost", "host.docker.internal", "host.containers.internal")
_OWN_SITE: Final = ("", "same-origin", "none")  # of Sec-Fetch-Site; none: typed into the address bar
_NO_BROWSERS: Final = ("curl/", "Wget/")  # all browsers call themselves Mozilla, or Opera
_PORTS: Final = {"http": 80, "https": 443}
_LONGEST_SHOWN: Final = 100  # characters of a header in a message


@dataclass(frozen=True)
class Doors:
    """Which names the server answers to, and whose pages may ask it.

    hosts:   names beside the local ones and all IP addresses; ".example.org" is every name below it, "*" any name.
    origins: of pages that may ask, as browsers write them; "*": any.
    """

    hosts: Collection[str] = field(default=())
    origins: Collection[str] = field(default=())

    def refusal(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> RequestError | None:
        """Why a request may not be served, None where it may. headers: as in an ASGI scope, names in lower case."""
        hosts = _values(headers, b"host")
        if len(hosts) > 1 or not all(self._answers_to(host) for host in hosts):
            return ForeignHostError(
                f"The server does not answer to the name {_shown(', '.join(hosts))}. If that is a name of this "
                "machine, add it to server.allowed_hosts in the roster, or start with --allowed-host NAME."
            )
        origins = _values(headers, b"origin")
        named = bool(origins) and all(origin in self.origins or ANY in self.origins for origin in origins)
        if origins and not named and not (len(origins) == 1 == len(hosts) and _same(origins[0], hosts[0])):
            return ForeignOriginError(
                f"Pages of {_shown(', '.join(origins))} may not use this server. If that is a page of yours, add its "
                "origin to server.cors_origins in the roster."
            )
        site = ",".join(_values(headers, b"sec-fetch-site"))
        link = method in ("GET", "HEAD") and _values(headers, b"sec-fetch-mode") == ["navigate"]
        if not named and ANY not in self.origins and site not in _OWN_SITE and not link:
            return ForeignOriginError(
                f"A browser sent this for a page of another site (Sec-Fetch-Site: {_shown(site)}). If that is a page "
                "of yours, add its origin to server.cors_origins in the roster."
            )
        if method == "POST" and not _beyond_a_page(headers):  # pages can send no other method that changes anything
            return SimpleRequestError(
                "Send the header `Content-Type: application/json`. What web pages can send without asking first is "
                "not taken; a request without a body may have `X-Requested-With: curl`, any value, in its place."
            )
        return None

    def _answers_to(self, host: str) -> bool:
        name = _name_of(host)
        if name is None:
            return False
        if ANY in self.hosts or _is_address(name):
            return True
        if name in _LOCAL_NAMES or name.endswith(".localhost"):
            return True
        given = [one.lower().rstrip(".").removeprefix("*") for one in self.hosts]
        return any(name.endswith(one) if one.startswith(".") else name == one for one in given)


class GuardDoors:
    """Refuses what `Doors` refuses, each in the words of its path's dialect.

    served: the router. Where it has no such path, that is the better answer to a POST without JSON.
    """

    def __init__(self, app: ASGIApp, doors: Doors, served: Router, dialect_at: Callable[[str], Dialect]) -> None:
        self._app = app
        self._doors = doors
        self._served = served
        self._dialect_at = dialect_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        error = self._doors.refusal(scope["method"], scope["headers"]) if scope["type"] == "http" else None
        if isinstance(error, SimpleRequestError) and not self._is_served(scope):
            error = None
        if error is None:
            await self._app(scope, receive, send)
            return
        failure = failure_of(error)
        _log.debug("%s %s refused with %d: %s", scope["method"], shown(scope["path"]), failure.status, failure.code)
        await error_response(self._dialect_at(scope["path"]), failure, scope)(scope, receive, send)

    def _is_served(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._served.routes)


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def _beyond_a_page(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a page of another origin could not have sent this without a preflight."""
    kinds = [value.partition(";")[0].strip().lower() for value in _values(headers, b"content-type")]
    if kinds == ["application/json"] or (len(kinds) == 1 and kinds[0].endswith("+json")):
        return True
    # Not of any scheme: a browser adds a remembered Basic by itself.
    bearer = any(value.lower().startswith("bearer ") for value in _values(headers, b"authorization"))
    if bearer or any(_values(headers, name) for name in (b"x-requested-with", b"x-api-key")):
        return True
    agents = _values(headers, b"user-agent")
    return len(agents) == 1 and agents[0].startswith(_NO_BROWSERS)


def _same(origin: str, host: str) -> bool:
    """Whether a page's origin is the server itself, by the name that this request calls it."""
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        usual = _PORTS.get(page.scheme)
        same_port = (page.port or usual) == (server.port or usual)
    except ValueError:
        return False
    return page.scheme in _PORTS and page.hostname == server.hostname and page.hostname is not None and same_port


def _name_of(host: str) -> str | None:
    """The name or address of a Host header, in lower case and without the port; None for what is neither."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where it is no port
    except ValueError:
        return None
    if parts.netloc != host or parts.username is not None or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return not (isinstance(address, IPv6Address) and address.scope_id)


def _shown(text: str) -> str:
    return quoted(text, _LONGEST_SHOWN)
