"""Which of ggml's devices llama.cpp computes on, beside the processor, and the place that their memory is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .spec import Device

HOST: Final = "host"  # the place that is no card: the machine's own memory


def cards(found: Sequence[Device], named: Sequence[str] = ()) -> tuple[Device, ...]:
    """The cards that llama.cpp uses: those that are named, in their order, as far as they are there. Where none is
    named, those that it takes by itself: every GPU, or the integrated ones where there is none.

    found: all of ggml's devices, in its own order. An integrated card is seen by several backends at times; those of
    the first backend count.
    Source: llama.cpp, llama_prepare_model_devices.
    """
    if named:
        there = {device.name: device for device in found if device.kind in ("gpu", "igpu")}
        return tuple(there[name] for name in named if name in there)
    gpus = tuple(device for device in found if device.kind == "gpu")
    if gpus:
        return gpus
    integrated = [device for device in found if device.kind == "igpu"]
    return tuple(device for device in integrated if _backend(device) == _backend(integrated[0]))


def place(card: Device) -> str:
    """Where a card's memory is: a place of its own, or the host for an integrated card, which has none."""
    return HOST if card.kind == "igpu" else card.name


def free_by_place(found: Sequence[Device], named: Sequence[str] = ()) -> dict[str, int]:
    """Free bytes of the cards among ggml's devices, as their drivers tell them; empty without a card. Integrated ones
    share one memory, which each of them tells of. named: see `cards`."""
    free: dict[str, int] = {}
    for card in cards(found, named):
        free[place(card)] = max(card.free_bytes, free.get(place(card), 0))
    return free


def is_on_host(buffer: str) -> bool:
    """Whether a buffer lies in host memory, by the name that ggml gives it: that of the processor's backends (CPU,
    CPU_Mapped, CPU_REPACK, AMX), or a backend's own pinned memory (CUDA_Host, Vulkan_Host)."""
    return buffer.startswith(("CPU", "AMX", "BLAS")) or buffer.endswith("_Host")


def _backend(device: Device) -> str:
    """Of a device's name without its number: "Vulkan" of "Vulkan0"."""
    return device.name.rstrip("0123456789")
