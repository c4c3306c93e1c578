"""Codex: the Responses API, a provider of its own in config.toml, and a catalogue that knows our models.

Without a catalogue Codex takes any model that it does not know for one of its own, with 18 kB of instructions.
Source: codex 0.171.0; openai/codex, codex-rs/model-provider-info.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .values import PROVIDER, Client, Edit, Model, Place, Saving, Served, Settings

_INSTRUCTIONS: Final = (
    "You are a coding agent in a terminal. The user's project is the current folder; look at its files before you"
    " change them. Run commands and edit files with your tools, in small steps, and go on until the task is done."
    " Leave alone what you were not asked to change. Keep answers short, and say at the end what you changed and what"
    " you checked."
)
_STREAM_IDLE_MS: Final = 900_000  # a model that is loaded, and a long prompt on a slow machine


def _config(served: Served, catalogue: Path) -> str:
    """config.toml, or a profile. A JSON string is one of TOML as well."""

    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=False)

    lines = [
        f"model = {text(served.model.name)}",
        f"model_provider = {text(PROVIDER)}",
        f"model_catalog_json = {text(str(catalogue))}",
        f"model_context_window = {served.model.context_tokens}",
        "",
        f"[model_providers.{PROVIDER}]",
        'name = "College of Experts"',
        f"base_url = {text(served.api)}",
        'wire_api = "responses"',
        "requires_openai_auth = false",
        "supports_websockets = false",
        f"stream_idle_timeout_ms = {_STREAM_IDLE_MS}",
    ]
    if served.key:
        lines.append(f"http_headers = {{ Authorization = {text(f'Bearer {served.key}')} }}")
    return "\n".join(lines) + "\n"


def _catalogue(served: Served) -> str:
    return json.dumps({"models": [_entry(model, n) for n, model in enumerate(served.models)]}, indent=1)


def _entry(model: Model, priority: int) -> dict[str, Any]:
    return {
        "slug": model.name,
        "display_name": model.title,
        "context_window": model.context_tokens,
        "shell_type": "default",
        "visibility": "list",
        "supported_in_api": True,
        "priority": priority,
        "truncation_policy": {"mode": "bytes", "limit": 10_000},
        "input_modalities": ["text"],
        "base_instructions": _INSTRUCTIONS,
        "support_verbosity": False,
        "supports_parallel_tool_calls": False,
        "supports_reasoning_summaries": False,
        "supported_reasoning_levels": [],
        "experimental_supported_tools": [],
    }


def _settings(served: Served, place: Place) -> Settings:
    catalogue = place.folder / "models.json"
    return Settings(
        ("codex",),
        # A key of OpenAI's, with which nothing is to be asked, and the folder that Codex must not find first.
        {"CODEX_HOME": str(place.folder), "CODEX_SQLITE_HOME": None, "OPENAI_API_KEY": None, "CODEX_API_KEY": None},
        {place.folder / "config.toml": _config(served, catalogue), catalogue: _catalogue(served)},
    )


def _saving(served: Served, place: Place, environment: Mapping[str, str]) -> Saving:
    """A profile, which is a file of its own: `codex` alone stays as it is."""
    home = Path(environment.get("CODEX_HOME") or place.home / ".codex")
    catalogue = home / f"{PROVIDER}-models.json"
    edits = (
        Edit(home / f"{PROVIDER}.config.toml", "text", _config(served, catalogue)),
        Edit(catalogue, "text", _catalogue(served)),
    )
    return Saving(edits, Settings(("codex", "--profile", PROVIDER)))


CODEX: Final = Client(
    "codex",
    title="Codex",
    command="codex",
    install="npm install -g @openai/codex",
    settings=_settings,
    saving=_saving,
    prompt_tokens=6_000,
    outside_tmp=True,  # below /tmp it makes no helpers, and complains at each start
)
