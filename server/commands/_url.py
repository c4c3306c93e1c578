"""The address of a server that a person gives a command, as a client needs it."""

from __future__ import annotations

from typing import Final

import httpx

from ..roster.addresses import is_everywhere, is_loopback

_SAMPLE: Final = "http://127.0.0.1:8000"


def server_url(given: str) -> str:
    """http://HOST:PORT of a server, without /v1 or a slash. http:// may be left out.

    Raises ValueError with the remedy for what is no address.
    """
    text = given.strip()
    text = text if "://" in text else f"http://{text}"
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        brackets = " An IPv6 address stands in brackets: http://[::1]:8000." if text.count(":") > 2 else ""
        raise ValueError(
            f"{given!r} is no address of a server ({error}). Give one such as {_SAMPLE}.{brackets}"
        ) from error
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment or len(text.split()) > 1:
        raise ValueError(f"{given!r} is no address of a server. Give one such as {_SAMPLE}.")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def is_here(url: str) -> bool:
    """Whether the server is one of this machine: then no proxy is asked, which would look at its own loopback."""
    host = httpx.URL(url).host
    return is_loopback(host) or is_everywhere(host)


def why_none(url: str, error: Exception) -> str:
    """What to tell a person when no server of ours answers at an address, with the remedy for the cause."""
    if isinstance(error, httpx.TimeoutException):
        return f"{url} does not answer ({error or 'no answer in time'}). Correct the address, or see that server's log."
    if isinstance(error, httpx.TransportError):
        return f"No college is served at {url} ({error}). Correct the address, or start one: coe serve"
    # Something answers, and not as a college does.
    return f"No college is served at {url}: another server answers there ({error}). Correct the address."
