"""From what went wrong to what a client is told: a status, a type and a code. Dialects write the body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coe.engine import errors as engine


class RequestError(Exception):
    """A request that cannot be served as it is. param: the field that is at fault."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code


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
        super().__init__(message, param="model")
        self.headers = {"x-coe-build": build, **({"retry-after": "30"} if retry else {})}


class UnknownPathError(RequestError):
    """Nothing is served at this path, or not with this method."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, code="unknown_url" if status == 404 else "method_not_allowed")
        self.status = status


class NoKeyError(RequestError):
    """The request carries no key, or an unknown one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


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


class ClientGoneError(Exception):
    """The client closed the connection."""


@dataclass(frozen=True)
class Failure:
    """An error as clients are told of it. type, code: OpenAI's words, which other dialects translate."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


# The most specific class first. Source of the codes: OpenAI's API reference, where it has one.
_ENGINE_FAILURES: tuple[tuple[type[engine.EngineError], int, str, str | None], ...] = (
    (engine.PromptTooLongError, 400, "context_length_exceeded", "messages"),
    (engine.TemplateError, 400, "template_refused", "messages"),
    (engine.GrammarError, 400, "invalid_schema", "response_format"),
    (engine.SchemaViolationError, 500, "schema_violated", "response_format"),
    (engine.QueueFullError, 429, "queue_full", None),
    (engine.WaitTimeoutError, 503, "wait_timeout", None),
    (engine.UnavailableError, 503, "specialist_unavailable", "model"),
    (engine.WorkerDiedError, 503, "worker_died", None),
    (engine.LoadError, 503, "load_failed", "model"),
    (engine.ModelFileError, 503, "load_failed", "model"),
    (engine.ThinkingPolicyError, 503, "thinking_policy", "model"),
    (engine.SourceChangedError, 503, "model_file_changed", "model"),
    (engine.SharingError, 503, "load_failed", "model"),
    (engine.LayoutError, 503, "load_failed", "model"),
    (engine.SwapError, 503, "worker_died", None),
    (engine.ChildError, 503, "child_failed", None),
)


def failure_of(error: BaseException) -> Failure:
    """What a client is told of an error. What we did not foresee is a 500 that gives nothing away."""
    if isinstance(error, RequestError):
        return Failure(error.status, error.message, error.type, error.code, error.param, error.headers)
    for kind, status, code, param in _ENGINE_FAILURES:
        if isinstance(error, kind):
            family = {400: "invalid_request_error", 429: "rate_limit_error"}.get(status, "server_error")
            retry = {"retry-after": "5"} if status in (429, 503) and code != "specialist_unavailable" else {}
            return Failure(status, str(error), family, code, param, retry)
    if isinstance(error, engine.EngineError):
        return Failure(500, str(error), "server_error", "engine_error")
    return Failure(500, "The server failed on this request; its log says why.", "server_error", "internal_error")
