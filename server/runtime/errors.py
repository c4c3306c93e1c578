"""From what went wrong to what a client is told: a status, a type and a code. Dialects write the body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from coe.engine import errors as engine


class Part(StrEnum):
    """What of a request is at fault, where only a dialect knows the field's name."""

    INPUT = "input"  # the conversation, or the text to be continued
    FORMAT = "format"  # what the answer has to keep to
    TOOLS = "tools"
    TOOL_CHOICE = "tool choice"  # which of them must be called
    MODEL = "model"
    SUFFIX = "suffix"  # what follows an answer that fills the middle


class RequestError(Exception):
    """A request that cannot be served as it is. param: the field that is at fault."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, param: str | Part | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code


class RuleError(RequestError):
    """A request that a specialist's rules refuse; another specialist may take it.

    why: the field, and what the specialist does with it, as one phrase for logs and headers.
    """

    def __init__(self, field: str, specialist: str, does: str, remedy: str = "", *, param: Part | None = None) -> None:
        """does: what the specialist does, in words that follow its name. remedy: a sentence, beside asking another."""
        other = f" Or: {remedy}" if remedy else ""
        super().__init__(f"{field}: {specialist} {does}. Ask another specialist.{other}", param=param or field)
        self.why = f"{field}: {does}"
        self._of_all = f"{field}: no specialist of the roster serves this: {specialist} {does}. {remedy}".rstrip()

    def of_all(self) -> RequestError:
        """The error where no other specialist takes the request either."""
        return RequestError(self._of_all, param=self.param)


class UnknownModelError(RequestError):
    """No specialist or alias has this name."""

    status = 404
    code = "model_not_found"


class BuildingError(RequestError):
    """The specialist is being built, or could not be, and no other answers in its place."""

    status = 503
    type = "server_error"
    code = "specialist_building"

    def __init__(self, message: str, build: str, *, retry: bool) -> None:
        super().__init__(message, param=Part.MODEL)
        self.headers = {"x-coe-build": build, **({"retry-after": "30"} if retry else {})}


class UnknownPathError(RequestError):
    """Nothing is served at this path, or not with this method. headers: such as Allow."""

    def __init__(self, message: str, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, code={404: "unknown_url", 405: "method_not_allowed"}.get(status))
        self.status = status
        self.headers = headers or {}


class NoKeyError(RequestError):
    """The request carries no key, or an unknown one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    headers: Mapping[str, str] = {"www-authenticate": 'Bearer realm="College of Experts"'}


class NotAdminError(RequestError):
    """The key may chat, and the request administers the server."""

    status = 403
    type = "permission_error"
    code = "admin_key_needed"


class ForeignHostError(RequestError):
    """The request calls the server by a name that it does not answer to."""

    status = 421
    code = "host_not_allowed"


class ForeignOriginError(RequestError):
    """A web page asks that may not."""

    status = 403
    type = "permission_error"
    code = "origin_not_allowed"


class SimpleRequestError(RequestError):
    """A request that any web page could have sent: it is no JSON, and carries no header that says who asks."""

    status = 415
    code = "json_needed"


class BodyTooLargeError(RequestError):
    """The body is larger than the roster's server.max_body_bytes."""

    status = 413
    code = "request_too_large"


class BodyTimeoutError(RequestError):
    """The body did not come within the roster's server.body_timeout_s."""

    status = 408
    code = "request_timeout"


class UnsupportedBodyError(RequestError):
    """The body is encoded in a way that is not taken. headers: which are."""

    status = 415
    code = "unsupported_media_type"

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = headers or {}


class UploadsFullError(RequestError):
    """The bodies of all requests together are larger than the roster's server.max_uploads_bytes."""

    status = 503
    type = "server_error"
    code = "uploads_full"
    headers: Mapping[str, str] = {"retry-after": "5"}


class ClientGoneError(Exception):
    """The client closed the connection."""


