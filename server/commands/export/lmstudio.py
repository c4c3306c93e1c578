"""LM Studio's folder: the file two levels below models/, and a model of its own with settings that refers to it.

Source: lmstudio.ai/docs (import a model, model.yaml); lmstudio-js, packages/lms-kv-config. Where model.yaml lies is
what LM Studio's users tell each other.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final

import yaml

from coe.engine.spec import ThinkingMode

from .values import Card, Sheet

PUBLISHER: Final = "coe"


def model_folder(name: str) -> str:
    """Where a specialist's file lies in LM Studio's folder: exactly two levels down, else it is not found."""
    return f"models/{PUBLISHER}/{name}-gguf"


def virtual_model(card: Card, folder: Path) -> Sheet:
    """model.yaml: what is to be loaded, and by which settings."""
    operation = {} if card.load.embeddings else _operation(card)
    model: dict[str, Any] = {
        "model": f"{PUBLISHER}/{card.name}",
        "base": f"{PUBLISHER}/{card.name}-gguf",
        "metadataOverrides": {
            "domain": "embedding" if card.load.embeddings else "llm",
            "architectures": [card.architecture],
            "contextLengths": [card.load.context_tokens],
            "vision": False,
            "reasoning": card.thinking.mode is not ThinkingMode.OFF,
            "trainedForToolUse": card.tools and not card.load.embeddings,
        },
        "config": {"operation": {"fields": _fields(operation)}, "load": {"fields": _fields(_load(card))}},
    }
    if card.switch:
        model["customFields"] = [_thinking(card)]
    text = yaml.safe_dump(model, sort_keys=False, allow_unicode=True)
    path = f"hub/models/{PUBLISHER}/{card.name}/model.yaml"
    then = [] if folder.name == ".lmstudio" else [f"cp -R {shlex.quote(str(folder))}/. ~/.lmstudio/"]
    return Sheet({path: text}, tuple(_notes(card)), (*then, f"lms load {PUBLISHER}/{card.name}"))


def _load(card: Card) -> dict[str, Any]:
    """How it is loaded: models made for embeddings have keys of their own."""
    if not card.load.embeddings:
        return {"llm.load.contextLength": card.load.context_tokens}
    found = {"embedding.load.contextLength": card.load.context_tokens}
    if card.batch_tokens is not None:
        found["embedding.load.llama.evalBatchSize"] = card.batch_tokens
    return found


def _operation(card: Card) -> dict[str, Any]:
    """How it answers."""
    sampling = card.sampling
    operation: dict[str, Any] = {
        "llm.prediction.temperature": sampling.temperature,
        "llm.prediction.topKSampling": sampling.top_k,
        "llm.prediction.topPSampling": _checked(sampling.top_p, sampling.top_p < 1),
        "llm.prediction.minPSampling": _checked(sampling.min_p, sampling.min_p > 0),
        "llm.prediction.repeatPenalty": _checked(sampling.repeat_penalty, sampling.repeat_penalty != 1),
        "llm.prediction.llama.presencePenalty": _checked(sampling.presence_penalty, sampling.presence_penalty != 0),
        "llm.prediction.maxPredictedTokens": _checked(card.max_tokens or card.load.context_tokens, True),
    }
    if card.system_prompt:
        operation["llm.prediction.systemPrompt"] = card.system_prompt
    return operation


def _fields(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _checked(value: float, on: bool) -> dict[str, Any]:
    """A setting that has a tick beside it."""
    return {"checked": on, "value": value}


def _thinking(card: Card) -> dict[str, Any]:
    return {
        "key": "enableThinking",
        "displayName": "Thinking",
        "description": "Whether the model thinks before it answers",
        "type": "boolean",
        "defaultValue": card.thinking.mode is not ThinkingMode.OFF,
        "effects": [{"type": "setJinjaVariable", "variable": "enable_thinking"}],
    }


def _notes(card: Card) -> list[str]:
    found = []
    if card.places_experts:
        found.append("Experts that the roster keeps in host memory are placed as LM Studio sees fit.")
    if card.sampling.frequency_penalty:
        found.append("The roster's frequency_penalty cannot be told: LM Studio has none.")
    if card.thinking.budget_tokens is not None:
        found.append("It thinks without the roster's budget: model.yaml has none.")
    if card.thinking.prefill is not None:
        found.append("The roster's `prefill` of answers cannot be told: LM Studio has none.")
    return [*found, *([f"Notice: {card.notice}"] if card.notice else [])]
