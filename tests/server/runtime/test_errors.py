"""Errors as clients are told of them: the one error body, and its status."""

from __future__ import annotations

import json

import pytest

from coe.engine import errors as engine
from coe.server.api.openai.dialects import CHAT, COMPLETIONS
from coe.server.api.openai.replies import CHAT_NAMES, error_body
from coe.server.runtime.errors import (
    BuildingError,
    Failure,
    NoKeyError,
    Part,
    RequestError,
    UnknownModelError,
    failure_of,
)


def test_the_body_is_openais_envelope() -> None:
    failure = failure_of(RequestError("n: too many.", param="n"))
    assert failure.status == 400
    assert error_body(failure) == {
        "error": {"message": "n: too many.", "type": "invalid_request_error", "param": "n", "code": None}
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownModelError("?"), 404, "model_not_found"),
        (NoKeyError("?"), 401, "invalid_api_key"),
        (engine.PromptTooLongError(300, 256), 400, "context_length_exceeded"),
        (engine.TemplateError("?"), 400, "template_refused"),
        (engine.ModelTemplateError("?"), 503, "chat_template"),
        (engine.GrammarError("?"), 400, "invalid_schema"),
        (engine.QueueFullError("?"), 429, "queue_full"),
        (engine.WaitTimeoutError("?"), 503, "wait_timeout"),
        (engine.UnavailableError("?"), 503, "specialist_unavailable"),
        (engine.WorkerDiedError("?"), 503, "worker_died"),
        (engine.OutOfMemoryError("?"), 503, "out_of_memory"),
        (engine.LoadError("?"), 503, "load_failed"),
        (engine.ModelFileError("?"), 503, "load_failed"),
        (engine.ThinkingPolicyError("?"), 503, "thinking_policy"),
        (engine.SourceChangedError("?"), 503, "model_file_changed"),
        (engine.SharingError("?"), 503, "load_failed"),
        (engine.LayoutError("?"), 503, "load_failed"),
        (engine.SwapError("?"), 503, "worker_died"),
        (engine.ChildError("A dry run", "failed"), 503, "child_failed"),
        (engine.EngineError("?"), 500, "engine_error"),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int, code: str) -> None:
    failure = failure_of(error)
    assert (failure.status, failure.code) == (status, code)


def made(kind: type[engine.EngineError]) -> engine.EngineError:
    """An error of a class, with the facts that it wants."""
    facts: dict[type[engine.EngineError], tuple[object, ...]] = {
        engine.PromptTooLongError: (300, 256),
        engine.InputTooLongError: (0, 300, 256),
        engine.EmptyInputError: (0,),
        engine.ChildDiedError: ("A dry run", -9, "its last words"),
        engine.SlowReaderError: (64 * 1024,),
        engine.NoRoomToTryError: ("dry run of a.gguf", 300),
    }
    return kind(*facts.get(kind, ("what", "remedy")))


@pytest.mark.parametrize(
    ("error", "chat", "completions"),
    [
        (engine.PromptTooLongError(300, 256), "messages", "prompt"),
        (engine.TemplateError("?"), "messages", "prompt"),
        (engine.GrammarError("?"), "response_format", "response_format"),
        (engine.UnavailableError("?"), "model", "model"),
        (engine.LoadError("?"), "model", "model"),
        (engine.ModelFileError("?"), "model", "model"),
        (engine.ThinkingPolicyError("?"), "model", "model"),
        (engine.SourceChangedError("?"), "model", "model"),
        (engine.SharingError("?"), "model", "model"),
        (engine.LayoutError("?"), "model", "model"),
        (BuildingError("?", "?", retry=True), "model", "model"),
        (UnknownModelError("?", param=Part.MODEL), "model", "model"),
        (RequestError("?", param="n"), "n", "n"),
        (engine.QueueFullError("?"), None, None),
    ],
)
def test_the_field_is_named_as_the_endpoint_names_it(
    error: Exception, chat: str | None, completions: str | None
) -> None:
    failure = failure_of(error)
    for dialect, name in ((CHAT, chat), (COMPLETIONS, completions)):
        assert dialect.error_body(failure)["error"]["param"] == name
        frame = json.loads(dialect.error_frame(failure).removeprefix(b"data: "))
        assert frame["error"]["param"] == name


def test_a_part_of_a_request_is_never_written_by_our_name_for_it() -> None:
    """Whatever the table says, each dialect has a name for it or none: a new part cannot be forgotten."""
    assert set(CHAT_NAMES) == set(Part)
    for dialect in (CHAT, COMPLETIONS):
        for part in Part:
            body = dialect.error_body(Failure(400, "?", "?", param=part))
            assert body["error"]["param"] in (None, dialect.names.get(part))


def test_every_engine_error_is_foreseen() -> None:
    kinds = [kind for kind in vars(engine).values() if isinstance(kind, type) and issubclass(kind, engine.EngineError)]
    for kind in kinds:
        error = made(kind)
        general = kind in (engine.EngineError, engine.PoolError)
        assert (failure_of(error).code == "engine_error") is general, kind
        assert str(error) == failure_of(error).message


def test_what_may_be_better_in_a_moment_says_when_to_try_again() -> None:
    assert failure_of(engine.QueueFullError("?")).headers["retry-after"]
    assert failure_of(engine.WorkerDiedError("?")).headers["retry-after"]
    assert not failure_of(engine.UnavailableError("?")).headers
    assert not failure_of(engine.PromptTooLongError(300, 256)).headers


def test_the_message_of_an_engine_error_carries_its_remedy() -> None:
    assert failure_of(engine.LoadError("It broke.", "Mend it.")).message == "It broke. Mend it."


def test_what_nobody_foresaw_gives_nothing_away() -> None:
    failure = failure_of(KeyError("secret"))
    assert failure.status == 500
    assert "secret" not in str(error_body(failure))
