"""What can go wrong in the engine, one sentence a class. Status codes are the HTTP layer's business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .cards import HOST
from .process import ending
from .shortage import CardUser, Shortage
from .text import printable
from .units import size_text

# By these words, to the letter, litellm and others tell that a prompt was too long: OpenAI's, and Google's. Source:
# litellm 1.108.7, litellm_core_utils/exception_mapping_utils.py.
_LONGEST: Final = "This model's maximum context length is"
_TOO_MANY: Final = "exceeds the maximum number of tokens allowed"


class EngineError(Exception):
    """Something in the engine went wrong; `remedy` says what a person can do about it.

    Both are one printable line, whatever the file or the client has in the texts that they name.
    """

    def __init__(self, message: str, remedy: str = "", lines: Sequence[str] = ()) -> None:
        """lines: what is to be listed below it, one item a line."""
        message, remedy = printable(message), printable(remedy)
        super().__init__("\n".join([f"{message} {remedy}".strip(), *map(printable, lines)]))
        self.message = message
        self.remedy = remedy


class ModelFileError(EngineError):
    """A model file cannot be read, or llama.cpp does not know what is in it."""


class NoRoomToTryError(EngineError):
    """A GPU had no room for a dry run, which takes some of it: it says nothing of the file.

    free_bytes: what was free of it then, None where it does not say.
    """

    def __init__(self, title: str, free_bytes: int | None, words: str = "") -> None:
        """title: what was tried: "dry run of a.gguf". words: how the GPU refused it, "" where it did not say."""
        free = f"; {size_text(free_bytes)} of its memory were free" if free_bytes is not None else ""
        super().__init__(
            f"The GPU has no room for a {title}{free}{f': {words}' if words else ''}.",
            "Free memory of the GPU, or ask again when it has some: the file may be sound.",
        )
        self.free_bytes = free_bytes


class LoadError(EngineError):
    """A model that can be read did not load."""


class OutOfMemoryError(LoadError):
    """A card, or the host, had too little memory for a model or its work. shortage: what is known of that.

    `lines` name who else holds the card's memory, for the log alone.
    """

    def __init__(self, message: str, remedy: str = "", lines: Sequence[str] = ()) -> None:
        super().__init__(message, remedy, lines)
        self.shortage = Shortage()

    @classmethod
    def of(cls, title: str, shortage: Shortage, users: Sequence[CardUser] = ()) -> OutOfMemoryError:
        """title: of what was to be loaded, or computed. users: who else holds the card's memory."""
        remedy = "Free memory of it, lower context_tokens, or keep experts in host memory (cpu_expert_layers)."
        if shortage.place == HOST:
            remedy = "Free host memory, lower context_tokens or parallel, or lower pool.host_budget."
        error = cls(f"{title}: {shortage}.", remedy, [f"Beside it, {user}." for user in users])
        error.shortage = shortage
        return error


class WorkerDiedError(EngineError):
    """A worker process ended while it was needed. cause: see Loss. shortage: of what memory it died for want, if it
    did."""

    cause = "unknown"
    shortage: Shortage | None = None


class WorkerHungError(WorkerDiedError):
    """A worker process gave no sign of life, or made no progress, for too long; it was killed."""


class SlowReaderError(EngineError):
    """More of an answer waited for its reader than is kept; the rest was not generated.

    limit_bytes: what is kept of one answer, or of all answers together where of_all.
    """

    def __init__(self, limit_bytes: int, *, of_all: bool = False) -> None:
        what = "of all answers together" if of_all else "of it"
        super().__init__(
            f"The answer was ended: more than {limit_bytes // 1024:,} KB {what} waited to be read.",
            "Read the stream as it comes, or ask for fewer tokens with max_tokens.",
        )
        self.limit_bytes = limit_bytes


class ShuttingDownError(EngineError):
    """The server ends, and its answers with it."""

    def __init__(
        self, message: str = "The server is shutting down.", remedy: str = "Send the request again when it is back."
    ) -> None:
        super().__init__(message, remedy)


class ChildError(EngineError):
    """A child process gave no answer; `how` it failed is a phrase that goes with its title."""

    def __init__(self, title: str, how: str, words: str = "") -> None:
        super().__init__(f"{title} {how}{f': {words}' if words else '.'}", "Run coe doctor.")
        self.how = how
        self.words = words


