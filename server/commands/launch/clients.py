"""The clients that can be launched. One more is a module beside these, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .aider import AIDER
from .claude import CLAUDE
from .codex import CODEX
from .continue_cli import CONTINUE
from .open_webui import OPEN_WEBUI
from .opencode import OPENCODE
from .qwen import QWEN
from .values import Client

CLIENTS: Final[Mapping[str, Client]] = {
    client.name: client for client in (CODEX, CLAUDE, OPENCODE, QWEN, CONTINUE, OPEN_WEBUI, AIDER)
}
