"""The plain values that the rest of the project hands to the engine.

They are frozen, hashable and made of JSON types only, so that they can be compared, used as keys and sent to a
worker process as they are.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self


class ThinkingMode(StrEnum):
    """What a specialist does with the thinking block of its model's chat template."""

    OFF = "off"  # a closed block is the start of every answer
    BUDGET = "budget"  # thinks, and is made to stop after `budget_tokens`
    ON = "on"  # thinks as long as it likes


@dataclass(frozen=True)
class Thinking:
    """A specialist's thinking policy.

    prefill: text that replaces the family's own closed block as the start of an answer; None for the family's own.
    """

    mode: ThinkingMode = ThinkingMode.OFF
    budget_tokens: int | None = None  # only for ThinkingMode.BUDGET
    prefill: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The order is llama.cpp's: bias, penalties, top-k, top-p, min-p, temperature, draw.

    temperature 0 takes the most probable token. repeat_penalty 1.0 and the other two penalties at 0.0 do nothing;
    all three look at the last `repeat_last_n` tokens. top_k 0, top_p 1.0 and min_p 0.0 cut nothing.
    """

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.05
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64


Kept = tuple[tuple[int, tuple[int, ...]], ...]  # layer, and the parent's experts slot by slot


@dataclass(frozen=True)
class Member:
    """One of the specialists that share a resident.

    name:   what requests call it. Two names may stand for the same weights.
    path:   its own file; with a parent, a skeleton of its shape that is filled from that parent.
    stamp:  `fingerprints.member_stamp` of it when the roster was read; "" to take the files as they are found.
    kept:   layer, the parent's experts slot by slot; of a specialist that is a mask, in place of what the skeleton
            itself says.
    """

    name: str
    path: Path
    parent: Path | None = None
    stamp: str = ""
    kept: Kept = ()

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        parent = None if self.parent is None else str(self.parent)
        return {"name": self.name, "path": str(self.path), "parent": parent, "stamp": self.stamp, "kept": self.kept}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the wire."""
        parent = None if data["parent"] is None else Path(data["parent"])
        return cls(data["name"], Path(data["path"]), parent, data["stamp"], kept_from_json(data["kept"]))


def kept_from_json(data: Iterable[Any]) -> Kept:
    """Layers and their experts, hashable again after they were lists on the wire."""
    return tuple((int(layer), tuple(experts)) for layer, experts in data)


@dataclass(frozen=True)
class Sharing:
    """How specialists of one shape share a resident.

    first:      the member that a resident is when it has been loaded; "" for the first whose file the spec names.
    swap_share: the part of the time that may go into changing from one specialist to the next, 0..1.
    max_wait_s: no specialist waits longer for its time slice than this, even where changes then take a larger part;
                None: no bound.
    check:      compare what was moved with the files after every swap.
    """

    members: tuple[Member, ...]
    swap_share: float = 0.1
    max_wait_s: float | None = None
    check: bool = False
    first: str = ""


