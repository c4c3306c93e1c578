"""A recorded session of a coding agent: a long system prompt, a dozen tools, and 70 requests of one task after the
other. Deterministic, so that each request repeats the one before it and adds an exchange."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_RULES = (
    "Read a file before you change it",
    "Run the tests after each change, and read what they say",
    "Never change more lines than the task asks for",
    "Keep the style of the code around your change",
    "Tell the user in one sentence what you did when you are done",
    "Ask before you delete a file or a branch",
    "Search for all callers of a function before you change its parameters",
    "Do not invent names of files: list the folder first",
)
_TOOLS = {
    "read_file": ("Read a file of the project, or some of its lines.", {"path": "string", "first": "integer"}),
    "write_file": ("Write a file of the project; what was in it is lost.", {"path": "string", "text": "string"}),
    "replace_text": ("Replace one text of a file by another.", {"path": "string", "old": "string", "new": "string"}),
    "list_folder": ("List a folder of the project.", {"path": "string"}),
    "search": ("Search all files for a regular expression.", {"pattern": "string", "path": "string"}),
    "run_tests": ("Run the tests of a folder and give what they print.", {"path": "string"}),
    "run_command": ("Run a command in the project's folder.", {"command": "string", "timeout_s": "integer"}),
    "show_diff": ("Show what was changed since the last commit.", {"path": "string"}),
    "commit": ("Commit all changes.", {"message": "string"}),
    "write_plan": ("Write down what is left to do.", {"items": "string"}),
    "fetch_page": ("Fetch a page of the web as text.", {"url": "string"}),
    "ask_user": ("Ask the user a question and wait for the answer.", {"question": "string"}),
}
_TASKS = ("The parser crashes on an empty file. Find out why and mend it.", "Now write a test for that.")
_STEPS = ("list_folder", "read_file", "search", "read_file", "replace_text", "run_tests", "show_diff")

SYSTEM = "You are a careful coding agent that works in the folder of a project.\n\n" + "\n".join(
    f"{number}. {rule}. This holds in the folder src{number % 5} and in every folder below it, for files of any kind."
    for number, rule in enumerate(_RULES * 3, 1)
)
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{about} Paths are relative to the project's folder, and must not lead out of it.",
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": kind, "description": f"The {key} that {name} is to take."}
                    for key, kind in parameters.items()
                },
                "required": list(parameters),
                "additionalProperties": False,
            },
        },
    }
    for name, (about, parameters) in _TOOLS.items()
]


def requests() -> Iterator[list[dict[str, Any]]]:
    """The messages of each request, in the order in which the agent sent them."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    number = 0
    for task in _TASKS * 5:
        messages.append({"role": "user", "content": task})
        for step in _STEPS:
            yield list(messages)
            number += 1
            arguments = dict.fromkeys(_TOOLS[step][1], f"src{number % 5}/part{number}.py")
            call = {"id": f"call_{number:04d}", "type": "function"}
            written = {"name": step, "arguments": json.dumps(arguments)}
            messages.append({"role": "assistant", "content": None, "tool_calls": [{**call, "function": written}]})
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": _result(number)})
        messages.append({"role": "assistant", "content": "It is done, and all tests pass."})


def _result(number: int) -> str:
    lines = [f"{line:4d}  def part_{number}_{line}(text): return text[{line}:] or None" for line in range(6)]
    return "\n".join(["# <tool_call> is no call in a file", *lines])
