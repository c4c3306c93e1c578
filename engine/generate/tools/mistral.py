"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}, "id": ...}, ...], of newer ones [TOOL_CALLS]NAME[ARGS]{...}.

Both are read wherever one of them is expected. Ids of calls are nine letters and digits; the templates refuse others.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...request import Tool
from . import json_call
from .family import Family, Message
from .rules import SPACE, CallRules
from .source import MalformedCallError, Parser, Source

_OPENING: Final = "[TOOL_CALLS]"
_ARGUMENTS: Final = "[ARGS]"
_ID: Final = "[CALL_ID]"
_ID_CHARS: Final = 9
_GOOD_ID: Final = re.compile(rf"[a-zA-Z0-9]{{{_ID_CHARS}}}")
_ALPHABET: Final = string.digits + string.ascii_letters
_MAX_NAME_CHARS: Final = 256


class Mistral(Family):
    """See Family. The newer form: a tag before each call's name, and one before its arguments."""

    name = "mistral"
    openings = (_OPENING,)
    tags = (_OPENING, _ARGUMENTS, _ID)

    def writes(self, template: str) -> bool:
        """See Family."""
        return _OPENING in template and _ARGUMENTS in template

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        yield from source.skip_space()
        ids, arguments = source.spelt[_ID], source.spelt[_ARGUMENTS]
        if (yield from source.begins("[")) and not (yield from source.begins(arguments)):
            yield from json_call.read_list(source)
            return
        source.call((yield from _until(source, (ids, arguments, "{"))).strip())
        if (yield from source.passes(ids)):
            yield from _until(source, (arguments, "{"))
        yield from source.passes(arguments)
        yield from source.skip_space()
        yield from json_call.arguments(source, source.write)
        source.close()

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        tag = f"({rules.tag(_ID)} /[a-zA-Z0-9]{{{_ID_CHARS}}}/)? {rules.tag(_ARGUMENTS)}"
        return " | ".join(f"{rules.text(tool.name)} {tag} {rules.json(tool)}" for tool in tools)

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """See Family. Whatever ids a client has, call and result get the same one that the templates take."""
        return super().messages([_with_short_ids(message) for message in messages], tools)


class MistralList(Mistral):
    """See Family. The older form: all calls in one array."""

    name = "mistral-list"

    def writes(self, template: str) -> bool:
        """See Family."""
        return _OPENING in template and _ARGUMENTS not in template

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        end = f'(", \\"id\\": \\"" /[a-zA-Z0-9]{{{_ID_CHARS}}}/ "\\"" {SPACE})?'
        return json_call.list_rule(rules, tools, "name", "arguments", end=end)


def _until(source: Source, stops: Sequence[str]) -> Parser[str]:
    """What is there before the first of some marks."""
    found = ""
    while True:
        for stop in stops:
            if (yield from source.begins(stop)):
                return found
        found += yield from source.take()
        if len(found) > _MAX_NAME_CHARS:
            raise MalformedCallError("its arguments are missing")


def _with_short_ids(message: Message) -> Message:
    found = dict(message)
    if calls := found.get("tool_calls"):
        found["tool_calls"] = [{**call, "id": short_id(str(call["id"]))} for call in calls]
    if found.get("tool_call_id") is not None:
        found["tool_call_id"] = short_id(str(found["tool_call_id"]))
    return found


def short_id(client_id: str) -> str:
    """A client's id of a call as nine letters and digits, the same each time."""
    if _GOOD_ID.fullmatch(client_id):
        return client_id
    number = int.from_bytes(hashlib.sha256(client_id.encode("utf-8", "replace")).digest())
    return "".join(_ALPHABET[number // len(_ALPHABET) ** at % len(_ALPHABET)] for at in range(_ID_CHARS))
