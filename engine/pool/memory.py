"""A resident's memory estimate, from a dry run in a child process, and the free memory that a budget is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from .. import child
from ..cards import cards, free_by_place, place
from ..errors import (
    ChildDiedError,
    ChildTimeoutError,
    EngineError,
    ModelFileError,
    ModelTemplateError,
    NoRoomToTryError,
    UnavailableError,
)
from ..host_memory import available_host_bytes
from ..last_words import is_no_device_memory
from ..process import ending
from ..request import GenerateRequest
from ..spec import Device, EmbeddingForm, Footprint, LoadSpec, ModelFacts, Thinking, ToolForm
from ..units import size_text
from .places import HOST, Memory

_PROBE: Final = "coe.engine.worker.probe"
_PROBE_S: Final = 120.0  # a dry run takes some seconds
# A dry run reads a stranger's header, vocabulary and template. The libraries take half a GiB of it, more on a machine
# with many cores; the largest vocabularies another.
_PROBE_LIMITS: Final = child.Limits(memory_bytes=6 * 2**30, cpu_s=300)


@dataclass(frozen=True)
class Prediction:
    """A dry run's result.

    refused:    specialists whose thinking policy or system prompt the model cannot carry out, name -> why.
    chat_fault: why the model cannot answer chats, with a remedy; None when it can.
    tools:      how its chat template writes calls of tools.
    embedding:  what a model that is loaded for embeddings gives.
    facts:      what the file says of itself; None where nobody has read it.
    infill:     whether its vocabulary has the tokens of fill in the middle; None where nobody has looked.
    on_gpu:     whether it is of a GPU; then the dry run itself took some of it.
    expert_bytes: of each layer's experts that may lie on a GPU; () without one.
    layer_bytes:  of each layer's weights on GPUs, the output as one more; () without one.
    """

    footprint: Footprint
    refused: Mapping[str, str]
    chat_fault: ModelTemplateError | None = None
    tools: ToolForm = field(default_factory=ToolForm)
    embedding: EmbeddingForm | None = None
    facts: ModelFacts | None = None
    infill: bool | None = None
    on_gpu: bool = False
    expert_bytes: tuple[int, ...] = ()
    layer_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hardware:
    """What llama.cpp can compute on, and what it says of itself: builds, instructions of the processor."""

    devices: tuple[Device, ...]
    system_info: str


async def predict(
    spec: LoadSpec, policies: Mapping[str, Thinking] | None = None, chats: Sequence[GenerateRequest] = ()
) -> Prediction:
    """What loading a spec would take, and whether its thinking policies hold; nothing is loaded.

    chats: the shortest that its specialists will be asked, system prompts in them: one that does not fit is refused.
    Raises ModelFileError when the file cannot be loaded at all; NoRoomToTryError where that is not known: llama.cpp
    opens the GPU for a dry run as well, and it had no room.
    """
    asked = {name: asdict(policy) for name, policy in (policies or {}).items()}
    what = f"dry run of {spec.path.name}"
    try:
        job = {"spec": spec.to_json(), "policies": asked, "chats": [chat.to_json() for chat in chats]}
        answer = await child.run(_PROBE, job, title=f"The {what}", within_s=_PROBE_S, limits=_PROBE_LIMITS)
    except ChildTimeoutError as error:
        raise ModelFileError(f"A {what} {error.how}.") from None
    except ChildDiedError as error:
        if "MemoryError" in error.words or "bad_alloc" in error.words:
            most = size_text(_PROBE_LIMITS.memory_bytes or 0)
            raise ModelFileError(
                f"A {what} takes more than {most} of memory before any weight is loaded.",
                "No sound file does: fetch it from its maker, or convert it again.",
            ) from None
        if spec.gpu_layers and is_no_device_memory(error.words):
            raise NoRoomToTryError(what, await _free_or_unknown(spec.devices), error.words.rstrip(".")) from None
        if error.code >= 0:
            raise
        raise ModelFileError(
            f"llama.cpp crashed on a {what} ({ending(error.code)}): {error.words.rstrip('.')}.",
            "The file is damaged, or of a kind that this llama.cpp cannot run.",
        ) from None
    sizes = {**answer["footprint"], "notes": tuple(answer["footprint"]["notes"])}
    sizes["card_bytes"] = tuple((card, size) for card, size in sizes["card_bytes"])
    fault = answer.get("chat_fault")
    chat_fault = ModelTemplateError(fault["message"], fault["remedy"]) if fault is not None else None
    form = EmbeddingForm(**found) if (found := answer.get("embedding")) is not None else None
    facts = ModelFacts(**answer["facts"])
    tools = ToolForm(**answer["tools"])
    return Prediction(
        Footprint(**sizes),
        answer["refused"],
        chat_fault,
        tools,
        form,
        facts,
        answer["infill"],
        answer["on_gpu"],
        tuple(answer["expert_bytes"]),
        tuple(answer["layer_bytes"]),
    )


async def _free_or_unknown(named: Sequence[str]) -> int | None:
    try:
        free = await free_memory(named)
    except EngineError:  # a full card may refuse even that
        return None
    return free.total_bytes if free is not None else None


async def hardware() -> Hardware:
    """What llama.cpp can compute on. Raises ChildError where it does not start."""
    title = "The process that asks llama.cpp for its devices"
    answer = await child.run(_PROBE, {}, title=title, within_s=_PROBE_S)
    return Hardware(tuple(Device(**device) for device in answer["devices"]), answer["system_info"])


async def free_memory(named: Sequence[str] = ()) -> Memory | None:
    """Free memory of the cards as another process sees it, None without a card. named: see `cards`."""
    return Memory(free_by_place((await hardware()).devices, named)) or None


@dataclass(frozen=True)
class Budget:
    """What residents may take of each place. note: where that comes from.

    of_host:      its host memory is what this machine had available, of which the server itself will take a part.
    margin_bytes: what is to stay free on a card for other programs.
    """

    memory: Memory
    note: str
    of_host: bool = False
    margin_bytes: int = 0


def require_cards(found: Sequence[Device], named: Sequence[str]) -> None:
    """Raises UnavailableError where a card that pool.devices names is not there, or one with a memory of its own is
    named beside an integrated one. found: all of ggml's devices."""
    there = {card.name: card for card in cards(found, [device.name for device in found])}
    for name in named:
        if name not in there:
            raise UnavailableError(
                f"pool.devices names {name}; llama.cpp sees {', '.join(there) or 'no GPU'} here.",
                "Name cards as `coe doctor` lists them, or leave pool.devices out.",
            )
    integrated = [name for name in named if place(there[name]) == HOST]
    if integrated and len(integrated) < len(named):
        raise UnavailableError(
            f"pool.devices names {integrated[0]}, which has no memory of its own, beside cards that have.",
            "Name the one or the others.",
        )


