"""Addresses: how a host and a port are written for people and in a URL, and which hosts mean this machine alone.

Source: RFC 3986, 3.2.2 (an IPv6 address stands in brackets), RFC 6874 (the % before an interface is written %25).
"""

from __future__ import annotations

import ipaddress
from typing import Final

LOOPBACK: Final = "127.0.0.1"


def address_text(host: str, port: int) -> str:
    """HOST:PORT for people: an IPv6 address in brackets, the interface of a link-local one with it."""
    plain = unbracketed(host)
    return f"[{plain}]:{port}" if ":" in plain else f"{plain}:{port}"


def base_url(host: str, port: int) -> str:
    """http://HOST:PORT, as a program on this machine reaches a server that listens there."""
    return f"http://{address_text(reachable(host), port).replace('%', '%25')}"


def reachable(host: str) -> str:
    """An address of this machine in place of the one that means all of them; any other host as it is."""
    address = _parsed(host)
    if address is None or not address.is_unspecified:
        return unbracketed(host)
    return LOOPBACK if address.version == 4 else "::1"


def is_everywhere(host: str) -> bool:
    """Whether a server that listens there is reached through every interface (0.0.0.0, ::)."""
    address = _parsed(host)
    return address is not None and address.is_unspecified


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server that listens there. Names are not looked up.

    Source of the names: RFC 6761, 6.3.
    """
    address = _parsed(host)
    if address is not None:
        return address.is_loopback
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def unbracketed(host: str) -> str:
    """A host without the brackets that an IPv6 address has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, an IPv4 one in IPv6's form as IPv4; None for a name."""
    try:
        address = ipaddress.ip_address(unbracketed(host).replace("%25", "%"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped if mapped is not None and (mapped.is_loopback or mapped.is_unspecified) else address
