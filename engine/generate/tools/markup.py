"""What calls in XML are written with, which differs between families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .source import spelling


@dataclass(frozen=True)
class Markup:
    """What calls are written with.

    opening, closing: around a call; of a grouped form around all of them.
    head, head_end:   around its name.
    key, key_end:     around an argument's name; what is in several parts may have white space between them.
    value_end:        behind its value.
    end:              behind the last argument.
    line:             what stands between a value and the tags around it.
    lines_are_free:   whether a line may end behind a tag; else it does.
    """

    opening: str
    closing: str
    head: str
    head_end: str
    key: str
    key_end: tuple[str, ...]
    value_end: str
    end: str
    line: str = ""
    lines_are_free: bool = False
    grouped: bool = False

    def spelt(self, spelt: Mapping[str, str]) -> Markup:
        """The same as it comes. spelt: how each tag of the family does."""
        texts = {part.name: getattr(self, part.name) for part in fields(self)}
        found: dict[str, Any] = {}
        for name, text in texts.items():
            found[name] = spelling(text, spelt) if isinstance(text, str) else text
        return Markup(**{**found, "key_end": tuple(spelling(part, spelt) for part in self.key_end)})
