"""The socket that a server listens on, bound before anything is loaded; each way in which that fails has its remedy."""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

from ..roster.addresses import address_text, unbracketed

_ANY_HOST: Final = "127.0.0.1 for this machine alone, 0.0.0.0 for every interface"
# What another address of the same name may not have in common with the first.
_OF_ONE_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(OSError):
    """Nothing can listen there; says why, and what to do."""


def listen(host: str, port: int, *, option: str = "--port", taken: str = "") -> socket.socket:
    """Bind before anything is loaded: a taken port is best known at once. Raises ListenError with the remedy.

    host: an address of this machine, an IPv6 one with or without brackets, or a name. port: 0 for a free one.
    option: by which a person chooses the port. taken: what else to do where it is taken.
    """
    if not 0 <= port <= 65535:
        raise ListenError(f"{port} is no port. Give {option} a number from 1 to 65535, or 0 for a free one.")
    host = unbracketed(host.strip())
    if not host:
        raise ListenError(f"An empty host is none. Give --host an address: {_ANY_HOST}.")
    refusal: OSError | None = None
    for family, address in _addresses(host, port):
        try:
            return _bound(family, address)
        except OSError as error:
            refusal = refusal or error
            if error.errno not in _OF_ONE_ADDRESS:
                break
    assert refusal is not None, "a name that is found has an address"
    raise ListenError(_why_not(refusal, host, port, option, taken)) from refusal


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """The addresses of a host, the preferred one first."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            what, remedy = f"The name {host!r} cannot be looked up now.", "Try again, or give --host an address"
        else:
            what, remedy = f"There is no host {host!r}.", "Correct --host (server.host in the roster)"
        raise ListenError(f"Cannot listen: {what} {remedy}: {_ANY_HOST}.") from error
    except (UnicodeError, ValueError) as error:  # a part of a name that is too long, a NUL in it
        what = f"Cannot listen: {host[:80]!r} is no name of a host."
        raise ListenError(f"{what} Correct --host (server.host in the roster): {_ANY_HOST}.") from error
    return [(family, address) for family, _, _, _, address in found]


def _bound(family: socket.AddressFamily, address: Any) -> socket.socket:
    # With its protocol named: asyncio sends frames at once only on sockets that say they are TCP. Elsewhere the
    # second frame of a kept connection waits for the client's acknowledgement, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # another that has bound the same port meanwhile fails here, and not after its models load
    except BaseException:
        listener.close()
        raise
    return listener


def _why_not(error: OSError, host: str, port: int, option: str, taken: str) -> str:
    """One remedy a cause."""
    said = (error.strerror or str(error)).rstrip(".")
    remedies = {
        errno.EADDRINUSE: f"{taken}Choose another port with {option}, or end what listens there "
        f"(ss -ltnp 'sport = :{port}').",
        errno.EACCES: f"This user may not open it: choose a port from 1024 up with {option}, or give the process "
        "CAP_NET_BIND_SERVICE.",
        errno.EPERM: f"A rule of this system forbids it: choose another port with {option}, or another --host.",
        errno.EADDRNOTAVAIL: f"No interface of this machine has this address. Correct --host: {_ANY_HOST}.",
        errno.EAFNOSUPPORT: f"This machine has no {'IPv6' if ':' in host else 'such'} addresses. "
        f"Correct --host: {_ANY_HOST}.",
        errno.EINVAL: "A link-local address needs its interface, such as --host fe80::1%eth0.",
        errno.EMFILE: "This process has no file descriptor left: ulimit -n 4096 before it starts.",
        errno.ENFILE: "This machine has no file descriptor left: end other programs.",
    }
    remedy = remedies.get(error.errno or 0, f"Choose another --host or {option}.")
    return f"Cannot listen on {address_text(host, port)}: {said}. {remedy}"
