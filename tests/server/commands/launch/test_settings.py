"""What each client is told: the pure functions, and that their files are in the clients' formats."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from coe.server.commands.launch.clients import CLIENTS
from coe.server.commands.launch.command import doubts
from coe.server.commands.launch.values import NO_KEY, Client, Model, Place, Served, Settings

FOLDER, HOME = Path("/own"), Path("/home/me")
PLACE = Place(FOLDER, HOME, HOME / ".gitconfig", "secret")
AUTO = Model("auto", "Automatic", 32_768, tools=True)
MATH = Model("math", "Math", 4096, tools=False)
OPEN = Served("http://127.0.0.1:8000", "", AUTO, (MATH,))
KEYED = Served("http://127.0.0.1:8000", 'k"ey', AUTO, (MATH,))


def told(name: str, served: Served = OPEN, place: Place = PLACE) -> Settings:
    return CLIENTS[name].settings(served, place)


def variables(name: str, served: Served = OPEN) -> Mapping[str, str | None]:
    return told(name, served).environment


def file(settings: Settings, name: str) -> str:
    return settings.files[FOLDER / name]


@pytest.mark.parametrize("client", CLIENTS.values(), ids=list(CLIENTS))
class TestEveryClient:
    def test_is_started_by_its_own_command(self, client: Client) -> None:
        assert client.settings(OPEN, PLACE).argv[0] == client.command
        assert client.saving(OPEN, PLACE, {}).settings.argv[0] == client.command

    def test_writes_in_its_folder_alone(self, client: Client) -> None:
        assert all(path.is_relative_to(FOLDER) for path in client.settings(OPEN, PLACE).files)

    def test_is_told_address_model_and_key(self, client: Client) -> None:
        settings = client.settings(KEYED, PLACE)
        everything = json.dumps([settings.argv, dict(settings.environment), list(settings.files.values())])
        assert "http://127.0.0.1:8000" in everything
        assert "auto" in everything
        assert 'k"ey' in everything.replace("\\", "")

    def test_is_told_the_context_where_it_asks_for_one(self, client: Client) -> None:
        settings = client.settings(OPEN, PLACE)
        everything = json.dumps([dict(settings.environment), list(settings.files.values())])
        assert ("32768" in everything) == (client.name != "open-webui")

    def test_keeps_to_the_users_home_when_it_saves(self, client: Client) -> None:
        saving = client.saving(OPEN, PLACE, {})
        paths = [edit.path for edit in saving.edits] + ([saving.kept] if saving.kept else [])
        assert paths
        assert all(path.is_relative_to(HOME) for path in paths)

    def test_says_how_to_get_it(self, client: Client) -> None:
        assert "install" in client.install


class TestCodex:
    def test_its_configuration_is_toml_of_a_provider(self) -> None:
        config = tomllib.loads(file(told("codex", KEYED), "config.toml"))
        provider = config["model_providers"][config["model_provider"]]
        assert config["model"] == "auto"
        assert config["model_context_window"] == 32_768
        assert provider["base_url"] == "http://127.0.0.1:8000/v1"
        assert provider["wire_api"] == "responses"
        assert provider["http_headers"] == {"Authorization": 'Bearer k"ey'}

    def test_without_a_key_no_header_goes_along(self) -> None:
        assert "http_headers" not in file(told("codex"), "config.toml")

    def test_its_catalogue_has_every_model_with_its_context(self) -> None:
        config = tomllib.loads(file(told("codex"), "config.toml"))
        assert config["model_catalog_json"] == str(FOLDER / "models.json")
        models = json.loads(file(told("codex"), "models.json"))["models"]
        assert [(one["slug"], one["context_window"]) for one in models] == [("auto", 32_768), ("math", 4096)]

    def test_saves_a_profile_and_leaves_the_rest_alone(self) -> None:
        saving = CLIENTS["codex"].saving(OPEN, PLACE, {"CODEX_HOME": "/elsewhere"})
        assert {edit.path for edit in saving.edits} == {
            Path("/elsewhere/coe.config.toml"),
            Path("/elsewhere/coe-models.json"),
        }
        assert saving.settings.argv == ("codex", "--profile", "coe")

    def test_a_key_of_openai_does_not_reach_it(self) -> None:
        assert variables("codex")["OPENAI_API_KEY"] is None


class TestClaude:
    def test_is_told_the_context_since_it_would_think_of_a_million(self) -> None:
        found = variables("claude")
        assert found["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "32768"
        assert int(found["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] or 0) < 32_768

    def test_speaks_to_the_server_without_v1_and_to_nobody_else(self) -> None:
        found = variables("claude", KEYED)
        assert found["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8000"
        assert found["ANTHROPIC_AUTH_TOKEN"] == 'k"ey'
        assert found["ANTHROPIC_API_KEY"] == ""
        assert found["CLAUDE_CODE_USE_BEDROCK"] is None
        assert found["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == found["CLAUDE_CODE_SUBAGENT_MODEL"] == "auto"

    def test_saves_its_variables_into_its_settings(self) -> None:
        [edit] = CLIENTS["claude"].saving(OPEN, PLACE, {}).edits
        assert edit.path == HOME / ".claude/settings.json"
        assert not isinstance(edit.values, str)
        assert edit.values["env"]["ANTHROPIC_BASE_URL"] == OPEN.url


class TestOpencode:
    def config(self, served: Served = OPEN) -> Any:
        return json.loads(variables("opencode", served)["OPENCODE_CONFIG_CONTENT"] or "")

    def test_has_a_provider_with_each_models_context_and_tools(self) -> None:
        config = self.config()
        models = config["provider"]["coe"]["models"]
        assert config["model"] == config["small_model"] == "coe/auto"
        assert models["auto"]["limit"]["context"] == 32_768
        assert [model["tool_call"] for model in models.values()] == [True, False]

    def test_all_that_it_writes_is_moved_and_gits_settings_are_not(self) -> None:
        found = variables("opencode")
        moved = ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "npm_config_cache", "TMPDIR"]
        assert all((found[name] or "").startswith(f"{FOLDER}/") for name in moved)
        assert found["GIT_CONFIG_GLOBAL"] == str(HOME / ".gitconfig")

    def test_without_settings_of_git_none_are_named(self) -> None:
        assert "GIT_CONFIG_GLOBAL" not in told("opencode", place=Place(FOLDER, HOME)).environment

    def test_saves_into_the_file_that_counts(self, tmp_path: Path) -> None:
        (tmp_path / "opencode").mkdir()
        place, environment = Place(FOLDER, HOME), {"XDG_CONFIG_HOME": str(tmp_path)}
        [edit] = CLIENTS["opencode"].saving(OPEN, place, environment).edits
        assert edit.path == tmp_path / "opencode/opencode.json"
        (tmp_path / "opencode/opencode.jsonc").touch()
        [edit] = CLIENTS["opencode"].saving(OPEN, place, environment).edits
        assert edit.path == tmp_path / "opencode/opencode.jsonc"


def test_qwen_code_has_a_provider_entry_a_model() -> None:
    settings = json.loads(file(told("qwen", KEYED), "settings.json"))
    [auto, math] = settings["modelProviders"]["openai"]
    assert auto["generationConfig"]["contextWindowSize"] == 32_768
    assert math["id"] == "math"
    assert settings["env"][auto["envKey"]] == 'k"ey'
    assert variables("qwen")["QWEN_HOME"] == str(FOLDER)
    assert variables("qwen")["OPENAI_BASE_URL"] is None


def test_continues_configuration_is_yaml_with_a_model_that_takes_tools() -> None:
    config = yaml.safe_load(file(told("continue"), "config.yaml"))
    [auto, math] = config["models"]
    assert (auto["model"], auto["apiBase"], auto["apiKey"]) == ("auto", "http://127.0.0.1:8000/v1", NO_KEY)
    assert auto["defaultCompletionOptions"]["contextLength"] == 32_768
    assert (auto["capabilities"], math["capabilities"]) == (["tool_use"], [])
    assert config["schema"] == "v1"


def test_continues_own_name_of_its_configuration_stays(tmp_path: Path) -> None:
    environment = {"CONTINUE_GLOBAL_DIR": str(tmp_path)}
    [edit] = CLIENTS["continue"].saving(OPEN, PLACE, environment).edits
    assert "name" in edit.values
    (tmp_path / "config.yaml").touch()
    [edit] = CLIENTS["continue"].saving(OPEN, PLACE, environment).edits
    assert not isinstance(edit.values, str)
    assert list(edit.values) == ["models"]


def test_aider_asks_litellm_for_an_openai_model_and_leaves_home_and_repository_alone() -> None:
    found = variables("aider", KEYED)
    assert found["AIDER_MODEL"] == found["AIDER_WEAK_MODEL"] == "openai/auto"
    assert found["HOME"] == str(FOLDER)
    assert found["GIT_CONFIG_GLOBAL"] == str(HOME / ".gitconfig")
    assert found["AIDER_MAP_TOKENS"] == "0"
    assert found["AIDER_GITIGNORE"] == "false"
    assert (found["AIDER_CHAT_HISTORY_FILE"] or "").startswith(str(FOLDER))
    metadata = json.loads(file(told("aider"), ".aider.model.metadata.json"))
    assert metadata["openai/auto"]["max_input_tokens"] == 32_768


def test_open_webui_keeps_its_data_and_its_pages_files_in_its_folder() -> None:
    found = variables("open-webui")
    assert found["DATA_DIR"] == str(FOLDER)
    assert found["STATIC_DIR"] == str(FOLDER / "static")
    assert found["WEBUI_SECRET_KEY"] == "secret"
    assert found["ENABLE_PERSISTENT_CONFIG"] == "False"
    assert found["OPENAI_API_BASE_URLS"] is None
    saving = CLIENTS["open-webui"].saving(OPEN, PLACE, {})
    assert saving.settings.environment["DATA_DIR"] == str(saving.kept) == str(HOME / ".local/share/coe/open-webui")


def test_open_webui_has_its_embeddings_from_the_server_where_it_gives_some() -> None:
    found = variables("open-webui", replace(OPEN, embeds=True))
    assert (found["RAG_EMBEDDING_ENGINE"], found["RAG_OPENAI_API_BASE_URL"]) == ("openai", f"{OPEN.url}/v1")
    assert "RAG_EMBEDDING_ENGINE" not in variables("open-webui")


def test_longest_answers_leave_room_in_any_context() -> None:
    sizes = (256, 4096, 32_768, 1_000_000)
    assert [Model("m", "M", size, tools=True).output_tokens for size in sizes] == [64, 1024, 8192, 8192]


def test_a_model_without_tools_and_too_small_a_context_are_told_of() -> None:
    served = Served("http://127.0.0.1:8000", "", MATH)
    tools, context = doubts(CLIENTS["claude"], served)
    assert "math takes no tools" in tools
    assert "13,000 tokens" in context
    assert "4,096" in context
    assert "context_tokens" in context
    assert "--bare" in context
    assert doubts(CLIENTS["claude"], OPEN) == []
    assert doubts(CLIENTS["open-webui"], served) == []
