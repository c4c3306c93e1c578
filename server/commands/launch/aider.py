"""aider: chat completions through litellm, to which `openai/` before the model's name says so.

It keeps its caches below HOME whatever it is told, so HOME is moved, and git told where the user's settings are.
Source: aider 0.86.2, aider/args.py, aider/models.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .values import Client, Edit, Place, Saving, Served, Settings

_METADATA: Final = ".aider.model.metadata.json"
_TIMEOUT_S: Final = 900  # a model that is loaded, and a long prompt on a slow machine


def _name(name: str) -> str:
    return f"openai/{name}"


def _metadata(served: Served) -> dict[str, Any]:
    return {
        _name(model.name): {
            "max_input_tokens": model.context_tokens,
            "max_output_tokens": model.output_tokens,
            "litellm_provider": "openai",
            "mode": "chat",
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
        }
        for model in served.models
    }


def _values(served: Served, metadata: Path) -> dict[str, Any]:
    """By the names of its flags."""
    name = _name(served.model.name)
    return {
        "model": name,
        "weak-model": name,
        "editor-model": name,
        "openai-api-base": served.api,
        "openai-api-key": served.given_key,
        "model-metadata-file": str(metadata),
        "show-model-warnings": False,
        "timeout": _TIMEOUT_S,
    }


def _settings(served: Served, place: Place) -> Settings:
    metadata = place.folder / _METADATA
    values = _values(served, metadata) | {
        "check-update": False,
        "analytics": False,
        "gitignore": False,
        "map-tokens": 0,  # a map of the repository is cached in the repository
        "chat-history-file": str(place.folder / "chat.md"),
        "input-history-file": str(place.folder / "input"),
    }
    flags = {f"AIDER_{flag.upper().replace('-', '_')}": _written(value) for flag, value in values.items()}
    environment: dict[str, str | None] = {
        **flags,
        "HOME": str(place.folder),
        # litellm reads these.
        "OPENAI_API_BASE": served.api,
        "OPENAI_BASE_URL": served.api,
        "OPENAI_API_KEY": served.given_key,
    }
    if place.git_config is not None:
        environment["GIT_CONFIG_GLOBAL"] = str(place.git_config)
    return Settings(("aider",), environment, {metadata: json.dumps(_metadata(served), indent=1)})


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _saving(served: Served, place: Place, environment: Mapping[str, str]) -> Saving:
    metadata = place.home / _METADATA
    edits = (
        Edit(place.home / ".aider.conf.yml", "yaml", _values(served, metadata)),
        Edit(metadata, "json", _metadata(served)),
    )
    return Saving(edits, Settings(("aider",)))


AIDER: Final = Client(
    "aider",
    title="aider",
    command="aider",
    install="python -m pip install aider-install && aider-install",
    settings=_settings,
    saving=_saving,
    prompt_tokens=2_500,
    needs_tools=False,
)
