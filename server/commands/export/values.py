"""What is exported: a specialist's file, and what its roster says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from coe.engine.gguf.records import Records, text
from coe.engine.spec import LoadSpec, Sampling, Thinking

from ...roster.models import Specialist
from .texts import is_read_whole, longest_text

_GEMMA4 = ("<|turn>", "<|channel>")
_SWITCH = "enable_thinking"  # the variable by which chat templates are told


class ExportError(Exception):
    """Something cannot be exported; says why, and what to do."""


@dataclass(frozen=True)
class AutoExperts:
    """What `cpu_expert_layers: auto` of a roster comes to on this machine.

    layers: as in LoadSpec; None where that is not known, or where it says nothing of another machine, and why.
    """

    layers: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Card:
    """A specialist, as a program is told of it that loads its file.

    file:     absolute; parts: how many files it is split into.
    experts:  whether it is a mixture of them.
    gemma4:   whether its prompts have the form of Gemma 4's.
    switch:   whether its chat template has one that turns thinking off.
    auto_experts: where the roster has `cpu_expert_layers: auto`, what that comes to; `load` has it too.
    load:     how it is loaded; of a model made for embeddings the context is the longest text that it takes.
    batch_tokens: what a physical batch has to hold, for a model that reads each text at once; None for others.
    licence, notice: for people to read.
    """

    name: str
    file: Path
    load: LoadSpec
    sampling: Sampling
    thinking: Thinking
    architecture: str
    experts: bool
    gemma4: bool
    switch: bool
    parts: int = 1
    title: str = ""
    system_prompt: str | None = None
    max_tokens: int | None = None
    tools: bool = True
    licence: str | None = None
    notice: str | None = None
    batch_tokens: int | None = None
    auto_experts: AutoExperts | None = None

    @property
    def places_experts(self) -> bool:
        """Whether the roster says which experts stay in host memory."""
        return self.load.cpu_expert_layers != 0 or self.auto_experts is not None

    @classmethod
    def of(
        cls,
        specialist: Specialist,
        file: Path,
        parts: int,
        records: Records,
        notice: str | None,
        auto_experts: AutoExperts | None = None,
    ) -> Card:
        """By its entry of the roster, and the keys of its file's header."""
        architecture = text(records.get("general.architecture")) or ""
        template = text(records.get("tokenizer.chat_template")) or ""
        load, batch_tokens = specialist.load_spec(file), None
        if load.embeddings:
            longest = longest_text(records, load.context_tokens)
            load = replace(load, context_tokens=longest, cache_tokens=longest)
            batch_tokens = longest if is_read_whole(records) else None
        if auto_experts is not None and auto_experts.layers is not None:
            load = replace(load, cpu_expert_layers=auto_experts.layers)
        return cls(
            name=specialist.name,
            file=file,
            load=load,
            sampling=specialist.default_sampling(),
            thinking=specialist.thinking_policy(),
            architecture=architecture,
            experts=f"{architecture}.expert_count" in records,
            gemma4=all(token in template for token in _GEMMA4),
            switch=_SWITCH in template,
            parts=parts,
            title=specialist.description or "",
            system_prompt=specialist.system_prompt,
            max_tokens=specialist.max_tokens,
            tools=specialist.tools not in ("ignore", "refuse"),
            licence=specialist.licence,
            notice=notice,
            batch_tokens=batch_tokens,
            auto_experts=auto_experts,
        )


@dataclass(frozen=True)
class Sheet:
    """What is written for a program. files: by their paths within the folder; notes: what it cannot be told, a sentence
    each; then: the next commands to run."""

    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
