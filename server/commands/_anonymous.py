"""What a person sends to others without what says who and where they are: no paths, names of hosts and users, keys."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from coe.engine.private import child_environment, without_secrets

# A path from the root or the home folder; "tokens/s", "PCIe/SSE2" and fractions are none. With spaces where quoted.
_QUOTED_PATH: Final = re.compile(r"(['\"])(~?/[^'\"\n]*)\1")
_PATH: Final = re.compile(r"(?<![\w.:/])(?:file:/)?~?(?:/[^\s/'\"|,;:)\]}>]+)+/?|(?<=[=:])/[^\s'\"|,;)\]}>]+")
_URL: Final = re.compile(r"\w+://[^\s'\")]+")
_WINDOWS_PATH: Final = re.compile(r"\b[A-Za-z]:\\[^\s'\"]+")
_ADDRESS: Final = re.compile(r"\b(?!127\.)\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE)
_SHORTEST: Final = 2  # characters of a name that is looked for; of a secret, more
_SHORTEST_SECRET: Final = 6


def personal_words(environment: Mapping[str, str] = os.environ, home: Path | None = None) -> dict[str, str]:
    """What of this machine's names and secrets must not be in a text: the word -> what stands for it."""
    kept = child_environment(environment)
    found = {value: "SECRET" for name, value in environment.items() if name not in kept}
    found = {value: word for value, word in found.items() if len(value) >= _SHORTEST_SECRET}
    host = socket.gethostname()
    for name in {host, host.split(".")[0], os.uname().nodename}:
        found.setdefault(name, "HOST")
    for name in {_user(), *(environment.get(key, "") for key in ("USER", "LOGNAME", "SUDO_USER")), _folder(home)}:
        found.setdefault(name, "USER")
    return {word: stands for word, stands in found.items() if len(word) >= _SHORTEST}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        return ""


def _folder(home: Path | None) -> str:
    try:
        return (home or Path.home()).name
    except RuntimeError:
        return ""


def anonymous(value: Any, words: Mapping[str, str]) -> Any:
    """A value of JSON types without them: in all its texts, keys included."""
    if isinstance(value, str):
        return anonymous_text(value, words)
    if isinstance(value, Mapping):
        return {anonymous_text(str(key), words): anonymous(one, words) for key, one in value.items()}
    if isinstance(value, Iterable):
        return [anonymous(one, words) for one in value]
    return value


def anonymous_text(text: str, words: Mapping[str, str]) -> str:
    """One text. words: of `personal_words`."""
    for word in sorted((word for word, stands in words.items() if stands == "SECRET"), key=len, reverse=True):
        text = text.replace(word, "SECRET")
    text = _URL.sub("URL", without_secrets(text))
    text = _QUOTED_PATH.sub(r"\1PATH\1", text)
    text = _WINDOWS_PATH.sub("PATH", _PATH.sub("PATH", text))
    text = _ADDRESS.sub("ADDRESS", text)
    for word in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", words[word], text)
    return text
