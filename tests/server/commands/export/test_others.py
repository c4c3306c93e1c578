"""What llama-swap and LM Studio are told: read back as they read it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from coe.engine.spec import LoadSpec, Sampling, Thinking, ThinkingMode
from coe.server.commands.export.llama_swap import swap_entry
from coe.server.commands.export.lmstudio import model_folder, virtual_model
from coe.server.commands.export.values import AutoExperts, Card, ExportError

FOLDER = Path("/models/my law")
FILE = FOLDER / "law.gguf"
CARD = Card(
    name="law",
    file=FILE,
    load=LoadSpec(FILE, context_tokens=8192, cache_tokens=16_384, parallel=2),
    sampling=Sampling(presence_penalty=0.5),
    thinking=Thinking(),
    architecture="gemma4",
    experts=True,
    gemma4=True,
    switch=True,
    system_prompt="You are an expert: answer.\n\nThen stop.",
    max_tokens=1024,
    licence="Gemma Terms of Use",
)


def entry(card: Card) -> dict[str, Any]:
    [text] = swap_entry(card, FOLDER).files.values()
    found: dict[str, Any] = yaml.safe_load(text)["models"][card.name]
    return found


def command(card: Card) -> dict[str, str]:
    """llama-server's flags with their values, "" for a switch."""
    program, *words = shlex.split(entry(card)["cmd"])
    assert program == "llama-server"
    found: dict[str, str] = {}
    for word in words:
        if word.startswith("--"):
            flag = word
            found[flag] = ""
        else:
            found[flag] = word
    return found


def test_llama_server_loads_the_file_as_the_roster_says() -> None:
    found = command(CARD)
    assert found["--port"] == "${PORT}"
    assert found["--model"] == str(FILE)
    assert (found["--ctx-size"], found["--parallel"], found["--n-gpu-layers"]) == ("16384", "2", "999")
    assert "--kv-unified" in found
    assert not {"--threads", "--no-mmap", "--cpu-moe", "--n-cpu-moe", "--cache-type-k"} & found.keys()


def test_llama_server_draws_as_the_roster_says() -> None:
    found = command(CARD)
    assert (found["--temp"], found["--top-k"], found["--top-p"], found["--min-p"]) == ("0.6", "40", "0.95", "0.05")
    assert (found["--repeat-penalty"], found["--presence-penalty"], found["--predict"]) == ("1.05", "0.5", "1024")


@pytest.mark.parametrize(
    ("load", "flag", "value"),
    [
        ({"cpu_expert_layers": -1}, "--cpu-moe", ""),
        ({"cpu_expert_layers": 5}, "--n-cpu-moe", "5"),
        ({"kv_type": "q8_0"}, "--cache-type-v", "q8_0"),
        ({"mmap": False}, "--no-mmap", ""),
        ({"threads": 3}, "--threads", "3"),
        ({"gpu_layers": 0}, "--n-gpu-layers", "0"),
    ],
)
def test_what_differs_from_the_usual_is_told(load: dict[str, Any], flag: str, value: str) -> None:
    assert command(replace(CARD, load=replace(CARD.load, **load)))[flag] == value


@pytest.mark.parametrize(
    ("auto", "told"),
    [
        (AutoExperts(), "placed as LM Studio sees fit"),
        (AutoExperts(12), "placed as LM Studio sees fit"),
        (None, ""),
    ],
)
def test_lm_studio_places_experts_as_it_likes(auto: AutoExperts | None, told: str) -> None:
    notes = " ".join(virtual_model(replace(CARD, auto_experts=auto), FOLDER).notes)
    assert told in notes
    assert ("host memory" in notes) is bool(told)


def test_thinking_is_off_on_or_bounded() -> None:
    off = command(CARD)
    assert (off["--chat-template-kwargs"], off["--reasoning-budget"]) == ('{"enable_thinking":false}', "0")
    assert "--chat-template-kwargs" not in command(replace(CARD, switch=False))
    assert "--reasoning-budget" not in command(replace(CARD, thinking=Thinking(ThinkingMode.ON)))
    bounded = replace(CARD, thinking=Thinking(ThinkingMode.BUDGET, 512))
    assert command(bounded)["--reasoning-budget"] == "512"


def test_a_model_for_embeddings_embeds_and_draws_nothing() -> None:
    found = command(replace(CARD, load=replace(CARD.load, embeddings=True)))
    assert "--embeddings" in found
    assert not {"--temp", "--predict", "--reasoning-budget"} & found.keys()
    assert model(replace(CARD, load=replace(CARD.load, embeddings=True)))["metadataOverrides"]["domain"] == "embedding"


def test_a_system_prompt_is_kept_for_clients_and_noted() -> None:
    assert entry(CARD)["metadata"] == {"system_prompt": CARD.system_prompt, "licence": CARD.licence}
    assert "clients send it" in " ".join(swap_entry(CARD, FOLDER).notes)


def test_texts_that_look_like_macros_are_left_out() -> None:
    card = replace(CARD, title="Knows ${HOME}", system_prompt="Say ${x}.")
    assert entry(card)["metadata"] == {"licence": CARD.licence}
    assert "description" not in entry(card)
    assert "the roster has it" in " ".join(swap_entry(card, FOLDER).notes)


def test_a_path_that_is_a_macro_is_refused() -> None:
    with pytest.raises(ExportError, match="macro"):
        swap_entry(replace(CARD, file=Path("/a${PORT}/x.gguf")), FOLDER)


def model(card: Card) -> Any:
    [(path, text)] = virtual_model(card, FOLDER).files.items()
    assert path == "hub/models/coe/law/model.yaml"
    return yaml.safe_load(text)


def fields(card: Card, kind: str) -> dict[str, Any]:
    return {one["key"]: one["value"] for one in model(card)["config"][kind]["fields"]}


def test_lm_studio_has_a_model_of_its_own_that_refers_to_the_file() -> None:
    assert model_folder("law") == "models/coe/law-gguf", "two levels down, no more and no less"
    assert (model(CARD)["model"], model(CARD)["base"]) == ("coe/law", "coe/law-gguf")
    operation = fields(CARD, "operation")
    assert operation["llm.prediction.temperature"] == 0.6
    assert operation["llm.prediction.repeatPenalty"] == {"checked": True, "value": 1.05}
    assert operation["llm.prediction.systemPrompt"] == CARD.system_prompt
    assert operation["llm.prediction.maxPredictedTokens"] == {"checked": True, "value": 1024}
    assert fields(CARD, "load") == {"llm.load.contextLength": 8192}


def test_lm_studio_has_a_switch_for_thinking_that_is_as_the_roster_says() -> None:
    [switch] = model(CARD)["customFields"]
    assert switch["defaultValue"] is False
    assert switch["effects"][0]["variable"] == "enable_thinking"
    [switch] = model(replace(CARD, thinking=Thinking(ThinkingMode.ON)))["customFields"]
    assert switch["defaultValue"] is True
    assert "customFields" not in model(replace(CARD, switch=False))


def test_in_lm_studios_own_folder_nothing_is_left_to_copy() -> None:
    assert virtual_model(CARD, FOLDER).then == ("cp -R '/models/my law'/. ~/.lmstudio/", "lms load coe/law")
    assert virtual_model(CARD, Path("/home/me/.lmstudio")).then == ("lms load coe/law",)
