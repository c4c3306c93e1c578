"""What stays with the user: no telemetry, no secrets for child processes, files that nobody else can read.

Libraries that the project stands on report to their makers unless they are told not to; each is told by a variable of
the environment that it reads when it is imported, so `keep_private` is called before anything else is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

# Without the first, the import of onnxruntime 1.32 makes a device id in ~/.cache/Microsoft and queues events beside it.
# Source of the others: huggingface_hub/constants.py; more tools know the second (https://donottrack.sh).
NO_TELEMETRY: Final[Mapping[str, str]] = {
    "ORT_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1"}  # nothing but `coe pull` has business with the hub

_SECRET: Final = re.compile(
    r"TOKEN(?!IZERS)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|WEBHOOK|(^|_)AUTH(_|$|ORIZATION)"
    r"|(^|_)(KEYS?|PAT|COOKIE|DSN|JWT|BEARER|SK)$|_PWD$",
    re.IGNORECASE,
)
# What is a token by its form, whatever it is called: of model hubs, GitHub, GitLab, Slack, AWS, and signed ones (JWT).
_TOKEN_VALUE: Final = re.compile(
    r"^(Bearer +\S|(sk-|hf_|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|AKIA|eyJ)[\w.-]{12,}$)", re.IGNORECASE
)
_WITH_PASSWORD: Final = re.compile(r"\w+://[^/\s@]*:[^/\s@]*@")  # a URL that carries one, such as a proxy's
_URL_USER: Final = re.compile(r"(\w+://)[^/\s@]+@")
_URL_QUERY: Final = re.compile(r"(\w+://[^\s?]+)\?[^\s'\")]+")
_TOKENS: Final = re.compile(r"(?<=[Bb]earer )\S+|\bhf_[A-Za-z0-9]{8,}")


def keep_private() -> None:
    """Tell libraries not to report to their makers: in this process, and in all that it starts."""
    os.environ.update(NO_TELEMETRY)


def make_files_private() -> int:
    """From now on, files that this process makes are the user's alone. Gives the former umask."""
    return os.umask(0o077)


def child_environment(base: Mapping[str, str]) -> dict[str, str]:
    """What a child process gets of an environment: neither keys, tokens and passwords, which it has no use for, nor
    leave to report to anybody. A worker reads files of strangers."""
    kept = {name: value for name, value in base.items() if not _is_secret(name, value)}
    return {**kept, **NO_TELEMETRY, **_OFFLINE}


def without_secrets(text: str) -> str:
    """A text without what opens something: passwords and signatures in URLs, bearer tokens, tokens of the hub."""
    return _TOKENS.sub("***", _URL_QUERY.sub(r"\1?***", _URL_USER.sub(r"\1", text)))


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRET.search(name) or _WITH_PASSWORD.search(value) or _TOKEN_VALUE.search(value))
