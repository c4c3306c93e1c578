"""The server's log on stderr, as text or JSON lines, each with its request's id; decisions only when asked for."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from coe.engine.logs import LLAMA_LOGGER, UNPRINTABLE, RequestIdFilter, one_line, traceback_of

_CHATTY: Final = ("httpx", "sentence_transformers", "urllib3", "huggingface_hub", "uvicorn.error")


class LogFormat(StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO    [req-1f2e3d4c5b6a7980] message`; the id only where a request is served.

    A message is one line whatever it quotes: a name or a text out of a file or a request cannot forge another. Lines of
    a traceback are indented, for the same reason.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(request)s%(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        request_id = getattr(record, "request_id", "")
        record.request = f"[{one_line(request_id)}] " if request_id else ""
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """See logging.Formatter."""
        return _indented(traceback_of(ei[1])) if ei[1] is not None else ""

    def formatStack(self, stack_info: str) -> str:
        """See logging.Formatter."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"  {one_line(line)}" for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message; request_id and exception where there is one."""

    def formatException(self, ei: Any) -> str:
        """See logging.Formatter."""
        return traceback_of(ei[1]) if ei[1] is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := getattr(record, "request_id", ""):
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # JSON itself leaves C1 and the separators of lines as they are.
        return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(line, ensure_ascii=False))


def set_up(verbosity: int, log_format: LogFormat) -> None:
    """Log to stderr. verbosity: 0 for events, 1 for every decision with its numbers, 2 for llama.cpp's lines too."""
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("coe").setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)
    logging.getLogger(LLAMA_LOGGER).setLevel(logging.DEBUG if verbosity >= 2 else logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
