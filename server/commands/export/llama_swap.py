"""An entry for llama-swap, with a llama-server that loads the file as the roster says.

Source: llama-swap, config.example.yaml; llama.cpp, common/arg.cpp.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final

import yaml

from coe.engine.spec import ThinkingMode

from .values import AutoExperts, Card, ExportError, Sheet

_FILE: Final = "llama-swap.yaml"
_MACRO: Final = "${"
_ALL_LAYERS: Final = 999


def swap_entry(card: Card, folder: Path) -> Sheet:
    """A configuration of one model. Raises ExportError for a path that llama-swap would read otherwise."""
    if _MACRO in str(card.file):
        raise ExportError(
            f"llama-swap takes what follows {_MACRO} in {card.file} for a macro. Give the file another name."
        )
    entry: dict[str, Any] = {"cmd": _Block(_command(card)), "name": card.name}
    if card.title and _MACRO not in card.title:
        entry["description"] = card.title
    about = {"system_prompt": card.system_prompt, "licence": card.licence, "notice": card.notice}
    # What looks like a macro, and is none, would stop llama-swap at its start.
    if told := {key: value for key, value in about.items() if value and _MACRO not in value}:
        entry["metadata"] = told
    text = yaml.dump({"models": {card.name: entry}}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    then = (f"llama-swap --config {shlex.quote(str(folder / _FILE))}",)
    return Sheet({_FILE: text}, tuple(_notes(card)), then)


def flags(card: Card) -> list[list[str]]:
    """llama-server's, each with its value."""
    load = card.load
    found = [
        ["--model", str(card.file)],
        # One cache for all slots, as in a worker of ours.
        ["--ctx-size", str(load.cells)],
        ["--parallel", str(load.parallel)],
        ["--kv-unified"],
        ["--n-gpu-layers", str(_ALL_LAYERS if load.gpu_layers < 0 else load.gpu_layers)],
    ]
    if load.cpu_expert_layers:
        moe = ["--cpu-moe"] if load.cpu_expert_layers < 0 else ["--n-cpu-moe", str(load.cpu_expert_layers)]
        found.append(moe)
    if load.kv_type != "f16":
        found += [["--cache-type-k", load.kv_type], ["--cache-type-v", load.kv_type]]
    if not load.mmap:
        found.append(["--no-mmap"])
    if load.threads:
        found.append(["--threads", str(load.threads)])
    return found + (embedding(card) if load.embeddings else _answering(card))


def embedding(card: Card) -> list[list[str]]:
    """Those of a model made for embeddings. One that reads each text at once refuses what does not fit into one
    physical batch, of 512 tokens where nothing is said; the logical one must not be larger."""
    found = [["--embeddings"]]
    if card.batch_tokens is not None:
        found += [["--batch-size", str(card.batch_tokens)], ["--ubatch-size", str(card.batch_tokens)]]
    return found


def _answering(card: Card) -> list[list[str]]:
    """Those of a model that answers: how it draws, and whether it thinks."""
    load, sampling = card.load, card.sampling
    found = [
        ["--temp", f"{sampling.temperature:g}"],
        ["--top-k", str(sampling.top_k)],
        ["--top-p", f"{sampling.top_p:g}"],
        ["--min-p", f"{sampling.min_p:g}"],
        ["--repeat-penalty", f"{sampling.repeat_penalty:g}"],
        ["--repeat-last-n", str(sampling.repeat_last_n)],
        ["--presence-penalty", f"{sampling.presence_penalty:g}"],
        ["--frequency-penalty", f"{sampling.frequency_penalty:g}"],
        ["--predict", str(card.max_tokens or load.context_tokens)],
        ["--jinja"],
    ]
    if card.thinking.mode is ThinkingMode.OFF:
        # The template's switch where it has one; the other ends at once what a model begins all the same.
        found += [["--chat-template-kwargs", '{"enable_thinking":false}']] if card.switch else []
        found.append(["--reasoning-budget", "0"])
    elif card.thinking.budget_tokens is not None:
        found.append(["--reasoning-budget", str(card.thinking.budget_tokens)])
    return found


def _command(card: Card) -> str:
    lines = ["llama-server --host 127.0.0.1 --port ${PORT}", *(shlex.join(flag) for flag in flags(card))]
    return "\n".join(lines) + "\n"


def _notes(card: Card) -> list[str]:
    found = []
    if (auto := card.auto_experts) is not None:
        found += _auto_note(auto)
    if card.system_prompt:
        where = "the roster has it" if _MACRO in card.system_prompt else "it stands under `metadata`"
        found.append(f"llama-server has no system prompt of its own: clients send it ({where}).")
    if card.thinking.budget_tokens is not None:
        found.append("A budget for thinking needs a llama-server of 2026 or newer.")
    if card.thinking.prefill is not None:
        found.append("The roster's `prefill` of answers cannot be told: llama-server has none.")
    if card.load.context_tokens < card.load.cells and not card.load.embeddings:
        found.append("One conversation may take the whole cache: llama-server knows no bound for each.")
    return found


def _auto_note(auto: AutoExperts) -> list[str]:
    """What has to be known of `cpu_expert_layers: auto`, of which llama-server has another kind."""
    if auto.layers is None:
        return [
            f"`cpu_expert_layers: auto` is left out: {auto.why}. Where the model is too large for a GPU, add "
            "--n-cpu-moe and the number of layers whose experts are to stay in host memory, or --cpu-moe for all."
        ]
    if auto.layers:
        flag = "--cpu-moe" if auto.layers < 0 else f"--n-cpu-moe {auto.layers}"
        return [f"`cpu_expert_layers: auto` came to {flag} with what this machine's GPU has free now."]
    return []


class _Block(str):
    """A text that is written as a block of lines."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))
