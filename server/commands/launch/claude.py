"""Claude Code: Anthropic's Messages API, told of by the environment alone.

It takes a model that it does not know for one of a million tokens, and then never shortens a conversation: so it is
told the context. Source: claude-code 2.1.332; code.claude.com/docs, environment variables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .values import TEMPORARY, Client, Edit, Place, Saving, Served, Settings

# What would lead it elsewhere: accounts, other clouds, and models that the user has chosen for those.
_FOREIGN: Final = (
    *("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_CUSTOM_HEADERS", "CLAUDE_CODE_OAUTH_TOKEN"),
    *("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"),
)


def _environment(served: Served) -> dict[str, str]:
    name = served.model.name
    return {
        "ANTHROPIC_BASE_URL": served.url,
        "ANTHROPIC_API_KEY": "",  # with a token beside it: nothing is asked about a key
        "ANTHROPIC_AUTH_TOKEN": served.given_key,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": name,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": name,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": name,
        "CLAUDE_CODE_SUBAGENT_MODEL": name,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(served.model.context_tokens),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(served.model.output_tokens),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # changes with every turn: no prompt would be found in the cache
        "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_FEEDBACK_SURVEY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "API_TIMEOUT_MS": "900000",  # a model that is loaded, and a long prompt on a slow machine
    }


def _settings(served: Served, place: Place) -> Settings:
    own = {"CLAUDE_CONFIG_DIR": str(place.folder), "CLAUDE_CODE_TMPDIR": str(place.folder / TEMPORARY)}
    # Without it the first thing is a choice of colours, each time.
    begun = json.dumps({"hasCompletedOnboarding": True, "theme": "dark"})
    return Settings(
        ("claude", "--model", served.model.name),
        {**dict.fromkeys(_FOREIGN), **_environment(served), **own},
        {place.folder / ".claude.json": begun},
    )


def _saving(served: Served, place: Place, environment: Mapping[str, str]) -> Saving:
    home = Path(environment.get("CLAUDE_CONFIG_DIR") or place.home / ".claude")
    values = {"env": _environment(served), "model": served.model.name}
    return Saving([Edit(home / "settings.json", "json", values)], Settings(("claude",), dict.fromkeys(_FOREIGN)))


CLAUDE: Final = Client(
    "claude",
    title="Claude Code",
    command="claude",
    install="npm install -g @anthropic-ai/claude-code",
    settings=_settings,
    saving=_saving,
    prompt_tokens=13_000,
    shorter="coe launch claude -- --bare",
)
