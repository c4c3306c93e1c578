"""Open WebUI: chat completions, told of by the environment alone.

What its own pages changed counts for more than the environment, unless it is told to keep nothing of it.
Source: open-webui 0.12.4, backend/open_webui/env.py and config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ...roster.values import AUTO
from .values import Client, Place, Saving, Served, Settings


def _started(served: Served, folder: Path, secret: str) -> Settings:
    """In a folder, which holds its database, its uploads, and its page's own files, that it deletes and writes anew."""
    environment: dict[str, str | None] = {
        "DATA_DIR": str(folder),
        "STATIC_DIR": str(folder / "static"),
        "DATABASE_URL": None,
        "WEBUI_SECRET_KEY": secret,  # without one it writes it into the current folder
        "WEBUI_AUTH": "False",  # it listens on this machine alone
        "ENABLE_PERSISTENT_CONFIG": "False",
        "ENABLE_OLLAMA_API": "False",
        "ENABLE_OPENAI_API": "True",
        "OPENAI_API_BASE_URL": served.api,
        "OPENAI_API_BASE_URLS": None,
        "OPENAI_API_KEY": served.given_key,
        "OPENAI_API_KEYS": None,
        "DEFAULT_MODELS": served.model.name,
        "OFFLINE_MODE": "true",  # neither updates nor models are fetched
        "ANONYMIZED_TELEMETRY": "false",
    }
    if served.embeds:  # for documents and knowledge; its own model would have to be fetched
        environment |= {
            "RAG_EMBEDDING_ENGINE": "openai",
            "RAG_OPENAI_API_BASE_URL": served.api,
            "RAG_OPENAI_API_KEY": served.given_key,
            "RAG_EMBEDDING_MODEL": AUTO,
        }
    return Settings(("open-webui", "serve", "--host", "127.0.0.1", "--port", "8080"), environment)


def _settings(served: Served, place: Place) -> Settings:
    return _started(served, place.folder, place.secret)


def _saving(served: Served, place: Place, environment: Mapping[str, str]) -> Saving:
    """It has no file of settings. What is worth keeping are the chats."""
    data = Path(environment.get("XDG_DATA_HOME") or place.home / ".local" / "share") / "coe" / "open-webui"
    return Saving((), _started(served, data, place.secret), kept=data)


OPEN_WEBUI: Final = Client(
    "open-webui",
    title="Open WebUI",
    command="open-webui",
    install="python3.11 -m venv open-webui && open-webui/bin/pip install open-webui, and its bin folder in PATH",
    settings=_settings,
    saving=_saving,
    needs_tools=False,
)
