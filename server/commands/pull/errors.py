"""Why a model cannot be fetched, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from coe.engine.files import FULL_DISK
from coe.engine.private import without_secrets
from coe.engine.units import size_text

KEPT: Final = "What was fetched is kept, and the same command goes on with it."  # after a Ctrl-C


class PullError(Exception):
    """A model cannot be fetched; `remedy` says what a person can do about it."""

    def __init__(self, message: str, remedy: str) -> None:
        # They quote addresses, and what libraries said: mirrors have passwords in theirs, storage signs its own.
        self.message = without_secrets(message)
        self.remedy = without_secrets(remedy)
        super().__init__(f"{self.message} {self.remedy}")


class StoppedError(PullError):
    """A person, or another failure, ended it before it was done."""


class HubUnreachableError(PullError):
    """The hub cannot be reached, and will not be for the next question either."""


def gated(endpoint: str, repo: str) -> PullError:
    """The hub refuses a repository to this token."""
    return PullError(
        f"The hub does not let you download {repo}: it is gated, or the token may not read it.",
        f"Accept its licence at {endpoint}/{repo}, then give a token of that account (--token or HF_TOKEN).",
    )


_MODELS_DIR: Final = "choose another `models_dir` in the roster"
_AGAIN: Final = "pull again"


def no_network(endpoint: str, error: Exception, again: str = _AGAIN) -> HubUnreachableError:
    """The hub cannot be reached. again: what goes on where it stopped."""
    return HubUnreachableError(
        f"The hub at {endpoint} cannot be reached: {error or type(error).__name__}.",
        f"See to the network, a proxy (HTTPS_PROXY) or HF_ENDPOINT, and {again}: it goes on where it stopped.",
    )


def no_room(
    needed_bytes: int, free_bytes: int, folder: Path, elsewhere: str = _MODELS_DIR, again: str = _AGAIN
) -> PullError:
    """The disk of a folder has too little room. elsewhere: how another folder is chosen."""
    return PullError(
        f"The disk of {folder} has no room: {size_text(needed_bytes)} ({needed_bytes} bytes) are needed, "
        f"{size_text(free_bytes)} ({free_bytes} bytes) are free.",
        f"Make room, or {elsewhere}, and {again}: it goes on where it stopped.",
    )


def disk_error(
    error: OSError,
    path: Path,
    needed_bytes: int,
    free_bytes: int,
    elsewhere: str = _MODELS_DIR,
    again: str = _AGAIN,
) -> PullError:
    """A file cannot be written, for lack of room or for another reason."""
    if error.errno in FULL_DISK:
        return no_room(needed_bytes, free_bytes, path.parent, elsewhere, again)
    return PullError(
        f"{path} cannot be written: {error.strerror or error}.",
        f"See to the permissions of the folder, or {elsewhere}.",
    )