async def find_budget(
    asked: int | None, margin_bytes: int, host_asked: int | None = None, devices: Sequence[str] = ()
) -> Budget:
    """The budget: the roster's figures, or what is free now less a margin.

    asked:      of all cards together, or of the host where there is none, or where the card is integrated and has no
                memory of its own.
    host_asked: of the host beside a card; of no account elsewhere.
    devices:    cards by name; () for those that llama.cpp takes by itself.
    Raises UnavailableError where a card is named that is not there.
    """
    found = (await hardware()).devices
    require_cards(found, devices)
    free = free_by_place(found, devices)
    named = [name for name in free if name != HOST]
    if not named and asked is not None:
        return Budget(Memory.at(HOST, asked), "set in the roster")
    available = None
    if not named or host_asked is None:
        available = await asyncio.get_running_loop().run_in_executor(None, available_host_bytes)
        available = max(0, min(available, free.get(HOST, available)) - margin_bytes)
    if not named:
        assert available is not None
        whose = "which an integrated GPU shares" if free else "no GPU was found"
        return Budget(Memory.at(HOST, available), f"available host memory less the margin; {whose}", of_host=True)
    if asked is None:
        note = "free GPU memory less the margin"
        of_cards = Memory({name: max(0, free[name] - margin_bytes) for name in named})
    else:
        note = "set in the roster"
        of_cards = Memory({name: free[name] for name in named}).spread(asked)
        # It may leave less.
        margin_bytes = max(0, min(margin_bytes, *(free[name] - of_cards[name] for name in named)))
    if available is None:
        assert host_asked is not None
        memory = of_cards + Memory.at(HOST, host_asked)
        return Budget(memory, f"{note}; host memory set in the roster", margin_bytes=margin_bytes)
    host_note = "host memory: what is available less the margin"
    memory = of_cards + Memory.at(HOST, available)
    return Budget(memory, f"{note}; {host_note}", of_host=True, margin_bytes=margin_bytes)


async def budget_bytes(asked: int | None, margin_bytes: int, devices: Sequence[str] = ()) -> tuple[int, str]:
    """What pool.vram_budget comes to in bytes, and where that comes from; see `find_budget`."""
    if asked is not None:
        return asked, "set in the roster"
    budget = await find_budget(None, margin_bytes, devices=devices)
    return budget.memory.vram_bytes, budget.note


def cards_of(spec: LoadSpec, budget: Memory) -> tuple[str, ...]:
    """The cards any one of which may take a load that is meant for one, its own first; () where there is no choice."""
    if len(spec.devices) != 1 or len(budget.cards) < 2:
        return ()
    return (*spec.devices, *(card for card in budget.cards if card not in spec.devices))


def booked_memory(footprint: Footprint, budget: Memory, devices: Sequence[str] = ()) -> Memory:
    """What a resident is booked with. budget: of the machine's places. devices: see LoadSpec.

    Of several cards each holds its share of what is spread over them.
    """
    if len(devices) == 1 and budget.cards:
        return Memory({devices[0]: footprint.total_bytes, HOST: footprint.host_bytes})
    if footprint.card_bytes:
        return Memory(dict(footprint.card_bytes)) + Memory.at(HOST, footprint.host_bytes)
    return budget.spread(footprint.total_bytes) + Memory.at(HOST, footprint.host_bytes)
