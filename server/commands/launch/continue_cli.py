"""Continue's CLI: chat completions, a list of models in config.yaml.

Source: @continuedev/cli 1.5.47; docs.continue.dev/reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .values import PROVIDER, Client, Edit, Model, Place, Saving, Served, Settings


def _entry(served: Served, model: Model) -> dict[str, Any]:
    return {
        "name": f"{PROVIDER} {model.name}",
        "provider": "openai",
        "model": model.name,
        "apiBase": served.api,
        "apiKey": served.given_key,
        "roles": ["chat", "edit", "apply"],
        "capabilities": ["tool_use"] if model.tools else [],  # else a table of names tells
        "defaultCompletionOptions": {"contextLength": model.context_tokens, "maxTokens": model.output_tokens},
    }


def _values(served: Served) -> dict[str, Any]:
    return {
        "name": PROVIDER,
        "version": "1.0.0",
        "schema": "v1",
        "models": [_entry(served, model) for model in served.models],
    }


def _settings(served: Served, place: Place) -> Settings:
    config = place.folder / "config.yaml"
    environment = {
        "CONTINUE_GLOBAL_DIR": str(place.folder),
        "CONTINUE_METRICS_ENABLED": "0",
        "CONTINUE_CLI_ENABLE_TELEMETRY": "0",
    }
    # JSON is YAML.
    return Settings(("cn", "--config", str(config)), environment, {config: json.dumps(_values(served), indent=1)})


def _saving(served: Served, place: Place, environment: Mapping[str, str]) -> Saving:
    config = Path(environment.get("CONTINUE_GLOBAL_DIR") or place.home / ".continue") / "config.yaml"
    values = _values(served)
    if config.exists():  # what the user calls it stays
        values = {"models": values["models"]}
    return Saving([Edit(config, "yaml", values)], Settings(("cn", "--config", str(config))))


CONTINUE: Final = Client(
    "continue",
    title="Continue's CLI",
    command="cn",
    install="npm install -g @continuedev/cli",
    settings=_settings,
    saving=_saving,
    prompt_tokens=2_000,
)