@dataclass(frozen=True)
class LoadSpec:
    """How one GGUF is loaded. Specialists with equal specs share one resident.

    sharing:          the specialists that the resident can become; the file at `path` is one of theirs and is loaded
                      first. None for a resident that stays what it is.
    ram_budget_bytes: host memory for conversations that wait outside the cache.

    context_tokens: the most tokens, prompt and answer, that one sequence may hold.
    cache_tokens:   KV cells that all sequences of the resident share; 0 for as many as context_tokens.
    parallel:       sequences that are decoded together.
    gpu_layers:     layers on the GPU, -1 for all; 0 keeps the model on the CPU.
    cpu_expert_layers: layers, from the first, whose experts stay in host memory; -1 for all of them.
    devices:        cards by their names in ggml; () for those that llama.cpp takes by itself. Of several, each holds a
                    part of the layers.
    tensor_split:   each card's part; () for parts as large as what is free there.
    embeddings:     it embeds texts of up to context_tokens, and answers nothing.
    """

    path: Path
    context_tokens: int = 16384
    cache_tokens: int = 0
    parallel: int = 4
    gpu_layers: int = -1
    cpu_expert_layers: int = 0
    kv_type: str = "f16"  # or q8_0
    mmap: bool = True
    threads: int = 0  # 0: one a physical core
    sharing: Sharing | None = None
    ram_budget_bytes: int = 0
    embeddings: bool = False
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()

    @property
    def cells(self) -> int:
        """KV cells of the unified cache."""
        return max(self.cache_tokens, self.context_tokens)

    @property
    def keeps_layout(self) -> bool:
        """Whether the weights stay as they lie in the file, in memory of our own: what overwriting parts of them needs.

        Else llama.cpp may map the file, and keep weights in another order for this processor, which is faster.
        """
        return self.sharing is not None

    @functools.cached_property
    def group(self) -> str:
        """The key of the specialists that can share its residents: equal for equal specs, whichever cards they are on,
        and for those of one group of swap/groups.py whichever of its members is loaded first."""
        whole = replace(self, devices=())
        if self.sharing is not None:
            whole = replace(whole, path=Path(), sharing=replace(self.sharing, first=""))
        return hashlib.blake2b(repr(whole).encode(), digest_size=16).hexdigest()

    @property
    def title(self) -> str:
        """What people know it by: the file's name, or those of the specialists that share the resident."""
        if self.sharing is None:
            return self.path.name
        names = [member.name for member in self.sharing.members]
        return ", ".join(names) if len(names) < 5 else f"{', '.join(names[:3])} and {len(names) - 3} more"

    def loaded_as(self, specialist: str) -> Self:
        """The same, with one of its specialists as the one that is loaded first."""
        if self.sharing is None:
            return self
        path = next(member.path for member in self.sharing.members if member.name == specialist)
        return replace(self, path=path, sharing=replace(self.sharing, first=specialist))

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        values = {each.name: getattr(self, each.name) for each in fields(self)} | {"path": str(self.path)}
        if self.sharing is not None:
            members = [member.to_json() for member in self.sharing.members]
            values["sharing"] = {each.name: getattr(self.sharing, each.name) for each in fields(self.sharing)}
            values["sharing"]["members"] = members
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the wire."""
        sharing = data.get("sharing")
        if sharing is not None:
            members = tuple(map(Member.from_json, sharing["members"]))
            sharing = Sharing(**{**sharing, "members": members})
        lists = {name: tuple(data.get(name, ())) for name in ("devices", "tensor_split")}
        return cls(**{**data, **lists, "path": Path(data["path"]), "sharing": sharing})


@dataclass(frozen=True)
class Footprint:
    """What a resident takes, in bytes, where it is counted against the budget.

    device: the memory of the GPU, or of the host where there is no GPU.
    host:   host memory beside that (0 without a GPU): experts kept on the CPU, the worker itself; all of it for what
            keeps off a GPU that is there.
    card_bytes: what each card holds of the sum, by name, where the layers lie on several; () else.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    overhead_bytes: int = 0  # process, runtime and device context
    host_bytes: int = 0
    notes: tuple[str, ...] = field(default=())
    card_bytes: tuple[tuple[str, int], ...] = ()

    @property
    def total_bytes(self) -> int:
        """What the ledger books."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.overhead_bytes


@dataclass(frozen=True)
class ToolForm:
    """How a model's chat template writes calls of tools.

    family: the name of the template's own form; None where it has none, or none that is read back, and
    fault:  why; "" where there is one.
    """

    family: str | None = None
    fault: str = ""


@dataclass(frozen=True)
class EmbeddingForm:
    """What a model made for embeddings gives, and takes: numbers of a vector, and tokens of the longest text."""

    dimensions: int
    input_tokens: int


@dataclass(frozen=True)
class ModelFacts:
    """What a model's file says of itself, for people and clients.

    architecture: for example gemma4. parameters: of all tensors. file_type: Q4_K_M, for example, and its number in
    GGUF; "" and None where the file does not say. layers, embedding_length: 0 where it does not.
    """

    architecture: str
    parameters: int
    layers: int = 0
    embedding_length: int = 0
    file_type: str = ""
    file_type_number: int | None = None


def untrained_note(context_tokens: int, trained_tokens: int) -> str:
    """What a dry run notes of a context that is longer than the model was trained for; "" for one that is not."""
    if not 0 < trained_tokens < context_tokens:
        return ""
    return f"context_tokens {context_tokens} is more than the {trained_tokens} the model was trained for"


@dataclass(frozen=True)
class Device:
    """One of ggml's compute devices."""

    name: str
    description: str
    kind: str  # cpu, gpu, igpu, accel
    free_bytes: int
    total_bytes: int
