"""A conversation in the making, as the runtime has it: calls with ids, results with the calls that they belong to.

Dialects read their own messages and tell a History of them. What a model did wrong earlier does not end its
conversation: a call whose arguments are no JSON keeps their text, and a result without a call gets a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...runtime.errors import RequestError
from ...runtime.request import Message
from ..json_body import MAX_VALUES, parse_json

MAX_CALLS: Final = 1000  # of one message
# A line that Claude Code writes in front of its instructions, directly or through a proxy that speaks another dialect.
# It tells nothing to a model and changes from turn to turn: no prefix of a conversation would be found in the cache.
_BILLING: Final = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n*")
# The result of a call that the conversation does not have: its template still wants a name.
_UNKNOWN: Final = "unknown"
_MOST_NAMED: Final = 20  # calls in an error


@dataclass(frozen=True)
class _Waiting:
    id: str
    name: str


@dataclass
class History:
    """Messages so far. param, a_result: what the client calls the list of them, and a call's result, for errors.

    waiting: calls without a result so far. values: in the arguments of calls.
    """

    param: str
    a_result: str = "a message of the tool with its tool_call_id"
    messages: list[Message] = field(default_factory=list)
    n_calls: int = 0
    names: dict[str, str] = field(default_factory=dict)
    waiting: list[_Waiting] = field(default_factory=list)
    values: int = 0

    def say(self, role: str, content: str) -> None:
        """A message of the system or the user."""
        if role == "system" and _BILLING.match(content) is not None:
            content = _BILLING.sub("", content)
            if not content:
                return
        self.messages.append({"role": role, "content": content})

    def answer(self, content: str, calls: Sequence[Mapping[str, Any]] = (), reasoning: str = "") -> None:
        """An answer. calls: as `call` makes them. reasoning: what was thought before it."""
        message: Message = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = list(calls)
            self.waiting = [_Waiting(call["id"], call["name"]) for call in calls]
        if reasoning:
            message["reasoning"] = reasoning
        self.messages.append(message)

    def call(self, id_: Any, name: str, arguments: Any) -> dict[str, Any]:
        """A call as the runtime has it. Without an id it gets one that is the same at each turn, or the conversation
        would not be found in the cache.

        Raises RequestError where all calls together have too many values.
        """
        id_ = _id(id_) or f"call_{self.n_calls}"
        self.n_calls += 1
        self.names[id_] = name
        return {"id": id_, "name": name, "arguments": self._arguments(arguments)}

    def result(self, id_: Any, name: Any, content: str) -> None:
        """A result, which belongs to the call of its id, else of its name, else to the next that waits for one."""
        id_ = _id(id_)
        call = next((each for each in self.waiting if each.id == id_), None) if id_ is not None else None
        if call is None and id_ not in self.names:
            named = [each for each in self.waiting if each.name == name]
            call = next(iter(named or self.waiting), None)
        if call is not None:
            self.waiting.remove(call)
            id_ = call.id
        known = self.names.get(id_ or "")
        self.messages.append(
            {
                "role": "tool",
                "tool_call_id": id_ or f"call_{self.n_calls}",
                "name": known or (name if isinstance(name, str) and name else _UNKNOWN),
                "content": content,
            }
        )

    def read(self) -> tuple[Message, ...]:
        """The conversation. Thinking counts between the calls of a turn, and is forgotten with it. Results come in the
        order of their calls: most templates write no ids, and a model knows them by their places.

        Raises RequestError where it ends in calls: there is nothing that a model could go on with but their results.
        """
        if self.messages and (calls := self.messages[-1].get("tool_calls")):
            listed = ", ".join(f"{call['name'][:80]} ({call['id'][:80]})" for call in calls[:_MOST_NAMED])
            raise RequestError(
                f"{self.param}: the last one calls tools, and their results are missing. Send {self.a_result} "
                f"for each of {listed}{', ...' if len(calls) > _MOST_NAMED else ''}.",
                param=self.param,
            )
        self.messages = _in_order(self.messages)
        last_user = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=-1)
        for index, message in enumerate(self.messages):
            if "reasoning" in message and (index < last_user or "tool_calls" not in message):
                del message["reasoning"]
        return tuple(self.messages)

    def _arguments(self, written: Any) -> dict[str, Any]:
        """An object: JSON in a text, as OpenAI has it, or the object itself, or nothing. Else the text is kept."""
        if isinstance(written, str):
            text = written.strip()
            if text.startswith('"'):  # written out twice
                text = _unquoted(text).strip()
            value = {} if text in ("", "null") else self._object(text)
            return {"arguments": written} if value is None else value
        if isinstance(written, Mapping):
            return dict(written)
        return {} if written is None else {"arguments": written}

    def _object(self, text: str) -> dict[str, Any] | None:
        try:
            value = parse_json(text.encode())
        except RequestError:
            return None
        self.values += _n_values(value)
        if self.values > MAX_VALUES:  # as many as the body itself may have
            raise RequestError(
                f"The arguments of the calls in {self.param} have more than {MAX_VALUES:,} values. Send fewer.",
                param=self.param,
            )
        return value


def _in_order(messages: Sequence[Message]) -> list[Message]:
    """The results of each answer's calls in the order of the calls, an empty one for each that is missing between."""
    found: list[Message] = []
    places: dict[str, int] = {}  # of the calls of the last answer
    results: list[Message] = []

    def settle() -> None:
        given = {result["tool_call_id"] for result in results}
        last = max((place for id_, place in places.items() if id_ in given), default=0)
        results.extend(_empty(call) for call in calls[:last] if call["id"] not in given)
        found.extend(sorted(results, key=lambda result: places.get(result["tool_call_id"], len(places))))
        results.clear()

    calls: Sequence[Mapping[str, Any]] = ()
    for message in messages:
        if message["role"] == "tool":
            results.append(message)
            continue
        settle()
        found.append(message)
        calls = message.get("tool_calls", ())
        places = {call["id"]: place for place, call in reversed(list(enumerate(calls)))}
    settle()
    return found


def _empty(call: Mapping[str, Any]) -> Message:
    return {"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": ""}


def _id(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None


def _n_values(value: Any) -> int:
    count, todo = 0, [value]
    while todo:
        members = todo.pop()
        count += len(members)
        todo += [
            one for one in (members.values() if isinstance(members, dict) else members) if isinstance(one, dict | list)
        ]
    return count


def _unquoted(text: str) -> str:
    try:
        value = json.loads(text)
        value.encode()
    except (ValueError, AttributeError):
        return text
    return str(value)
