"""Rules of llguidance's Lark dialect for the calls of one request, for the families to put together.

Source of the dialect: llguidance, docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from ...errors import GrammarError
from ...request import Tool
from ..grammar import json_rule
from ..json_schema import SIMPLIFY, JsonSchema
from .loosening import looser

_T = TypeVar("_T")
_MOST_TRIES: Final = 200

# Between the parts of a call's own frame: free, but not endless.
SPACE: Final = "SPACE"
_SPACE_RULE: Final = rf"{SPACE}: /[ \t\r\n]{{0,20}}/"
_ANY_OBJECT: Final = JsonSchema.read({"type": "object"})


class CallRules:
    """Collects rules. tags: the token of each tag that is one of the vocabulary's own; the others are text.

    parallel: whether an answer may have several calls.
    gave_way: whether a keyword was left out that a notation cannot say.
    """

    def __init__(
        self, tags: Mapping[str, int], schemas: Mapping[str, JsonSchema | None], *, parallel: bool = True
    ) -> None:
        """schemas: of each tool's arguments; None where they are only held to be an object."""
        self.parallel = parallel
        self._tags = tags
        self._schemas = schemas
        self._lines: list[str] = [_SPACE_RULE]
        self._json: dict[str, str] = {}
        self._lexemes: dict[str, str] = {}
        self._reserved = 0
        self._tries = 0
        self.gave_way = False

    def tag(self, text: str) -> str:
        """A text with tags in it, as parts of a rule's body."""
        tags = sorted(self._tags, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, tags))})", text) if tags else [text]
        parts = [f"<[{self._tags[part]}]>" if part in self._tags else self.text(part) for part in pieces if part]
        return " ".join(parts)

    def is_token(self, tag: str) -> bool:
        """Whether a tag is a token of its own: then a text that spells it is a text."""
        return tag in self._tags

    @staticmethod
    def text(text: str) -> str:
        """A text, as one of the parts of a rule's body."""
        return json.dumps(text, ensure_ascii=False)

    def new(self, body: str) -> str:
        """A rule's name."""
        name = f"c{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def add(self, line: str) -> None:
        """A rule or a lexeme with a name of its own."""
        self._lines.append(line)

    def reserve(self) -> str:
        """A name for a rule that is added later: of one that holds itself."""
        self._reserved += 1
        return f"d{self._reserved}"

    def once(self, name: str, body: str) -> None:
        """A rule or a lexeme with a name of its own, unless it is there already."""
        line = f"{name}: {body}"
        if line not in self._lines:
            self._lines.append(line)

    def lexeme(self, body: str) -> str:
        """A lexeme's name."""
        if body not in self._lexemes:
            self._lexemes[body] = f"L{len(self._lexemes)}"
            self._lines.append(f"{self._lexemes[body]}: {body}")
        return self._lexemes[body]

    def as_far_as_it_goes(self, node: Mapping[str, Any], write: Callable[[Mapping[str, Any]], _T]) -> _T:
        """What `write` makes of a schema, or of what is left of it when keywords have given way.

        What it added before it raised GrammarError is taken back. Raises GrammarError when that was tried too often.
        """
        begin, lexemes = len(self._lines), dict(self._lexemes)
        for left in (node, *looser(node)):
            try:
                made = write(left)
            except GrammarError:
                del self._lines[begin:]
                self._lexemes = dict(lexemes)
                self._tries += 1
                if self._tries > _MOST_TRIES:
                    raise
            else:
                self.gave_way = self.gave_way or left is not node
                return made
        raise GrammarError("response_format.json_schema cannot be followed in this model's calls.", SIMPLIFY)

    def schema(self, tool: Tool) -> JsonSchema | None:
        """What the arguments of a tool are held to; None for any object."""
        return self._schemas[tool.name]

    def json(self, tool: Tool) -> str:
        """The name of the rule for a tool's arguments as JSON. Raises GrammarError when they cannot be held to it."""
        if tool.name not in self._json:
            self._json[tool.name] = self.json_of(self._schemas[tool.name] or _ANY_OBJECT, f"t{len(self._json)}")
        return self._json[tool.name]

    def json_of(self, schema: JsonSchema, prefix: str) -> str:
        """The name of the rule for JSON of another schema. Raises GrammarError as `json`."""
        start, lines = json_rule(schema, prefix)
        self._lines += [line for line in lines if line not in self._lines]
        return start

    def grammar(self, start: str) -> str:
        """The whole grammar; `start` is the body of its first rule."""
        return "\n".join([f"start: {start}", *self._lines])


def schema_of_arguments(tool: Tool) -> Any:
    """The JSON schema of a tool's arguments. Clients leave `type` or all of it out."""
    return {"type": "object", **tool.parameters}
