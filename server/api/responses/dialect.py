"""The Responses API as a dialect. Of one client, for what it has stored is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...runtime.answer import Answer
from ...runtime.errors import Failure
from ..common.frames import data_frame
from ..dialect import EVENT_STREAM, Call, Described, StreamFormat
from .described import DESCRIBED
from .replies import ResponsesEnvelope, error_body
from .requests import Parsed, parse_response
from .store import ResponseStore, Stored


@dataclass(frozen=True)
class ResponsesDialect:
    """owner: whose answers are found and kept in the store."""

    store: ResponseStore
    owner: bytes = b""

    @property
    def stream_format(self) -> StreamFormat:
        """See Dialect."""
        return EVENT_STREAM

    @property
    def described(self) -> Described:
        """See Dialect."""
        return DESCRIBED

    def parse(self, body: Mapping[str, Any]) -> Call:
        """See Dialect."""
        parsed = parse_response(body, partial(self.store.get, self.owner), partial(self.store.item, self.owner))
        return Call(parsed.request, partial(self._envelope, parsed))

    def _envelope(self, parsed: Parsed, answer: Answer) -> ResponsesEnvelope:
        def keep(response: Mapping[str, Any]) -> bool:
            return self.store.put(self.owner, Stored(response, parsed.items, parsed.items_size))

        return ResponsesEnvelope(answer, parsed=parsed, keep=keep)

    def error_body(self, failure: Failure) -> dict[str, Any]:
        """See Dialect."""
        return error_body(failure)

    def error_frame(self, failure: Failure) -> bytes:
        """See Dialect. The envelope's `failed` is what streams send: it knows which event is next."""
        return data_frame({"type": "error", **error_body(failure)["error"], "sequence_number": 0}, event="error")
