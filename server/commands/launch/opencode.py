"""opencode: chat completions, its settings in one variable.

All four folders of the XDG standard are moved, for it writes to each, and installs a package in the first.
Source: opencode 1.18.34; opencode.ai/docs/config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .values import PROVIDER, TEMPORARY, Client, Edit, Model, Place, Saving, Served, Settings


def _config(served: Served) -> dict[str, Any]:
    name = f"{PROVIDER}/{served.model.name}"
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "College of Experts",
        "options": {"baseURL": served.api, "apiKey": served.given_key},
        "models": {model.name: _entry(model) for model in served.models},
    }
    return {"provider": {PROVIDER: provider}, "model": name, "small_model": name}


def _entry(model: Model) -> dict[str, Any]:
    return {
        "name": model.title,
        "tool_call": model.tools,
        "reasoning": False,  # a policy of the roster's, which clients do not choose
        "limit": {"context": model.context_tokens, "output": model.output_tokens},
    }


def _settings(served: Served, place: Place) -> Settings:
    config = {**_config(served), "enabled_providers": [PROVIDER], "autoupdate": False, "share": "disabled"}
    folders = {f"XDG_{name}_HOME": str(place.folder / name.lower()) for name in ("CONFIG", "DATA", "STATE", "CACHE")}
    environment: dict[str, str | None] = {
        **folders,
        "npm_config_cache": str(place.folder / "npm"),
        "TMPDIR": str(place.folder / TEMPORARY),
        "OPENCODE_CONFIG_CONTENT": json.dumps(config),
        "OPENCODE_CONFIG": None,
        "OPENCODE_CONFIG_DIR": None,
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
    }
    if place.git_config is not None:  # which git would look for in a folder that is moved
        environment["GIT_CONFIG_GLOBAL"] = str(place.git_config)
    return Settings(("opencode",), environment)


def _saving(served: Served, place: Place, environment: Mapping[str, str]) -> Saving:
    folder = Path(environment.get("XDG_CONFIG_HOME") or place.home / ".config") / "opencode"
    commented = folder / "opencode.jsonc"  # read after opencode.json, and so the one that counts
    path = commented if commented.exists() else folder / "opencode.json"
    return Saving([Edit(path, "json", _config(served))], Settings(("opencode",)))


OPENCODE: Final = Client(
    "opencode",
    title="opencode",
    command="opencode",
    install="npm install -g opencode-ai",
    settings=_settings,
    saving=_saving,
    prompt_tokens=8_000,
)
