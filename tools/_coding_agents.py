"""Coding agents of others: how each is installed, told of a server, asked, and what its tools are called.

One more is an entry in AGENTS and a function that writes its settings.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fakes.played_model import Call

MODEL: Final = "auto"
KEY: Final = "anything"


@dataclass(frozen=True)
class Place:
    """Where an agent runs. home: its settings; work: the project's folder; url: of the API, /v1 included; context: of
    the model, in tokens."""

    home: Path
    work: Path
    url: str
    context: int


@dataclass(frozen=True)
class Agent:
    """One agent.

    package, version: of npm; the version is pinned, for agents change by the day.
    settings: writes its settings, and gives what its environment needs.
    ask:      the command line for a first message, without the message; go_on for the next one of the conversation.
    write, edit, read: its tools, of (path, text), (path, old, new) and (path); arguments in its schemas' order.
    client_tasks: what it asks for on its own account with each new conversation.
    compacts_at: a context in tokens that holds its prompt, and not a long file as well; it then shortens the
              conversation and goes on. None where it gives up.
    """

    name: str
    package: str
    version: str
    settings: Callable[[Place], Mapping[str, str]]
    ask: Sequence[str]
    go_on: Sequence[str]
    write: Callable[[str, str], Call]
    edit: Callable[[str, str, str], Call]
    read: Callable[[str], Call]
    client_tasks: Sequence[str] = ()
    compacts_at: int | None = None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def _opencode(place: Place) -> Mapping[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "College of Experts",
        "options": {"baseURL": place.url},
        "models": {MODEL: {}},
    }
    _write_json(
        place.home / ".config/opencode/opencode.json",
        {"provider": {"college": provider}, "model": f"college/{MODEL}"},
    )
    return {"OPENCODE_DISABLE_AUTOUPDATE": "1"}  # else it is another version than the one that was asked for


def _continue(place: Place) -> Mapping[str, str]:
    model = {"name": MODEL, "provider": "openai", "model": MODEL, "apiBase": place.url, "apiKey": KEY}
    # YAML, of which JSON is a part.
    settings = {"name": "college", "version": "1.0.0", "schema": "v1", "models": [model]}
    _write_json(place.home / ".continue/config.yaml", settings)
    return {"CONTINUE_CLI_ENABLE_TELEMETRY": "0"}


def _qwen_code(place: Place) -> Mapping[str, str]:
    _write_json(place.home / ".qwen/settings.json", {"security": {"auth": {"selectedType": "openai"}}})
    return {
        "OPENAI_BASE_URL": place.url,
        "OPENAI_API_KEY": KEY,
        "OPENAI_MODEL": MODEL,
        "QWEN_USAGE_STATISTICS_ENABLED": "false",
    }


_CODEX: Final = """\
model = "{model}"
model_provider = "college"
model_context_window = {context}

[model_providers.college]
name = "College of Experts"
base_url = "{url}"
env_key = "COE_KEY"
"""
# The folder is no repository, and where tests run there may be no means to shut commands in.
_CODEX_FLAGS: Final = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
_REPLACE: Final = "import sys; path, old, new = sys.argv[1:]; text = open(path).read().replace(old, new); "


def _codex(place: Place) -> Mapping[str, str]:
    settings = place.home / ".codex/config.toml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(_CODEX.format(model=MODEL, context=place.context, url=place.url))
    return {"COE_KEY": KEY}


def _in_shell(*words: str, into: str = "") -> Call:
    """Codex has a shell for everything. into: the file that the output goes to."""
    return Call("exec_command", {"cmd": shlex.join(words) + (f" > {shlex.quote(into)}" if into else "")})


AGENTS: Final = {
    agent.name: agent
    for agent in (
        Agent(
            "codex",
            package="@openai/codex",
            version="0.171.0",
            settings=_codex,
            ask=("codex", "exec", *_CODEX_FLAGS),
            go_on=("codex", "exec", "resume", "--last", *_CODEX_FLAGS),
            write=lambda path, text: _in_shell("printf", "%s", text, into=path),
            edit=lambda path, old, new: _in_shell(
                "python3", "-c", _REPLACE + 'open(path, "w").write(text)', path, old, new
            ),
            read=lambda path: _in_shell("cat", path),
        ),
        Agent(
            "opencode",
            package="opencode-ai",
            version="1.18.33",
            settings=_opencode,
            ask=("opencode", "run"),
            go_on=("opencode", "run", "--continue"),
            write=lambda path, text: Call("write", {"content": text, "filePath": path}),
            edit=lambda path, old, new: Call("edit", {"filePath": path, "oldString": old, "newString": new}),
            read=lambda path: Call("read", {"filePath": path}),
            client_tasks=("title",),
            compacts_at=24_000,
        ),
        Agent(
            "continue",
            package="@continuedev/cli",
            version="1.5.47",
            settings=_continue,
            ask=("cn", "--print", "--auto"),
            go_on=("cn", "--print", "--auto", "--resume"),
            write=lambda path, text: Call("Write", {"filepath": path, "content": text}),
            edit=lambda path, old, new: Call("Edit", {"file_path": path, "old_string": old, "new_string": new}),
            read=lambda path: Call("Read", {"filepath": path}),
        ),
        Agent(
            "qwen-code",
            package="@qwen-code/qwen-code",
            version="0.24.4",
            settings=_qwen_code,
            ask=("qwen", "--yolo"),
            go_on=("qwen", "--yolo", "--continue"),
            write=lambda path, text: Call("write_file", {"file_path": path, "content": text}),
            edit=lambda path, old, new: Call("edit", {"file_path": path, "old_string": old, "new_string": new}),
            read=lambda path: Call("read_file", {"file_path": path}),
            compacts_at=45_000,
        ),
    )
}
