"""Qwen Code: chat completions, a provider in settings.json.

Variables alone would do, but then it guesses the context from the model's name.
Source: qwen-code 0.24.4 and the documents that it brings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .values import Client, Edit, Model, Place, Saving, Served, Settings

_KEY: Final = "COE_CLIENT_KEY"  # the variable that its settings name
_VERSION: Final = 4  # of its settings' format
_TIMEOUT_MS: Final = 900_000  # a model that is loaded, and a long prompt on a slow machine


def _entry(served: Served, model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "name": model.title,
        "envKey": _KEY,
        "baseUrl": served.api,
        "generationConfig": {
            "contextWindowSize": model.context_tokens,
            "timeout": _TIMEOUT_MS,
            "streamIdleTimeoutMs": _TIMEOUT_MS,
            "samplingParams": {"max_tokens": model.output_tokens},
        },
    }


def _values(served: Served) -> dict[str, Any]:
    return {
        "env": {_KEY: served.given_key},
        "modelProviders": {"openai": [_entry(served, model) for model in served.models]},
        "security": {"auth": {"selectedType": "openai"}},
        "model": {"name": served.model.name},
    }


def _settings(served: Served, place: Place) -> Settings:
    whole = {
        "$version": _VERSION,
        **_values(served),
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False},
        # After each answer it would send the conversation once more, for what to remember: here nothing is kept.
        "memory": {"enableManagedAutoMemory": False, "enableManagedAutoDream": False, "enableAutoSkill": False},
    }
    foreign = dict.fromkeys(("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "QWEN_RUNTIME_DIR"))
    return Settings(
        ("qwen", "--auth-type", "openai", "--model", served.model.name),
        {**foreign, "QWEN_HOME": str(place.folder), _KEY: served.given_key},
        {place.folder / "settings.json": json.dumps(whole, indent=1)},
    )


def _saving(served: Served, place: Place, environment: Mapping[str, str]) -> Saving:
    home = Path(environment.get("QWEN_HOME") or place.home / ".qwen")
    return Saving([Edit(home / "settings.json", "json", _values(served))], Settings(("qwen",)))


QWEN: Final = Client(
    "qwen",
    title="Qwen Code",
    command="qwen",
    install="npm install -g @qwen-code/qwen-code   (it wants Node 22 or newer)",
    settings=_settings,
    saving=_saving,
    prompt_tokens=19_000,
)