@dataclass(frozen=True)
class Failure:
    """An error as clients are told of it. type, code: OpenAI's words, which other dialects translate.

    param: the field at fault as the client wrote it, or a Part, which each dialect names.
    tokens: of a prompt that is too long, and how many it may have; None of other errors.
    """

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | Part | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tokens: tuple[int, int] | None = None

    @property
    def unforeseen(self) -> bool:
        """Whether it may be a bug of ours, so that the log needs its stack. Other messages may quote the client."""
        return self.code in ("internal_error", "engine_error")

    def message_in(self, written: str) -> str:
        """The message, where a dialect calls the schema of an answer so: the engine knows OpenAI's word for it."""
        return self.message.replace("response_format.json_schema", written)

    def param_in(self, names: Mapping[Part, str]) -> str | None:
        """The field's name in a dialect that calls the parts so; None where nothing is named."""
        return names.get(self.param) if isinstance(self.param, Part) else self.param


# The most specific class first. Source of the codes: OpenAI's API reference, where it has one.
_ENGINE_FAILURES: tuple[tuple[type[engine.EngineError], int, str, Part | None], ...] = (
    (engine.PromptTooLongError, 400, "context_length_exceeded", Part.INPUT),
    (engine.UnknownTokenError, 400, "unknown_token", Part.INPUT),
    (engine.InfillError, 400, "infill_unsupported", Part.SUFFIX),
    (engine.InputTooLongError, 400, "context_length_exceeded", Part.INPUT),
    (engine.InputError, 400, "invalid_input", Part.INPUT),
    (engine.TemplateError, 400, "template_refused", Part.INPUT),
    (engine.ModelTemplateError, 503, "chat_template", Part.MODEL),
    (engine.GrammarError, 400, "invalid_schema", Part.FORMAT),
    # The model's fault; clients ask again by themselves after a 500, and it has been drawn twice.
    (engine.SchemaViolationError, 422, "schema_violated", Part.FORMAT),
    (engine.QueueFullError, 429, "queue_full", None),
    (engine.WaitTimeoutError, 503, "wait_timeout", None),
    (engine.UnavailableError, 503, "specialist_unavailable", Part.MODEL),
    (engine.WorkerDiedError, 503, "worker_died", None),
    (engine.ShuttingDownError, 503, "shutting_down", None),
    (engine.SlowReaderError, 503, "client_too_slow", None),
    (engine.NoRoomToTryError, 503, "load_failed", Part.MODEL),
    (engine.OutOfMemoryError, 503, "out_of_memory", Part.MODEL),
    (engine.LoadError, 503, "load_failed", Part.MODEL),
    (engine.ModelFileError, 503, "load_failed", Part.MODEL),
    (engine.ThinkingPolicyError, 503, "thinking_policy", Part.MODEL),
    (engine.SourceChangedError, 503, "model_file_changed", Part.MODEL),
    (engine.SharingError, 503, "load_failed", Part.MODEL),
    (engine.LayoutError, 503, "load_failed", Part.MODEL),
    (engine.SwapError, 503, "worker_died", None),
    (engine.ChildError, 503, "child_failed", None),
    (engine.FullDiskError, 503, "child_failed", None),
)

# Nothing that a client could wait for.
_LASTING: Final = ("specialist_unavailable", "chat_template")


def failure_of(error: BaseException) -> Failure:
    """What a client is told of an error. What we did not foresee is a 500 that gives nothing away."""
    if isinstance(error, RequestError):
        return Failure(error.status, error.message, error.type, error.code, error.param, error.headers)
    for kind, status, code, param in _ENGINE_FAILURES:
        if isinstance(error, kind):
            family = {400: "invalid_request_error", 429: "rate_limit_error"}.get(status, "server_error")
            retry = {"retry-after": "5"} if status in (429, 503) and code not in _LASTING else {}
            return Failure(status, str(error), family, code, param, retry, _tokens(error))
    if isinstance(error, engine.EngineError):
        return Failure(500, str(error), "server_error", "engine_error")
    return Failure(500, "The server failed on this request; its log says why.", "server_error", "internal_error")


def _tokens(error: BaseException) -> tuple[int, int] | None:
    if not isinstance(error, engine.PromptTooLongError):
        return None
    # The context has to hold a token of the answer, too.
    return error.prompt_tokens, error.limit_tokens - (0 if error.by_roster else 1)
