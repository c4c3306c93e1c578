"""For models whose chat template knows no tools: they are described in the system prompt, with calls as JSON in a tag.

The form is that of most open models, so that those which met it in training have it easy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from ...request import Tool
from .family import Message
from .hermes import Hermes

_MANUAL: Final = """\
# Tools

These functions can be called, one JSON object a line:

{tools}

To call one, write its name and its arguments as a JSON object between two tags, and nothing after it:

<tool_call>
{{"name": "FUNCTION", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>

The results then come in <tool_result> tags. Call a function only where it helps; else answer in words."""


class Generic(Hermes):
    """See Family."""

    name = "generic"

    def writes(self, template: str) -> bool:
        """No template: it is what is left."""
        return False

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """Roles of a plain chat alone: the tools in the system prompt, calls in the answer's text, results in the
        user's."""
        found: list[dict[str, Any]] = []
        for message in messages:
            if message["role"] == "tool":
                text = _result(message)
                if found and found[-1].get("results"):
                    found[-1]["content"] += f"\n{text}"
                else:
                    found.append({"role": "user", "content": text, "results": True})
            else:
                found.append({"role": message["role"], "content": _with_calls(message)})
        for message in found:
            message.pop("results", None)
        return with_manual(found, _MANUAL, tools), None


def with_manual(messages: Sequence[Message], manual: str, tools: Sequence[Tool]) -> list[Message]:
    """Messages with the tools described in the system prompt. manual: has a place for {tools}."""
    if not tools:
        return list(messages)
    text = manual.format(tools="\n".join(described(tool) for tool in tools))
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def described(tool: Tool) -> str:
    """A tool as a line of JSON."""
    described: dict[str, Any] = {"name": tool.name}
    if tool.description:
        described["description"] = tool.description
    return json.dumps({**described, "parameters": dict(tool.parameters)}, ensure_ascii=False)


def _with_calls(message: Message) -> str:
    content = str(message.get("content") or "")
    calls = [
        "<tool_call>\n"
        + json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)
        + "\n</tool_call>"
        for call in message.get("tool_calls") or ()
    ]
    return "\n".join(part for part in [content, *calls] if part)


def _result(message: Message) -> str:
    name = message.get("name")
    opening = f"<tool_result name={json.dumps(name, ensure_ascii=False)}>" if name else "<tool_result>"
    return f"{opening}\n{message.get('content') or ''}\n</tool_result>"
