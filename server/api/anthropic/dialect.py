"""Anthropic's dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...runtime.errors import Failure
from ..dialect import Call, Described, StreamFormat
from .described import MESSAGES_DESCRIBED
from .replies import PING, MessageEnvelope, error_body, error_frame
from .requests import parse_messages

VERSION_HEADER: Final = b"anthropic-version"  # Anthropic's clients send it with every request
_EVENTS: Final = StreamFormat("text/event-stream", PING)


class MessagesDialect:
    """See Dialect."""

    @property
    def stream_format(self) -> StreamFormat:
        """See Dialect."""
        return _EVENTS

    @property
    def described(self) -> Described:
        """See Dialect."""
        return MESSAGES_DESCRIBED

    def parse(self, body: Mapping[str, Any]) -> Call:
        """See Dialect."""
        return Call(parse_messages(body), MessageEnvelope)

    def error_body(self, failure: Failure) -> dict[str, Any]:
        """See Dialect."""
        return error_body(failure)

    def error_frame(self, failure: Failure) -> bytes:
        """See Dialect."""
        return error_frame(failure)


MESSAGES: Final = MessagesDialect()