class FullDiskError(EngineError):
    """A child process could not write a file for want of room. errno, strerror: as of an OSError."""

    def __init__(self, errno: int, strerror: str) -> None:
        super().__init__(f"A file could not be written: {strerror}.", "Make room, and try again.")
        self.errno = errno
        self.strerror = strerror


class ChildDiedError(ChildError):
    """A child process ended without an answer.

    code:  its exit code, or the negative number of the signal that ended it.
    words: the most telling line of what it printed last, "" for none.
    """

    def __init__(self, title: str, code: int, words: str) -> None:
        how = f"was ended by {ending(code)}" if code < 0 else f"failed ({ending(code)})"
        super().__init__(title, how, words or "it printed nothing")
        self.code = code


class ChildTimeoutError(ChildError):
    """A child process took longer than it may, or gave no sign of progress for too long; it was killed."""


class LayoutError(EngineError):
    """This build of llama.cpp keeps its tensors in another way than this program knows."""


class SharingError(EngineError):
    """A specialist cannot share a resident, or a resident cannot be overwritten in place."""


class SourceChangedError(EngineError):
    """A file that a specialist's weights come from is not the one that was read before; nothing was overwritten."""


class SwapError(EngineError):
    """Overwriting a resident's weights failed half-way: it is neither specialist and must not be used again."""


class PromptTooLongError(EngineError):
    """A prompt leaves no room for an answer in the context, or is longer than the roster takes.

    limit_tokens: what the context holds, or the roster's max_prompt_tokens where by_roster.
    at_least: prompt_tokens is a lower bound; the prompt was too long to be worth counting.
    """

    def __init__(
        self, prompt_tokens: int, limit_tokens: int, *, by_roster: bool = False, at_least: bool = False
    ) -> None:
        count = f"{'at least ' if at_least else ''}{prompt_tokens} tokens"
        if by_roster:
            said = f"The prompt {_TOO_MANY}: it has {count}, the roster takes {limit_tokens}"
            key = "server.max_prompt_tokens"
        else:
            said = f"{_LONGEST} {limit_tokens} tokens, the answer included; the prompt has {count}"
            key = "context_tokens"
        super().__init__(f"{said}.", f"Shorten the conversation, or raise {key} in the roster.")
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens
        self.by_roster = by_roster
        self.at_least = at_least


class UnknownTokenError(EngineError):
    """A prompt has a token id that the vocabulary does not know."""


class InfillError(EngineError):
    """A model cannot fill in the middle: its vocabulary has no tokens for it."""


class InputError(EngineError):
    """A text cannot be embedded. index: of the texts that came with it."""

    index: int


class EmptyInputError(InputError):
    """A text to be embedded has no tokens: there is nothing in it that the model's vocabulary knows."""

    def __init__(self, index: int) -> None:
        super().__init__("The text has nothing in it that the model reads.", "Leave it out.")
        self.index = index


class InputTooLongError(InputError):
    """A text to be embedded has more tokens than the model reads. at_least: tokens is a lower bound."""

    def __init__(self, index: int, tokens: int, limit_tokens: int, *, at_least: bool = False) -> None:
        count = f"{'at least ' if at_least else ''}{tokens} tokens"
        super().__init__(
            f"{_LONGEST} {limit_tokens} tokens; the text has {count}.",
            "Split it, or let it be cut with truncate: true.",
        )
        self.index = index
        self.tokens = tokens
        self.limit_tokens = limit_tokens
        self.at_least = at_least


class TemplateError(EngineError):
    """A chat template refuses a conversation, or fails on it."""


class ModelTemplateError(EngineError):
    """A model cannot answer chats: its chat template is missing, broken, or costs more than a rendering may."""


class ThinkingPolicyError(EngineError):
    """A thinking policy cannot be carried out with this model's chat template."""


class GrammarError(EngineError):
    """A JSON schema cannot be followed, or costs more than one request may spend."""


class SchemaViolationError(EngineError):
    """A finished answer breaks the JSON schema that it was drawn by, and asking again did not help."""


class PoolError(EngineError):
    """The pool cannot grant a lease."""


class QueueFullError(PoolError):
    """Too many requests wait already."""


class WaitTimeoutError(PoolError):
    """A request waited as long as it may."""


class UnavailableError(PoolError):
    """The specialist cannot be served on this machine as the roster stands."""
