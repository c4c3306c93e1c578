"""Frames of streams: server-sent events with a JSON object, named or not, and lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def line_frame(message: Mapping[str, Any]) -> bytes:
    """A line of newline-delimited JSON."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def data_frame(message: Mapping[str, Any], *, event: str | None = None) -> bytes:
    """A server-sent event. event: its name, where the dialect gives its events names."""
    named = b"event: " + event.encode() + b"\n" if event is not None else b""
    return named + b"data: " + json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
