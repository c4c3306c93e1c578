"""An Ollama Modelfile. Source: ollama, parser/parser.go, docs/modelfile.md, model/renderers, model/parsers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

from coe.engine.spec import Sampling, ThinkingMode

from .values import Card, ExportError, Sheet

_TRIPLE: Final = '"""'
_FILE: Final = "Modelfile"


def modelfile(card: Card, folder: Path) -> Sheet:
    """The Modelfile of a specialist, that lies in `folder`, absolute.

    Raises ExportError for a file whose path no Modelfile can spell.
    """
    notes: list[str] = []
    lines = [
        f"# {card.name}, written by coe export: ollama create {card.name} -f {_FILE}",
        f"FROM {_from(card, folder)}",
    ]
    lines += [] if card.load.embeddings else _thinking(card, notes)
    if card.system_prompt:
        lines.append(f"SYSTEM {_quoted(card.system_prompt, 'The system prompt', notes)}")
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(card).items()]
    if terms := "\n\n".join(one for one in (card.licence, card.notice) if one):
        lines.append(f"LICENSE {_quoted(terms, 'The licence', notes)}")
    if card.load.kv_type != "f16":
        notes.append(f"Its cache is {card.load.kv_type} in the roster: Ollama has OLLAMA_KV_CACHE_TYPE for all models.")
    if card.places_experts:
        notes.append("Experts that the roster keeps in host memory are placed as Ollama sees fit.")
    if card.parts > 1:
        notes.append(
            f"It is split into {card.parts} files, and Ollama takes one: llama-gguf-split --merge FIRST WHOLE makes "
            "it; then write WHOLE behind FROM."
        )
    then = [f"ollama create {card.name} -f {shlex.quote(str(folder / _FILE))}"]
    if not card.load.embeddings:  # which are asked at /api/embed
        then.append(f"ollama run {card.name}")
    return Sheet({_FILE: "\n".join(lines) + "\n"}, tuple(notes), tuple(then))


def _from(card: Card, folder: Path) -> str:
    inside = card.file.is_relative_to(folder)
    path = f"./{card.file.relative_to(folder)}" if inside else str(card.file)
    if (written := quoted(path)) is None or shown(path) != path:
        raise ExportError(f"A Modelfile cannot name {path!r}. Give --copy, and a file is made that it can.")
    return path if path == path.strip() and not path.startswith('"') and "\n" not in path else written


def _thinking(card: Card, notes: list[str]) -> list[str]:
    """The lines that keep a model's thinking as the roster wants it, where there are such."""
    mode = card.thinking.mode
    if mode is ThinkingMode.BUDGET:
        notes.append("It thinks without the roster's budget: Ollama has none.")
    if card.thinking.prefill is not None:
        notes.append("The roster's `prefill` of answers cannot be told: Ollama has none.")
    if card.gemma4:
        # Where the prompt's form is not named, the size in the model's name or its parameters choose it: a cut 26B
        # would get that of the small ones, without the empty thought that keeps thinking off.
        renderer = "gemma4-large" if card.experts else "gemma4"
        parser = "gemma4-no-thinking" if mode is ThinkingMode.OFF else "gemma4"
        return [f"RENDERER {renderer}", f"PARSER {parser}"]
    if mode is ThinkingMode.OFF and card.switch:
        notes.append(
            "A Modelfile cannot switch its thinking off: ask with `think: false`, or ollama run --think=false."
        )
    return []


def _parameters(card: Card) -> dict[str, str]:
    load = card.load
    found: dict[str, int | float] = {"num_ctx": load.context_tokens}
    if not load.embeddings:
        # Without an end an answer goes on beyond the context, whose beginning is thrown away.
        found |= {**_sampling(card.sampling), "num_predict": card.max_tokens or load.context_tokens}
    if card.batch_tokens is not None:
        found["num_batch"] = card.batch_tokens
    if load.gpu_layers >= 0:
        found["num_gpu"] = load.gpu_layers
    if load.threads:
        found["num_thread"] = load.threads
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in found.items()}


def _sampling(sampling: Sampling) -> dict[str, int | float]:
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }


def _quoted(text: str, what: str, notes: list[str]) -> str:
    """A text in quotes; what cannot be written is left out or replaced, and noted."""
    plain = shown(text)
    if plain != text:
        notes.append(f"{what} has control or invisible characters, which Ollama drops: they are left out.")
    if (found := quoted(plain)) is None:
        notes.append(f"{what} has lines that end in {_TRIPLE}, which would end it: ''' stands in their place.")
        found = quoted(plain.replace(_TRIPLE, "'''"))
    assert found is not None, "nothing in it ends it now"
    return found


def shown(text: str) -> str:
    """The text as Ollama's parser keeps it: without what cannot be printed, but for tabs and line breaks."""
    return "".join(c for c in text if c.isprintable() or c in " \t\n\r")


def quoted(text: str) -> str | None:
    """A value of a Modelfile, in the quotes that may hold line breaks; None where one of its own would end it.

    The parser looks at each line break whether what it has read, without spaces around it, ends with the quotes.
    """
    lines = re.split(r"[\n\r]", text)[:-1]
    return None if any(line.rstrip().endswith(_TRIPLE) for line in lines) else f"{_TRIPLE}{text}{_TRIPLE}"
