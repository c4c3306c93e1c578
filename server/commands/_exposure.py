"""Who reaches a server that listens, and with what key: decided before anything is loaded.

On the loopback, keys are the roster's business. Where other machines reach the server it has keys: those that are set,
else a pair of its own making, unless it was told in so many words to do without.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from ..api.keys import ADMIN_VARIABLE, CHAT_VARIABLE, Keys, made_keys
from ..api.origin import ANY
from ..roster.addresses import is_loopback
from ..roster.models import ServerSection


@dataclass(frozen=True)
class Opened:
    """What the command line adds to the roster: names that the server answers to, and doing without keys."""

    hosts: tuple[str, ...] = ()
    insecure: bool = False


@dataclass(frozen=True)
class Exposure:
    """How a server is reached. hosts: names that it answers to. made: files of keys that were made for it, or ()."""

    keys: Keys
    hosts: tuple[str, ...]
    made: tuple[Path, ...] = ()
    warning: str = ""

    def key_lines(self, *, shown: bool) -> list[str]:
        """Where the keys are, for a person. shown: print the one for asking; a terminal is no log."""
        if not self.made:
            return []
        [chat, admin] = self.made
        key = next(iter(self.keys.chat))
        return [
            f"Key:         {key if shown else f'in {chat}'}  (made for this server; {CHAT_VARIABLE} sets another)",
            f"             for unloading models and beginning builds: in {admin} ({ADMIN_VARIABLE})",
        ]


def exposure(settings: ServerSection, host: str, address: str, keys: Keys, opened: Opened) -> Exposure:
    """How a server is reached that listens on `address`, which it was told to as `host`.

    Raises OSError, with the remedy, where keys are wanted and none can be made.
    """
    # `*` as an address to listen on means every interface, among the hosts it would mean any name.
    bound = () if host.strip() == ANY else (host,)
    hosts = (*settings.allowed_hosts, *opened.hosts, *bound, *own_names())
    if keys or is_loopback(address):
        return Exposure(keys, hosts)
    if opened.insecure or settings.insecure:
        return Exposure(
            keys,
            hosts,
            warning=f"NO KEYS: every machine that reaches {address} may ask, unload models and begin builds. "
            f"Set {CHAT_VARIABLE} and {ADMIN_VARIABLE}, or leave --insecure and server.insecure out.",
        )
    try:
        keys, made = made_keys()
    except OSError as error:
        raise OSError(
            f"Other machines reach {address}, so the server wants keys, and cannot keep any of its own: {error}. Set "
            f"{CHAT_VARIABLE} and {ADMIN_VARIABLE}, or api_keys_file in the roster, or start with --insecure."
        ) from error
    return Exposure(keys, hosts, made)


def own_names() -> tuple[str, ...]:
    """What this machine is called by others: its host name, whole and short, and as mDNS has it."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return tuple(dict.fromkeys([name, short, f"{short}.local"])) if short else ()
