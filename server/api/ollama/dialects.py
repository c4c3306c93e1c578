"""Ollama's two dialects: chats, and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ...runtime.errors import Failure
from ..common.frames import line_frame
from ..dialect import Call, Described, Errand, StreamFormat
from .described import CHAT_DESCRIBED, GENERATE_DESCRIBED
from .loading import errand
from .replies import ChatEnvelope, GenerateEnvelope, OllamaEnvelope, error_body
from .requests import Parsed, parse_chat, parse_generate

# A blank before the next line is no line of its own, which clients would fail to parse: JSON may begin with it.
LINES: Final = StreamFormat("application/x-ndjson", b" ")


@dataclass(frozen=True)
class OllamaDialect:
    """Bodies by `read`, answers in `envelope`; nothing: what stands in the place of text where none was wanted."""

    read: Callable[[Mapping[str, Any]], Parsed]
    envelope: type[OllamaEnvelope]
    nothing: Mapping[str, Any]
    described: Described

    @property
    def stream_format(self) -> StreamFormat:
        """See Dialect."""
        return LINES

    def parse(self, body: Mapping[str, Any]) -> Call | Errand:
        """See Dialect."""
        parsed = self.read(body)
        if parsed.instead is not None:
            return errand(parsed, self.nothing)
        return Call(parsed.request, partial(self.envelope, name=parsed.name))

    def error_body(self, failure: Failure) -> dict[str, str]:
        """See Dialect."""
        return error_body(failure)

    def error_frame(self, failure: Failure) -> bytes:
        """See Dialect."""
        return line_frame(error_body(failure))


CHAT: Final = OllamaDialect(parse_chat, ChatEnvelope, {"message": {"role": "assistant", "content": ""}}, CHAT_DESCRIBED)
GENERATE: Final = OllamaDialect(parse_generate, GenerateEnvelope, {"response": ""}, GENERATE_DESCRIBED)
