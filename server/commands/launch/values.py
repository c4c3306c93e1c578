"""What a client is told, and what it takes to tell it: plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

PROVIDER: Final = "coe"  # what we are called in the clients' files
TEMPORARY: Final = "tmp"  # a folder that is there in a client's own, for what it would leave in /tmp
NO_KEY: Final = "anything"  # where the server wants no key and a client insists on one
_MOST_OUTPUT_TOKENS: Final = 8192
_OUTPUT_SHARE: Final = 4  # of a context: what is left of it is the conversation


@dataclass(frozen=True)
class Model:
    """A model that a server offers. tools: whether it answers with calls of a client's tools."""

    name: str
    title: str
    context_tokens: int
    tools: bool

    @property
    def output_tokens(self) -> int:
        """The longest answer that a client should ask for, so that there is room for the conversation."""
        return max(1, min(_MOST_OUTPUT_TOKENS, self.context_tokens // _OUTPUT_SHARE))


@dataclass(frozen=True)
class Served:
    """A server, as a client is told of it.

    url:    without /v1. key: "" where it wants none.
    model:  what the client is to ask for; others: what it may offer beside it.
    embeds: whether it answers /v1/embeddings.
    """

    url: str
    key: str
    model: Model
    others: tuple[Model, ...] = ()
    embeds: bool = False

    @property
    def api(self) -> str:
        """The address of OpenAI's API."""
        return f"{self.url}/v1"

    @property
    def given_key(self) -> str:
        """A key for clients that insist on one."""
        return self.key or NO_KEY

    @property
    def models(self) -> tuple[Model, ...]:
        """All that the client may offer, the chosen one first."""
        return (self.model, *self.others)


@dataclass(frozen=True)
class Place:
    """Where a client runs. folder: its own, made for it, absolute; home: the user's; git_config: the user's settings
    of git, None where there are none; secret: random text, for what wants some."""

    folder: Path
    home: Path
    git_config: Path | None = None
    secret: str = ""


@dataclass(frozen=True)
class Settings:
    """How a client is started.

    argv:        the command, to which the user's own arguments are added.
    environment: beside the user's; None takes a variable away.
    files:       to be written first, by their absolute paths.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Edit:
    """A change of a file of the client's own. What is in the file and is not named here stays.

    values: merged into the file's: keys by name, entries of lists by their `id` or `name`; a text is the whole file.
    """

    path: Path
    form: Literal["json", "yaml", "text"]
    values: Mapping[str, Any] | str


@dataclass(frozen=True)
class Saving:
    """What `--save` leaves behind, and how the client is started from then on. kept: a folder that stays, for a client
    whose settings lie in no file."""

    edits: Sequence[Edit]
    settings: Settings
    kept: Path | None = None


@dataclass(frozen=True)
class Client:
    """One client.

    install:        how to get it, a command a line.
    settings:       for a folder that is gone afterwards.
    saving:         for its own files; environment: the user's, by which clients find these.
    prompt_tokens:  what its own instructions and tools take of a context, roughly; shorter: how to have it take less.
    needs_tools:    whether it is of little use with a model that calls none.
    outside_tmp:    whether its temporary folder must not lie where all programs have theirs.
    """

    name: str
    title: str
    command: str
    install: str
    settings: Callable[[Served, Place], Settings]
    saving: Callable[[Served, Place, Mapping[str, str]], Saving]
    prompt_tokens: int = 0
    shorter: str = ""
    needs_tools: bool = True
    outside_tmp: bool = False
