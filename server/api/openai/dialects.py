"""OpenAI's two dialects: chat completions, and plain completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ...runtime.errors import Failure, Part
from ..common.frames import data_frame
from ..dialect import EVENT_STREAM, Call, Described, StreamFormat
from .described import CHAT_DESCRIBED, COMPLETIONS_DESCRIBED
from .replies import (
    CHAT_NAMES,
    COMPLETION_NAMES,
    ChatEnvelope,
    CompletionEnvelope,
    OpenAIEnvelope,
    error_body,
)
from .requests import Parsed, parse_chat, parse_completion


@dataclass(frozen=True)
class OpenAIDialect:
    """Bodies by `read`, answers in `envelope`, fields by `names`; errors and streams are else the same in both."""

    read: Callable[[Mapping[str, Any]], Parsed]
    envelope: type[OpenAIEnvelope]
    names: Mapping[Part, str]
    described: Described

    @property
    def stream_format(self) -> StreamFormat:
        """See Dialect."""
        return EVENT_STREAM

    def parse(self, body: Mapping[str, Any]) -> Call:
        """See Dialect."""
        parsed = self.read(body)
        envelope = partial(
            self.envelope,
            include_usage=parsed.include_usage,
            legacy_calls=parsed.legacy_calls,
            prompts=1 + len(parsed.others),
        )
        return Call(parsed.request, envelope, parsed.others)

    def error_body(self, failure: Failure) -> dict[str, Any]:
        """See Dialect."""
        return error_body(failure, self.names)

    def error_frame(self, failure: Failure) -> bytes:
        """See Dialect."""
        return data_frame(error_body(failure, self.names))


CHAT: Final = OpenAIDialect(parse_chat, ChatEnvelope, CHAT_NAMES, CHAT_DESCRIBED)
COMPLETIONS: Final = OpenAIDialect(parse_completion, CompletionEnvelope, COMPLETION_NAMES, COMPLETIONS_DESCRIBED)
