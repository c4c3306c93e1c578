"""The text of a content that may come in parts. Dialects differ in what they call a part of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...runtime.errors import RequestError

_MAX_PARTS: Final = 1000  # of one message
_IMAGES: Final = ("image_url", "image", "input_image")
# What OpenAI's two APIs call a part of text, with the field that holds it.
OPENAI_PARTS: Final[Mapping[str, str]] = {"text": "text", "refusal": "refusal"}


def text_of(content: Any, param: str, *, optional: bool, parts: Mapping[str, str] = OPENAI_PARTS) -> str:
    """The text of a content, its parts joined by line breaks.

    optional: nothing is as good as an empty text. parts: types of parts that are text -> the field that holds it.
    Raises RequestError for what is no text.
    """
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, list):
        raise RequestError(f"{param} must be a text or a list of parts.", param=param)
    if len(content) > _MAX_PARTS:
        raise RequestError(f"{param}: give at most {_MAX_PARTS:,} parts, not {len(content):,}.", param=param)
    return "\n".join(_part(part, f"{param}[{index}]", parts) for index, part in enumerate(content))


def _part(part: Any, param: str, parts: Mapping[str, str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _IMAGES:
        raise RequestError(f"{param} is an image: vision is out of scope, the specialists read text only.", param=param)
    field = parts.get(kind) if isinstance(kind, str) else None
    text = part.get(field) if field is not None else None
    if not isinstance(text, str):
        known = next(iter(parts))
        raise RequestError(
            f"{param} must be {{type: {known}, {parts[known]}: ...}}; other parts are not supported.", param=param
        )
    return text
