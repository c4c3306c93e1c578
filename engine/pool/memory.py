"""A resident's memory estimate, from a dry run in a child process, and the free memory that a budget is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from .. import child
from ..errors import (
    ChildDiedError,
    ChildTimeoutError,
    EngineError,
    ModelFileError,
    ModelTemplateError,
    NoRoomToTryError,
)
from ..host_memory import available_host_bytes
from ..last_words import is_no_device_memory
from ..process import ending
from ..request import GenerateRequest
from ..spec import Device, EmbeddingForm, Footprint, LoadSpec, ModelFacts, Thinking, ToolForm
from ..units import size_text

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
            raise NoRoomToTryError(what, await _free_or_unknown(), error.words.rstrip(".")) from None
        if error.code >= 0:
            raise
        raise ModelFileError(
            f"llama.cpp crashed on a {what} ({ending(error.code)}): {error.words.rstrip('.')}.",
            "The file is damaged, or of a kind that this llama.cpp cannot run.",
        ) from None
    sizes = {**answer["footprint"], "notes": tuple(answer["footprint"]["notes"])}
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
    )


async def _free_or_unknown() -> int | None:
    try:
        return await free_device_bytes()
    except EngineError:  # a full card may refuse even that
        return None


async def hardware() -> Hardware:
    """What llama.cpp can compute on. Raises ChildError where it does not start."""
    title = "The process that asks llama.cpp for its devices"
    answer = await child.run(_PROBE, {}, title=title, within_s=_PROBE_S)
    return Hardware(tuple(Device(**device) for device in answer["devices"]), answer["system_info"])


async def free_device_bytes() -> int | None:
    """Free memory of the GPUs as another process sees it, None without a GPU."""
    gpus = [device for device in (await hardware()).devices if device.kind == "gpu"]
    return sum(device.free_bytes for device in gpus) if gpus else None


@dataclass(frozen=True)
class Budget:
    """What residents may take. note: where it comes from. of_host: it is what this machine had free of host memory, of
    which the server itself will take a part."""

    bytes: int
    note: str
    of_host: bool = False


async def find_budget(asked: int | None, margin_bytes: int) -> Budget:
    """The budget: the roster's figure, or what is free now less a margin."""
    if asked is not None:
        return Budget(asked, "set in the roster")
    free = await free_device_bytes()
    if free is not None:
        return Budget(max(0, free - margin_bytes), "free GPU memory less the margin")
    host = await asyncio.get_running_loop().run_in_executor(None, available_host_bytes)
    note = "available host memory less the margin; no GPU was found"
    return Budget(max(0, host - margin_bytes), note, of_host=True)


async def budget_bytes(asked: int | None, margin_bytes: int) -> tuple[int, str]:
    """The bytes of `find_budget` and where they come from."""
    budget = await find_budget(asked, margin_bytes)
    return budget.bytes, budget.note
